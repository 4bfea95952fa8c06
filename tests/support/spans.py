"""Lazy layers whose spans lie wherever a test wants them, and a source that serves their ranges.

table = PlainTable(blob, [(0, 100), (100, 250)])     # uncompressed, a SHA-256 for each span
layer = make_lazy_layer(tmp_path, table)             # one file, `all`, has all content
source = RangeSource(blob)
"""

import hashlib
import json
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import accumulate
from pathlib import Path
from typing import Self

import trio

from imgvol.content.layout import StoreLayout
from imgvol.content.lazy_directory import create_lazy_layer
from imgvol.content.lazy_layer import LazyLayerStore
from imgvol.content.space import SpaceLedger
from imgvol.errors import DigestMismatch, ImgvolError, RegistryUnavailable
from imgvol.layers.builder import IndexBuilder
from imgvol.layers.lazy.spans import Part, Region, SpanTable
from imgvol.layers.tar import TarMember
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from support import members

LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"


class PlainTable(SpanTable):
    """Spans that are stored as they are; their content follows one another in the data file."""

    def __init__(
        self,
        blob: bytes,
        ranges: Sequence[tuple[int, int]],
        *,
        prefetch: Sequence[int] = (),
        digests: Sequence[str] | None = None,
        blob_size: int | None = None,
    ):
        self.ranges = [tuple(each) for each in ranges]
        self.positions_of = list(accumulate((end - start for start, end in ranges), initial=0))
        self.digests = digests or [hashlib.sha256(blob[s:e]).hexdigest() for s, e in ranges]
        self.blob_size = len(blob) if blob_size is None else blob_size
        self.data_size = self.positions_of[-1]
        self.span_count = len(ranges)
        self.prefetch = list(prefetch)

    def spans_of(self, position: int, size: int) -> Sequence[int]:
        start, end = max(position, 0), min(position + size, self.data_size)
        if start >= end:
            return ()
        return range(
            bisect_right(self.positions_of, start) - 1, bisect_right(self.positions_of, end - 1)
        )

    def compressed_range(self, span: int) -> tuple[int, int]:
        return self.ranges[span]

    def positions(self, span: int) -> Sequence[tuple[int, int]]:
        return [(self.positions_of[span], self.positions_of[span + 1])]

    def decode(self, span: int, data: bytes) -> list[Region]:
        if hashlib.sha256(data).hexdigest() != self.digests[span]:
            raise DigestMismatch("a span of a layer is not what its table says", span=span)
        return [Region(self.positions_of[span], data)]

    def to_bytes(self) -> bytes:
        fields = [self.ranges, list(self.prefetch), self.digests, self.blob_size]
        return json.dumps(fields).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "PlainTable":
        ranges, prefetch, digests, blob_size = json.loads(data)
        return cls(b"", ranges, prefetch=prefetch, digests=digests, blob_size=blob_size)


class DigestTable(PlainTable):
    """As `PlainTable`, with digests of the content itself: compressed bytes can go."""

    def parts(self, span: int) -> Sequence[Part]:
        ((start, end),) = self.positions(span)
        return [Part(start, end - start, bytes.fromhex(self.digests[span]))]


def cut(size: int, span: int) -> list[tuple[int, int]]:
    """Spans of one size that touch."""
    return [(start, min(start + span, size)) for start in range(0, size, span)]


def index_of(*files: TarMember) -> bytes:
    """An index whose contents lie in the data file, wherever the members say."""
    builder = IndexBuilder(own_files=False)
    for member in files:
        builder.add(member)
    return builder.finish()


def make_lazy_layer(
    root: Path,
    table: SpanTable,
    *files: TarMember,
    digest: Digest | None = None,
    space: SpaceLedger | None = None,
) -> LazyLayerStore:
    """A lazy layer in a directory that has no store; without files, one with all content."""
    layout = StoreLayout(root)
    for directory in layout.directories():
        directory.mkdir(exist_ok=True)
    digest = digest or Digest.of(b"blob")
    create_lazy_layer(
        layout,
        digest,
        index=index_of(*(files or [members.file(b"all", table.data_size, payload_offset=0)])),
        table=table,
    )
    return reopen_lazy_layer(root, digest, space)


def reopen_lazy_layer(
    root: Path, digest: Digest | None = None, space: SpaceLedger | None = None
) -> LazyLayerStore:
    digest = digest or Digest.of(b"blob")
    directory = StoreLayout(root).lazy_layer(digest)
    return LazyLayerStore(directory, digest, 1, trio.CapacityLimiter(32), space)


class FakeFetcher:
    """What a layer asks of its fetcher, with nothing behind it: `ensure` is the test's."""

    failure: ImgvolError | None = None
    is_slow = False
    patience = 0.0

    def note_wanted(self, spans: Sequence[int]) -> None:
        pass

    def read_ahead(self, spans: Sequence[int]) -> None:
        pass


class RangeReader:
    """One range of a RangeSource."""

    def __init__(self, source: "RangeSource", start: int, end: int, error: ImgvolError | None):
        self._source, self._start, self._end, self._error = source, start, end, error
        self.is_cancelled = False
        self.reached = start

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        return None

    def iter_pieces(self) -> Iterator[bytes]:
        source = self._source
        while self.reached < self._end:
            with source.changed:
                while not self.is_cancelled and self.reached >= source.held_from:
                    assert source.changed.wait(20), "held for too long"
                if self.is_cancelled:
                    raise RegistryUnavailable("cancelled")
                # A failure comes in the middle of the range.
                if self._error is not None and self.reached >= (self._start + self._end) // 2:
                    raise self._error
                stop = min(self.reached + source.piece, self._end)
                piece = bytes(source.blob[self.reached : stop])
            yield piece
            self.reached = stop
        source.delivered.append((self._start, self._end))

    def cancel(self) -> None:
        with self._source.changed:
            self.is_cancelled = True
            self._source.changed.notify_all()

    def close(self) -> None:
        return None


class RangeSource:
    """Serves ranges of one blob, each to its end, or as far as the test lets it.

    Attributes:
        blob: What is served; a bytearray that a test may change.
        opened: The ranges asked for, in order.
        delivered: Those that were received whole.
        failures: Errors for the next ranges, one each.
        held_from: Bytes from here on are not delivered until `release`.
    """

    def __init__(self, blob: bytes, piece: int = 1000):
        self.blob = bytearray(blob)
        self.piece = piece
        self.opened: list[tuple[int, int]] = []
        self.delivered: list[tuple[int, int]] = []
        self.readers: list[RangeReader] = []
        self.failures: list[ImgvolError] = []
        self.held_from: float = float("inf")
        self.changed = threading.Condition()

    def open_blob(
        self, descriptor: Descriptor, *, offset: int = 0, end: int | None = None
    ) -> RangeReader:
        end = len(self.blob) if end is None else end
        assert 0 <= offset < end <= len(self.blob)
        error = self.failures.pop(0) if self.failures else None
        reader = RangeReader(self, offset, end, error)
        self.readers.append(reader)
        self.opened.append((offset, end))
        return reader

    def hold(self, start: int = 0) -> None:
        with self.changed:
            self.held_from = start

    def release(self) -> None:
        with self.changed:
            self.held_from = float("inf")
            self.changed.notify_all()


def serve(monkeypatch, source: RangeSource) -> None:
    """Makes every fetch engine find this source, whatever the origin."""

    @asynccontextmanager
    async def open_source(*_: object, **_settings):
        yield source

    monkeypatch.setattr("imgvol.images.fetch.sources.open_source", open_source)


def use_plain_tables(monkeypatch, kind: type[PlainTable] = PlainTable) -> None:
    """Makes stored layers with a PlainTable openable."""
    monkeypatch.setattr("imgvol.content.lazy_layer.open_span_table", kind.from_bytes)


async def until(condition, seconds: float = 10) -> None:
    """Waits in real time until something has come about."""
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.002)
