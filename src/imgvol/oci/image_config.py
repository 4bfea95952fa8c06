"""The image configuration: an image's identity, its platform and its diff IDs.

Only what imgvol acts on is checked with care: platform and diff IDs. What a container would be run
with is kept as data, to be shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from imgvol import limits
from imgvol.errors import DigestMismatch, LimitExceeded
from imgvol.oci.descriptor import no_annotations, parse_digest, parse_platform
from imgvol.oci.digest import DiffID, Digest
from imgvol.oci.json import Node, field_names
from imgvol.oci.platform import Platform

_FIELDS: Final = field_names("rootfs", "config", "history", "created")
_ROOTFS_FIELDS: Final = field_names("type", "diff_ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryStep:
    """How one layer, or one change without a layer, came to be."""

    created: str = ""
    created_by: str = ""
    author: str = ""
    comment: str = ""
    is_empty_layer: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """An image's configuration. Its digest, over the raw bytes, is the image ID.

    `diff_ids` is empty for an artifact whose configuration says nothing about layers, although its
    manifest may have some. `created` is text as written, meant to be RFC 3339.
    """

    platform: Platform
    diff_ids: tuple[DiffID, ...]
    raw: bytes = field(repr=False)
    digest: Digest
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=no_annotations, hash=False)
    working_dir: str = ""
    user: str = ""
    created: str = ""
    history: tuple[HistoryStep, ...] = ()


def parse_image_config(raw: bytes, *, expected: Digest | None = None) -> ImageConfig:
    """Read an image configuration.

    Args:
        raw: The document's very bytes.
        expected: The digest that names it, if one does; else it gets its sha256.

    Raises:
        LimitExceeded: The document or a list of it is too long.
        DigestMismatch: It is not what `expected` names.
        InvalidDocument: Not an image configuration, or one with more than one meaning.
    """
    if len(raw) > limits.CONFIG_SIZE:
        raise LimitExceeded(
            "image config is too large", limit="CONFIG_SIZE", allowed=limits.CONFIG_SIZE
        )
    digest = Digest.of(raw, expected.algorithm if expected else "sha256")
    if expected is not None and digest != expected:
        raise DigestMismatch(
            "image config does not match its digest", expected=expected, actual=digest
        )
    document = Node.parse(raw, what="image config", max_size=limits.CONFIG_SIZE)
    document.refuse_case_variants(_FIELDS)
    run = document.get("config") or Node({}, document.what, "config")
    return ImageConfig(
        platform=parse_platform(document),
        diff_ids=_parse_diff_ids(document),
        raw=raw,
        digest=digest,
        entrypoint=_words(run.get("Entrypoint")),
        cmd=_words(run.get("Cmd")),
        env=tuple(item.string() for item in run.get_array("Env")),
        labels=MappingProxyType(run.get_string_map("Labels")),
        working_dir=run.get_string("WorkingDir"),
        user=run.get_string("User"),
        created=document.get_string("created"),
        history=tuple(map(_parse_history_step, document.get_array("history"))),
    )


def _parse_diff_ids(document: Node) -> tuple[DiffID, ...]:
    rootfs = document.get("rootfs")
    if rootfs is None:
        return ()
    rootfs.refuse_case_variants(_ROOTFS_FIELDS)
    kind = rootfs.require("type")
    if kind.string() != "layers":
        raise kind.error('the only type is "layers"')
    nodes = rootfs.get_array("diff_ids")
    if len(nodes) > limits.LAYERS:
        raise LimitExceeded(
            "image config lists too many diff IDs", limit="LAYERS", allowed=limits.LAYERS
        )
    return tuple(DiffID(parse_digest(node)) for node in nodes)


def _words(node: Node | None) -> tuple[str, ...]:
    # Docker accepts one text where it means a list of one.
    if node is None:
        return ()
    return (node.value,) if isinstance(node.value, str) else node.strings()


def _parse_history_step(node: Node) -> HistoryStep:
    empty = node.get("empty_layer")
    return HistoryStep(
        created=node.get_string("created"),
        created_by=node.get_string("created_by"),
        author=node.get_string("author"),
        comment=node.get_string("comment"),
        is_empty_layer=empty.boolean() if empty else False,
    )
