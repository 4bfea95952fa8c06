"""Our records as messages of the CRI. Runs where gRPC is served, on what never changes."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from imgvol import __version__, limits
from imgvol.api.cri.generated import runtime_pb2 as pb
from imgvol.images.catalog import CatalogImage
from imgvol.images.usage import FilesystemUsage
from imgvol.oci.json import JSONValue

RUNTIME_NAME: Final = "imgvol"
RUNTIME_API_VERSION: Final = "v1"
# The version of this very answer: kubelets send it, and get it back.
_KUBE_API_VERSION: Final = "0.1.0"
_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,19}")
_INT64: Final = range(-(1 << 63), 1 << 63)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What there is to say of one image.

    Attributes:
        image: None: there is none.
        config: Its config, if the caller wants to see everything.
        is_verbose: Whether the caller does.
    """

    image: CatalogImage | None
    config: JSONValue = None
    is_verbose: bool = False


def image_list(images: Sequence[CatalogImage]) -> pb.ListImagesResponse:
    """All of them in one message."""
    return pb.ListImagesResponse(images=map(image_message, images))


def image_batches(images: Sequence[CatalogImage]) -> Iterator[pb.StreamImagesResponse]:
    """All of them in messages of bounded size."""
    for first in range(0, len(images), limits.CRI_STREAM_BATCH):
        batch = images[first : first + limits.CRI_STREAM_BATCH]
        yield pb.StreamImagesResponse(images=map(image_message, batch))


def image_message(image: CatalogImage) -> pb.Image:
    """An image. It is the same message however the image was asked for."""
    uid, username = parse_user(image.user)
    return pb.Image(
        id=str(image.id),
        repo_tags=image.repo_tags,
        repo_digests=image.repo_digests,
        size=image.size,
        uid=None if uid is None else pb.Int64Value(value=uid),
        username=username,
        spec=pb.ImageSpec(image=str(image.id)),
        pinned=image.is_pinned,
    )


def parse_user(user: str) -> tuple[int | None, str]:
    """A config's User as a number or as a name; what comes after a colon is the group.

    Returns:
        The number and "", or None and the name, which is "" if there is no user.
    """
    name = user.partition(":")[0]
    if _NUMBER.fullmatch(name) and int(name) in _INT64:
        return int(name), ""
    # Configs are JSON, which can spell halves of characters; messages cannot.
    return None, name.encode("utf-8", "replace").decode("utf-8")


def image_status(found: Found) -> pb.ImageStatusResponse:
    """An image, with what is only for people to read; or nothing."""
    if found.image is None:
        return pb.ImageStatusResponse()
    answer = pb.ImageStatusResponse(image=image_message(found.image))
    if found.is_verbose:
        # As containerd names them: tools read imageSpec.
        shown = {"chainID": str(found.image.chain_id), "imageSpec": found.config or {}}
        answer.info["info"] = json.dumps(shown)
    return answer


def filesystem_info(usages: Sequence[FilesystemUsage]) -> pb.ImageFsInfoResponse:
    """The disks of images; containers have none here."""
    return pb.ImageFsInfoResponse(
        image_filesystems=[
            pb.FilesystemUsage(
                timestamp=usage.timestamp_ns,
                fs_id=pb.FilesystemIdentifier(mountpoint=usage.mountpoint),
                used_bytes=pb.UInt64Value(value=usage.used_bytes),
                inodes_used=pb.UInt64Value(value=usage.inodes_used),
            )
            for usage in usages
        ]
    )


def version() -> pb.VersionResponse:
    """Who answers."""
    return pb.VersionResponse(
        version=_KUBE_API_VERSION,
        runtime_name=RUNTIME_NAME,
        runtime_version=__version__,
        runtime_api_version=RUNTIME_API_VERSION,
    )


def runtime_status() -> pb.StatusResponse:
    """That there are images here and no containers, in the words that runtimes have for it."""
    reason = "ImageServiceOnly"
    return pb.StatusResponse(
        status=pb.RuntimeStatus(
            conditions=[
                pb.RuntimeCondition(
                    type="RuntimeReady",
                    status=False,
                    reason=reason,
                    message="imgvol serves images: it runs no containers",
                ),
                pb.RuntimeCondition(
                    type="NetworkReady",
                    status=False,
                    reason=reason,
                    message="imgvol serves images: it sets up no networks",
                ),
            ]
        )
    )
