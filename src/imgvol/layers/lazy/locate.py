"""From a layer's descriptor to its table of contents: which bytes to fetch, and what they are.

Pure: the caller fetches. A table of contents is looked for only where the manifest pins one by an
annotation, because what nothing pins could show a reader other files than a full pull would.

    need = find_toc(descriptor.annotations, descriptor.size)
    if isinstance(need, NeedTail):
        need = find_toc(descriptor.annotations, descriptor.size, fetch_last(need.size))
    if isinstance(need, TocRange):
        layer = open_layer(need, fetch(need.start, need.end))
    if isinstance(need, ExternalToc):
        layer = open_layer(need, fetch_blob(estargz.external_layer(companion, descriptor.digest)))

Every error of the content (`ContentError`) means that the layer cannot be read lazily; it may still
be pulled as a whole. But a layer with two tables of contents should not be: somebody means to show
different things to different readers.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from imgvol import limits
from imgvol.errors import DigestMismatch, InvalidDigest, InvalidLayer, LimitExceeded, Unsupported
from imgvol.layers.compression import Compression
from imgvol.layers.lazy import estargz, zstd_chunked
from imgvol.layers.lazy.spans import LazyLayer
from imgvol.layers.lazy.toc import read_toc
from imgvol.oci.digest import Digest


class Format(enum.Enum):
    """A format of lazy layers with a table of contents inside; the value is its name."""

    ESTARGZ = "eStargz"
    ZSTD_CHUNKED = "zstd:chunked"


@dataclass(frozen=True, slots=True)
class NeedTail:
    """The end of the blob has to be looked at.

    Attributes:
        size: How much of it; a footer is far smaller, but the table of contents is before it, and
            what is small comes in one go.
    """

    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Toc:
    """A table of contents, and what pins it. It is a TocRange or an ExternalToc.

    Attributes:
        format: Of the layer.
        blob_size: Bytes of the blob.
        data_end: Where in the blob content ends.
        digest: Of the bytes as fetched; None where the format pins the JSON only.
        json_digest: Of the JSON, likewise: by stargz's own annotation. One of the two is there.
        json_size: Bytes of the JSON; None where nothing tells.
    """

    format: Format
    blob_size: int
    data_end: int
    digest: Digest | None = None
    json_digest: Digest | None = None
    json_size: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TocRange(Toc):
    """A table of contents in the blob.

    Attributes:
        start: Its first byte in the blob, as fetched.
        end: The one after its last.
    """

    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalToc(Toc):
    """A table of contents in another image, as a layer of it: `estargz.external_layer` tells which.

    What is fetched is that layer's blob. Wherever it comes from, the JSON in it is pinned.
    """


def find_toc(
    annotations: Mapping[str, str], blob_size: int, tail: bytes | None = None
) -> NeedTail | TocRange | ExternalToc | None:
    """Find a layer's table of contents.

    Args:
        annotations: Of the layer's descriptor.
        blob_size: Its size.
        tail: The end of the blob, once NeedTail was the answer: at least the footer.

    Returns:
        What to fetch; None when the manifest pins no table of contents.

    Raises:
        InvalidLayer: The annotations name two tables of contents, or none that the blob has.
        Unsupported: A table of contents that we do not read, or that is not pinned.
        LimitExceeded: It is too large.
    """
    family = zstd_chunked.family_of(annotations)
    json_digest = _digest(annotations, estargz.TOC_DIGEST)
    if family is None:
        return _find_any(json_digest, blob_size, tail) if json_digest else None
    if json_digest is not None and family is zstd_chunked.CONTAINERS:
        raise InvalidLayer(
            "a layer with two tables of contents", hint=zstd_chunked.two_tables_hint()
        )
    digest = _digest(annotations, family.checksum)
    if digest is None and json_digest is None:
        raise Unsupported("a table of contents without a digest in the manifest")
    text = annotations.get(family.position)
    if text is not None:
        return _zstd_range(zstd_chunked.parse_position(text), blob_size, digest, json_digest)
    if tail is None:
        return NeedTail(min(limits.TOC_TAIL_SIZE, blob_size))
    position = zstd_chunked.parse_footer(tail)
    if position is None:
        raise _no_footer()
    return _zstd_range(position, blob_size, digest, json_digest)


def _find_any(
    json_digest: Digest, blob_size: int, tail: bytes | None
) -> NeedTail | TocRange | ExternalToc:
    """Find what only stargz's own annotation announces: gzip or zstd, the footer tells."""
    if tail is None:
        return NeedTail(min(limits.TOC_TAIL_SIZE, blob_size))
    footer = estargz.parse_footer(tail)
    if footer is None:
        position = zstd_chunked.parse_footer(tail)
        if position is None:
            raise _no_footer()
        return _zstd_range(position, blob_size, None, json_digest)
    if footer.toc_offset is None:
        return ExternalToc(
            format=Format.ESTARGZ,
            blob_size=blob_size,
            data_end=blob_size - footer.size,
            json_digest=json_digest,
        )
    start, end = footer.toc_offset, blob_size - footer.size
    _check_range(start, end)
    return TocRange(
        format=Format.ESTARGZ,
        start=start,
        end=end,
        blob_size=blob_size,
        data_end=start,
        json_digest=json_digest,
    )


def _zstd_range(
    position: zstd_chunked.Position,
    blob_size: int,
    digest: Digest | None,
    json_digest: Digest | None,
) -> TocRange:
    start, end = position.offset, position.offset + position.size
    data_end = start - zstd_chunked.FRAME_HEADER_SIZE
    if end > blob_size or data_end < 0:
        raise _outside(start, end)
    _check_range(start, end)
    return TocRange(
        format=Format.ZSTD_CHUNKED,
        start=start,
        end=end,
        blob_size=blob_size,
        data_end=data_end,
        digest=digest,
        json_digest=json_digest,
        json_size=position.raw_size,
    )


def open_layer(toc: Toc, data: bytes, *, may_lack_digests: bool = False) -> LazyLayer:
    """Read a table of contents.

    Args:
        toc: What `find_toc` found.
        data: The bytes from `toc.start` to `toc.end`; or the layer that an ExternalToc is.
        may_lack_digests: See `toc.read_toc`.

    Raises:
        DigestMismatch: They are not what the manifest pins.
        InvalidDocument, InvalidLayer, LimitExceeded, Unsupported: See `toc.read_toc`.
    """
    _check_digest(toc.digest, data)
    if toc.format is Format.ESTARGZ:
        compression = Compression.GZIP
        document = estargz.extract_json(data)
    else:
        compression = Compression.ZSTD
        document = zstd_chunked.extract_json(data, toc.json_size or 0)
    _check_digest(toc.json_digest, document)
    return read_toc(
        document,
        compression=compression,
        blob_size=toc.blob_size,
        data_end=toc.data_end,
        may_lack_digests=may_lack_digests,
    )


def _digest(annotations: Mapping[str, str], name: str) -> Digest | None:
    text = annotations.get(name)
    if text is None:
        return None
    try:
        return Digest.parse(text)
    except InvalidDigest as error:
        raise InvalidLayer(
            "the digest of a table of contents is malformed", annotation=name
        ) from error


def _check_digest(expected: Digest | None, data: bytes) -> None:
    if expected is not None and not expected.matches(data):
        raise DigestMismatch(
            "a table of contents is not what the manifest says",
            expected=expected,
            actual=Digest.of(data, expected.algorithm),
        )


def _check_range(start: int, end: int) -> None:
    if start >= end:
        raise _outside(start, end)
    if end - start > limits.TOC_SIZE:
        raise LimitExceeded(
            "table of contents too large", limit="TOC_SIZE", allowed=limits.TOC_SIZE
        )


def _outside(start: int, end: int) -> InvalidLayer:
    return InvalidLayer("a table of contents outside of its blob", offset=start, end=end)


def _no_footer() -> InvalidLayer:
    return InvalidLayer("the manifest announces a table of contents that the blob does not have")
