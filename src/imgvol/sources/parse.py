"""What a user may write where an image is wanted: a reference, or the place of a local image.

    alpine:3  docker://alpine:3            a registry's
    oci:DIRECTORY[:TAG|@DIGEST]            an OCI layout
    oci-archive:FILE[:TAG|@DIGEST]         a tar of one, compressed or not
    docker-archive:FILE[:REFERENCE|:@N]    what `docker save` writes; N counts images from 0

The schemes, and that a path ends at the first colon, are those of skopeo and podman. `str()` of the
result is the image's canonical name, under which it is stored.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final, TypeAlias

from imgvol import limits
from imgvol.errors import InvalidArgument, InvalidDigest
from imgvol.oci.digest import Digest
from imgvol.oci.reference import Reference, parse_docker_reference


@dataclass(frozen=True, slots=True)
class RegistryImage:
    """An image of a registry: the reference has a tag or a digest, never both."""

    reference: Reference

    def __str__(self) -> str:
        return str(self.reference)


@dataclass(frozen=True, slots=True)
class LayoutImage:
    """An image of an OCI layout; without tag and digest, the only one there."""

    path: str
    tag: str | None = None
    digest: Digest | None = None

    def __str__(self) -> str:
        return f"oci:{self.path}{_selector(self.tag, self.digest)}"


@dataclass(frozen=True, slots=True)
class OCIArchive:
    """An image of an OCI layout in a tar; without tag and digest, the only one there."""

    path: str
    tag: str | None = None
    digest: Digest | None = None

    def __str__(self) -> str:
        return f"oci-archive:{self.path}{_selector(self.tag, self.digest)}"


@dataclass(frozen=True, slots=True)
class DockerArchive:
    """An image of a docker-archive, by name or by position; without either, the only one there."""

    path: str
    reference: Reference | None = None
    position: int | None = None

    def __str__(self) -> str:
        if self.position is not None:
            return f"docker-archive:{self.path}:@{self.position}"
        return f"docker-archive:{self.path}:{self.reference or ''}".removesuffix(":")


ImageArgument: TypeAlias = RegistryImage | LayoutImage | OCIArchive | DockerArchive


def parse_image_argument(text: str) -> ImageArgument:
    """Read what a user wrote for an image.

    Raises:
        InvalidReference: No reference, where one was expected.
        InvalidArgument: A scheme without a path, or with a malformed selector.
    """
    for scheme, parse in _SCHEMES.items():
        if text.startswith(scheme):
            if len(text) > limits.PATH_LENGTH + limits.REFERENCE_LENGTH:
                raise InvalidArgument("image argument is too long", image=f"{text[:64]}…")
            return parse(text.removeprefix(scheme))
    return _parse_registry_image(text)


def _parse_registry_image(text: str) -> RegistryImage:
    return RegistryImage(parse_docker_reference(text))


def _parse_layout_image(text: str) -> LayoutImage:
    return LayoutImage(*_split_oci(text))


def _parse_oci_archive(text: str) -> OCIArchive:
    return OCIArchive(*_split_oci(text))


def _parse_docker_archive(text: str) -> DockerArchive:
    path, selector = _split(text)
    if selector.startswith("@"):
        if not (selector[1:].isascii() and selector[1:].isdecimal() and len(selector) < 8):
            raise InvalidArgument("not the position of an image", selector=selector)
        return DockerArchive(path, position=int(selector[1:]))
    return DockerArchive(path, parse_docker_reference(selector) if selector else None)


_SCHEMES: Final[dict[str, Callable[[str], ImageArgument]]] = {
    "docker://": _parse_registry_image,
    "oci:": _parse_layout_image,
    "oci-archive:": _parse_oci_archive,
    "docker-archive:": _parse_docker_archive,
}


def _split_oci(text: str) -> tuple[str, str | None, Digest | None]:
    place, at, last = text.rpartition("@")
    if at:
        try:
            digest = Digest.parse(last)
        except InvalidDigest:
            pass  # an @ of the path or of the tag
        else:
            path, tag = _split(place)
            if tag:
                raise InvalidArgument("give a tag or a digest, not both", image=text)
            return path, None, digest
    path, tag = _split(text)
    return path, tag or None, None


def _split(text: str) -> tuple[str, str]:
    path, _, selector = text.partition(":")
    if not path or "\0" in text:
        raise InvalidArgument(
            "the image's path is missing",
            hint="Write it after the scheme, for example oci:/srv/images/app:v1.",
            image=text,
        )
    return str(PurePosixPath(path)), selector


def _selector(tag: str | None, digest: Digest | None) -> str:
    return f":{tag}" if tag else f"@{digest}" if digest else ""
