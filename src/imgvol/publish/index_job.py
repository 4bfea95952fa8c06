"""The job that indexes one layer, in a helper process: its blob in, a zTOC and its twin out.

    standard input ─ sha256(blob) ─ decompress, checkpoints ─ sha256(diff) ─ parse tar ─ zTOC

What is zstd has frames and no checkpoints, and gets the one document of `zstd_frames` instead.

Blob digest, size and diff ID are checked over every byte before anything is written. And what is
written is read again as any node would: its files must be those of the tar. A layer that the format
cannot describe is no error; the answer says why, and the layer is left out of the index.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Protocol

from imgvol import __version__, limits
from imgvol.errors import ContentError, DigestMismatch, InvalidLayer, LimitExceeded, Unsupported
from imgvol.layers.builder import IndexBuilder
from imgvol.layers.compression import Compression, MeteredDecoder, open_decoder, sniff
from imgvol.layers.lazy.checkpoint_builder import CheckpointBuilder
from imgvol.layers.lazy.frame_builder import FrameBuilder
from imgvol.layers.lazy.soci import open_ztoc, read_ztoc
from imgvol.layers.lazy.soci_twin import compress_ztoc
from imgvol.layers.lazy.zstd_frames import open_frames, read_frames, write_frames
from imgvol.layers.lazy.ztoc import Algorithm
from imgvol.layers.lazy.ztoc_members import MemberCollector
from imgvol.layers.lazy.ztoc_writer import ZtocParts, write_tar_zinfo, write_ztoc
from imgvol.layers.tar import TarMember, TarParser
from imgvol.oci.digest import DiffID, Digest

TOOL: Final = f"imgvol {__version__}"
ZTOC_NAME: Final = "ztoc"
TWIN_NAME: Final = "twin"
FRAMES_NAME: Final = "frames"

# Four bytes tell.
_SNIFFED: Final = 4


@dataclass(frozen=True, slots=True)
class _Request:
    digest: Digest
    size: int
    diff_id: DiffID
    span_size: int

    @classmethod
    def parse(cls, request: Mapping[str, Any]) -> "_Request":
        return cls(
            Digest.parse(request["digest"]),
            int(request["size"]),
            DiffID(Digest.parse(request["diff_id"])),
            int(request["span_size"]),
        )


def run(
    request: Mapping[str, Any],
    source: IO[bytes],
    output: Path,
    progress: Callable[[int], None],
) -> Mapping[str, Any]:
    """Indexes a layer.

    Args:
        request: `digest`, `size` and `diff_id` of the layer, and `span_size`.
        source: The blob.
        output: Gets the files `ztoc` and `twin`, or `frames`.
        progress: Told how much of the blob has been read.

    Returns:
        `ztoc` and `twin`, or `frames`, each with digest and size; `spans`, `members`,
        `unpacked_size`. Or `unfit`, why the layer is not indexed.

    Raises:
        DigestMismatch: The blob, or what is in it, is not what it should be.
        InvalidLayer: It cannot be read as a layer.
    """
    layer = _LayerIndexer(_Request.parse(request), progress)
    try:
        documents, facts = layer.index(source)
    except (LimitExceeded, Unsupported) as error:
        return {"unfit": str(error)}
    for name, data in documents.items():
        (output / name).write_bytes(data)
    described = {
        name: {"digest": str(Digest.of(data)), "size": len(data)}
        for name, data in documents.items()
    }
    return {**described, **facts}


class _LayerIndexer:
    """One layer on its way; see the module."""

    def __init__(self, request: _Request, progress: Callable[[int], None]) -> None:
        self._request = request
        self._progress = progress
        self._parser = TarParser()
        self._members = MemberCollector()
        self._tar_members: list[TarMember] = []
        self._index = IndexBuilder(own_files=False)
        self._diff_id = request.diff_id.hasher()
        self._unpacked = 0

    def index(self, source: IO[bytes]) -> tuple[Mapping[str, bytes], Mapping[str, Any]]:
        """Its documents by name, and what there is to tell of it."""
        pieces = self._verified(source)
        head = next(pieces, b"")
        while len(head) < _SNIFFED and (more := next(pieces, b"")):
            head += more
        compression = sniff(head)
        spans = self._open_spans(compression)
        for piece in _chain(head, pieces):
            for plain in spans.feed(piece):
                self._take(plain)
        spans.finish()
        self._parser.finish()
        self._check(Digest.from_hasher(self._diff_id), self._request.diff_id, "diff ID")
        documents = self._write(spans)
        self._prove(documents)
        return documents, {
            "spans": len(spans.digests),
            "members": len(self._members.members),
            "unpacked_size": self._unpacked,
        }

    def _verified(self, source: IO[bytes]) -> Iterator[bytes]:
        """The blob; its end comes only after digest and size have been checked."""
        hasher = self._request.digest.hasher()
        received = 0
        while piece := source.read(limits.BODY_PIECE):
            hasher.update(piece)
            received += len(piece)
            self._progress(received)
            yield piece
        self._check(Digest.from_hasher(hasher), self._request.digest, "digest")
        if received != self._request.size:
            raise DigestMismatch(
                "layer has another size than its manifest says",
                layer=self._request.digest,
                expected=self._request.size,
                actual=received,
            )

    def _check(self, actual: Digest, expected: Digest, what: str) -> None:
        if actual != expected:
            raise DigestMismatch(
                f"layer does not match its {what}",
                hint="The image is damaged where it is stored, or on the way: it is not indexed.",
                layer=self._request.digest,
                expected=expected,
                actual=actual,
            )

    def _open_spans(self, compression: Compression) -> "_Spans":
        match compression:
            case Compression.GZIP:
                return _GzipSpans(self._request.span_size)
            case Compression.NONE:
                return _PlainSpans(self._request.span_size, self._request.size)
            case Compression.ZSTD:
                return _FrameSpans(self._request.span_size)

    def _take(self, plain: bytes) -> None:
        self._diff_id.update(plain)
        self._unpacked += len(plain)
        members = self._parser.feed(plain)
        for member in members:
            self._index.add(member)
        self._tar_members += members
        self._members.feed(plain, members, is_ended=self._parser.is_ended)

    def _write(self, spans: "_Spans") -> Mapping[str, bytes]:
        parts = ZtocParts(
            members=self._members.members,
            compressed_size=self._request.size,
            uncompressed_size=self._members.archive_size,
            algorithm=spans.algorithm,
            span_digests=spans.digests,
            checkpoints=spans.checkpoints,
            tool=TOOL.encode(),
        )
        if spans.algorithm is Algorithm.ZSTD_FRAMES:
            return {FRAMES_NAME: write_frames(parts)}
        ztoc = write_ztoc(parts)
        return {ZTOC_NAME: ztoc, TWIN_NAME: compress_ztoc(ztoc)}

    def _prove(self, documents: Mapping[str, bytes]) -> None:
        """Reads them as another node would, whose index must be that of the tar."""
        is_frames = FRAMES_NAME in documents
        document = documents[FRAMES_NAME if is_frames else ZTOC_NAME]
        size, expected = self._request.size, Digest.of(document)
        try:
            members, _ = (read_frames if is_frames else read_ztoc)(document, blob_size=size)
            if members == self._tar_members:
                return  # of which one index is made, whoever makes it
            open_it = open_frames if is_frames else open_ztoc
            read = open_it(document, expected=expected, blob_size=size)
        except (LimitExceeded, Unsupported):
            raise
        except ContentError as error:
            raise Unsupported(f"a zTOC cannot describe the layer: {error}") from error
        if read.index != self._index.finish():
            raise Unsupported("a zTOC cannot say all that the layer's tar does")


def _chain(head: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    if head:
        yield head
    yield from pieces


class _Spans(Protocol):
    """Makes the spans of a blob while it passes."""

    @property
    def algorithm(self) -> Algorithm:
        """How the blob is compressed."""
        ...

    @property
    def digests(self) -> Sequence[bytes]:
        """The SHA-256 of each span, after `finish`."""
        ...

    @property
    def checkpoints(self) -> bytes:
        """What a document has of the spans beside their digests, after `finish`."""
        ...

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """As compression.Decoder says."""
        ...

    def finish(self) -> None:
        """As compression.Decoder says."""
        ...


class _GzipSpans:
    """The spans of a gzip blob."""

    algorithm: Final = Algorithm.GZIP

    def __init__(self, span_size: int) -> None:
        self._builder = CheckpointBuilder(span_size)
        self._decoder = MeteredDecoder(self._builder)
        self.digests: list[bytes] = []
        self.checkpoints = b""

    def feed(self, piece: bytes) -> Iterator[bytes]:
        return self._decoder.feed(piece)

    def finish(self) -> None:
        self._decoder.finish()
        built = self._builder.spans()
        self.digests, self.checkpoints = list(built.digests), built.checkpoints


class _FrameSpans:
    """The spans of a zstd blob."""

    algorithm: Final = Algorithm.ZSTD_FRAMES

    def __init__(self, span_size: int) -> None:
        self._builder = FrameBuilder(span_size)
        self._decoder = MeteredDecoder(self._builder)
        self.digests: list[bytes] = []
        self.checkpoints = b""

    def feed(self, piece: bytes) -> Iterator[bytes]:
        return self._decoder.feed(piece)

    def finish(self) -> None:
        self._decoder.finish()
        self.digests, self.checkpoints = self._builder.digests, self._builder.packed_runs


class _PlainSpans:
    """The spans of a blob that is not compressed, which only need digests."""

    algorithm: Final = Algorithm.UNCOMPRESSED

    def __init__(self, span_size: int, size: int) -> None:
        if -(-size // span_size) > limits.ZTOC_SPANS:
            raise LimitExceeded(
                "layer with too many spans", limit="ZTOC_SPANS", allowed=limits.ZTOC_SPANS
            )
        self._decoder = open_decoder(Compression.NONE)
        self._span_size = span_size
        self._hasher = hashlib.sha256()
        self._left = span_size
        self.digests: list[bytes] = []
        self.checkpoints = write_tar_zinfo(span_size, size)

    def feed(self, piece: bytes) -> Iterator[bytes]:
        view = memoryview(piece)
        while len(view) >= self._left:
            self._hasher.update(view[: self._left])
            view = view[self._left :]
            self.digests.append(self._hasher.digest())
            self._hasher, self._left = hashlib.sha256(), self._span_size
        self._hasher.update(view)
        self._left -= len(view)
        return self._decoder.feed(piece)

    def finish(self) -> None:
        self._decoder.finish()
        if self._left < self._span_size:
            self.digests.append(self._hasher.digest())
        if not self.digests:
            raise InvalidLayer("a layer without a byte")
