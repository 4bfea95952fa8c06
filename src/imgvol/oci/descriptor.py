"""Descriptors: the links between documents and blobs."""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Self

from imgvol.errors import DigestMismatch, InvalidDigest, InvalidDocument
from imgvol.oci.digest import Digest
from imgvol.oci.json import JSONValue, Node, field_names
from imgvol.oci.platform import Platform

# RFC 6838, 4.2. Media types are also sent in headers: nothing else may get through.
_RESTRICTED_NAME = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
_MEDIA_TYPE: Final = re.compile(rf"{_RESTRICTED_NAME}/{_RESTRICTED_NAME}", re.ASCII)

_FIELDS: Final = field_names(
    "mediaType", "digest", "size", "urls", "annotations", "platform", "artifactType", "data"
)
_PLATFORM_FIELDS: Final = field_names("os", "architecture", "variant", "os.version", "os.features")


def no_annotations() -> Mapping[str, str]:
    """The empty map, unchangeable: a default for fields."""
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """What a blob is (`media_type`), which one (`digest`) and how long (`size`, in bytes)."""

    media_type: str
    digest: Digest
    size: int
    urls: tuple[str, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=no_annotations, hash=False)
    platform: Platform | None = None
    artifact_type: str = ""
    data: bytes | None = None

    @classmethod
    def parse(cls, node: Node) -> Self:
        """Read a descriptor of a document.

        Raises:
            InvalidDocument: Not a descriptor, or an ambiguous one.
            DigestMismatch: Embedded data is not what the digest names.
        """
        node.refuse_case_variants(_FIELDS)
        platform = node.get("platform")
        data = node.get("data")
        descriptor = cls(
            media_type=parse_media_type(node.require("mediaType")),
            digest=parse_digest(node.require("digest")),
            size=node.require("size").integer(),
            urls=tuple(url.string() for url in node.get_array("urls")),
            annotations=MappingProxyType(node.get_string_map("annotations")),
            platform=parse_platform(platform) if platform else None,
            artifact_type=node.get_string("artifactType"),
            data=_parse_base64(data) if data else None,
        )
        descriptor._check_data()
        return descriptor

    def to_json(self) -> dict[str, JSONValue]:
        """The descriptor as a JSON object, with the keys in the specification's order."""
        document: dict[str, JSONValue] = {
            "mediaType": self.media_type,
            "digest": str(self.digest),
            "size": self.size,
        }
        if self.urls:
            document["urls"] = list(self.urls)
        if self.annotations:
            document["annotations"] = dict(self.annotations)
        if self.data is not None:
            document["data"] = base64.b64encode(self.data).decode("ascii")
        if self.platform:
            document["platform"] = platform_to_json(self.platform)
        if self.artifact_type:
            document["artifactType"] = self.artifact_type
        return document

    def _check_data(self) -> None:
        if self.data is None:
            return
        if len(self.data) != self.size or not self.digest.matches(self.data):
            raise DigestMismatch(
                "data embedded in a descriptor is not what its digest names",
                expected=self.digest,
                actual=Digest.of(self.data, self.digest.algorithm),
            )


def parse_digest(node: Node) -> Digest:
    """Read a digest of a document.

    Raises:
        InvalidDocument: The value is no digest.
    """
    try:
        return Digest.parse(node.string())
    except InvalidDigest as error:
        raise InvalidDocument(
            f"malformed {node.what}: {error.message}",
            path=node.path,
            digest=error.fields.get("digest"),
        ) from error


def parse_media_type(node: Node) -> str:
    """Read a media type of a document.

    Raises:
        InvalidDocument: The value is no media type.
    """
    text = node.string()
    if not _MEDIA_TYPE.fullmatch(text):
        raise node.error("not a media type")
    return text


def _parse_base64(node: Node) -> bytes:
    try:
        return base64.b64decode(node.string(), validate=True)
    except (binascii.Error, ValueError) as error:
        raise node.error("not base64") from error


def parse_platform(node: Node) -> Platform:
    """Read the members of a descriptor's `platform`, which are also members of an image config."""
    node.refuse_case_variants(_PLATFORM_FIELDS)
    return Platform(
        os=node.get_string("os"),
        architecture=node.get_string("architecture"),
        variant=node.get_string("variant"),
        os_version=node.get_string("os.version"),
        os_features=tuple(item.string() for item in node.get_array("os.features")),
    )


def platform_to_json(platform: Platform) -> dict[str, JSONValue]:
    """The `platform` member of a descriptor."""
    document: dict[str, JSONValue] = {
        "architecture": platform.architecture,
        "os": platform.os,
    }
    if platform.os_version:
        document["os.version"] = platform.os_version
    if platform.os_features:
        document["os.features"] = list(platform.os_features)
    if platform.variant:
        document["variant"] = platform.variant
    return document
