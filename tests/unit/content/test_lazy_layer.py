"""A layer that is partly here: exact bytes or an error, and a map that is never ahead."""

import os
import random
from dataclasses import dataclass, field

import pytest

from imgvol.content import kept_blob, span_intake
from imgvol.content.layout import StoreLayout
from imgvol.content.lazy_layer import LazyLayerStore
from imgvol.errors import (
    ContentError,
    InternalError,
    InvalidLayer,
    LocalError,
    RegistryUnavailable,
    StoreDamaged,
    StoreFull,
)
from imgvol.layers.index import ROOT
from imgvol.oci.digest import Digest
from support import members
from support.spans import PlainTable, cut, make_lazy_layer, reopen_lazy_layer, use_plain_tables

BLOB = random.Random(3).randbytes(1000)
TABLE = PlainTable(BLOB, cut(len(BLOB), 100))


@pytest.fixture(autouse=True)
def _plain_tables(monkeypatch):
    use_plain_tables(monkeypatch)


def put(layer: LazyLayerStore, *spans: int) -> None:
    for span in spans:
        start, end = layer.table.compressed_range(span)
        layer.kept.put(start, BLOB[start:end])
        layer.intake.put_span(span, layer.table.decode(span, BLOB[start:end]))


def node(layer: LazyLayerStore, name: bytes = b"all") -> int:
    found = layer.index.child(ROOT, name)
    assert found is not None
    return found


@dataclass
class Fetcher:
    """Puts the spans that it is asked for, unless told otherwise."""

    layer: LazyLayerStore
    error: Exception | None = None
    puts: bool = True
    asked: list[list[int]] = field(default_factory=list)

    wanted: list[int] = field(default_factory=list)
    ahead: list[list[int]] = field(default_factory=list)

    def note_wanted(self, spans):
        self.wanted += spans

    def read_ahead(self, spans):
        self.ahead.append(sorted(spans))

    async def ensure(self, spans):
        self.asked.append(sorted(spans))
        if self.error is not None:
            raise self.error
        if self.puts:
            put(self.layer, *spans)


def with_fetcher(layer: LazyLayerStore, **fields) -> Fetcher:
    layer.fetcher = Fetcher(layer, **fields)
    return layer.fetcher


# --- reading -------------------------------------------------------------------------------------


async def test_a_read_fetches_the_spans_that_it_needs_and_no_others(tmp_path):
    layer = make_lazy_layer(tmp_path, TABLE)
    fetcher = with_fetcher(layer)
    assert await layer.read(node(layer), 250, 200) == BLOB[250:450]
    assert await layer.read(node(layer), 399, 2) == BLOB[399:401]
    assert fetcher.asked == [[2, 3, 4]]
    assert await layer.read(node(layer), 150, 100) == BLOB[150:250]
    assert fetcher.asked == [[2, 3, 4], [1]]


async def test_reads_end_where_the_file_does(tmp_path):
    layer = make_lazy_layer(tmp_path, TABLE)
    fetcher = with_fetcher(layer)
    assert await layer.read(node(layer), 990, 4096) == BLOB[990:]
    assert await layer.read(node(layer), 1000, 1) == b""
    assert await layer.read(node(layer), 5000, 10) == b""
    assert await layer.read(node(layer), 0, 0) == b""
    assert fetcher.asked == [[9]]


async def test_holes_are_zeros_and_are_not_fetched(tmp_path):
    """A file of three pieces, out of the middle of the data file, with holes around them."""
    pieces = ((50, 120), (300, 30), (330, 200))
    file = members.file(b"f", 700, payload_offset=210, sparse=pieces)
    content = bytearray(700)
    place = 210
    for offset, size in pieces:
        content[offset : offset + size] = BLOB[place : place + size]
        place += size
    chance = random.Random(4)
    layer = make_lazy_layer(tmp_path, TABLE, file)
    fetcher = with_fetcher(layer)
    assert await layer.read(node(layer, b"f"), 0, 50) == bytes(50)
    assert await layer.read(node(layer, b"f"), 530, 170) == bytes(170)
    assert fetcher.asked == []
    for _ in range(100):
        offset, size = chance.randrange(700), chance.randrange(1, 700)
        data = await layer.read(node(layer, b"f"), offset, size)
        assert bytes(data) == content[offset : offset + size]
    assert bytes(layer.read_blocking(node(layer, b"f"), 0, 700)) == content
    assert {span for asked in fetcher.asked for span in asked} == {2, 3, 4, 5}


async def test_an_empty_file_needs_nothing(tmp_path):
    layer = make_lazy_layer(tmp_path, TABLE, members.file(b"empty", 0))
    assert await layer.read(node(layer, b"empty"), 0, 100) == b""


async def test_a_fetcher_that_brings_nothing_gives_an_error_and_no_zeros(tmp_path):
    layer = make_lazy_layer(tmp_path, TABLE)
    put(layer, 0)
    with_fetcher(layer, puts=False)
    assert await layer.read(node(layer), 0, 100) == BLOB[:100]
    for offset, size in [(100, 1), (99, 2), (0, 1000)]:
        with pytest.raises(InternalError):
            await layer.read(node(layer), offset, size)


async def test_what_the_fetcher_raises_reaches_the_reader_and_spoils_nothing(tmp_path):
    layer = make_lazy_layer(tmp_path, TABLE)
    fetcher = with_fetcher(layer, error=RegistryUnavailable("gone"))
    with pytest.raises(RegistryUnavailable):
        await layer.read(node(layer), 0, 10)
    fetcher.error = None
    assert await layer.read(node(layer), 0, 10) == BLOB[:10]


async def test_present_spans_need_no_fetcher(tmp_path):
    layer = make_lazy_layer(tmp_path, TABLE)
    put(layer, 3, 4)
    with_fetcher(layer, error=RegistryUnavailable("gone"))
    assert await layer.read(node(layer), 300, 200) == BLOB[300:500]


async def test_a_data_file_that_was_cut_is_damage_and_no_zeros(tmp_path):
    layer = make_lazy_layer(tmp_path, TABLE)
    put(layer, *range(10))
    os.truncate(StoreLayout(tmp_path).lazy_layer(layer.digest) / "data", 500)
    assert await layer.read(node(layer), 0, 500) == BLOB[:500]
    with pytest.raises(StoreDamaged, match="shorter"):
        await layer.read(node(layer), 400, 200)


@pytest.mark.parametrize("error", [InvalidLayer("lies"), RegistryUnavailable("x")])
async def test_a_poisoned_layer_answers_no_read_at_all(tmp_path, error):
    layer = make_lazy_layer(tmp_path, TABLE)
    put(layer, *range(10))
    layer.failure = error
    for offset, size in [(0, 10), (0, 0), (5000, 1)]:
        with pytest.raises(type(error)) as caught:
            await layer.read(node(layer), offset, size)
        assert (type(caught.value), str(caught.value)) == (type(error), str(error))


async def test_a_layer_that_is_poisoned_while_a_reader_waits_gives_it_nothing(tmp_path):
    layer = make_lazy_layer(tmp_path, TABLE)

    class Poisoner(Fetcher):
        async def ensure(self, spans):
            await super().ensure(spans)
            layer.failure = InvalidLayer("lies")

    layer.fetcher = Poisoner(layer)
    with pytest.raises(ContentError):
        await layer.read(node(layer), 0, 10)


async def test_complete_hands_reads_over(tmp_path):
    class Complete:
        index = None

        async def read(self, *arguments):
            return arguments

    layer = make_lazy_layer(tmp_path, TABLE)
    assert not layer.is_complete
    layer.complete(Complete())
    assert layer.is_complete
    assert await layer.read(7, 1, 2) == (7, 1, 2)


def test_what_is_there_of_a_file_can_be_told(tmp_path):
    layer = make_lazy_layer(
        tmp_path, TABLE, members.file(b"f", 500, payload_offset=150, sparse=((100, 300),))
    )
    file = node(layer, b"f")
    assert layer.has(file, 0, 100), "a hole"
    assert not layer.has(file, 0, 101)
    put(layer, 1, 2)
    assert layer.has(file, 0, 250)
    assert not layer.has(file, 249, 2)
    assert layer.has(file, 400, 5000)


# --- on disk -------------------------------------------------------------------------------------


def test_a_new_layer_takes_no_room_and_leaves_no_work(tmp_path):
    big = PlainTable(b"", [(0, 1 << 30)], digests=["-"], blob_size=1 << 31)
    layer = make_lazy_layer(tmp_path, big)
    directory = StoreLayout(tmp_path).lazy_layer(layer.digest)
    assert (directory / "data").stat().st_size == 1 << 30
    assert (directory / "blob").stat().st_size == 1 << 31
    assert sum(f.stat().st_blocks for f in directory.iterdir()) * 512 < 1 << 20
    assert {f.stat().st_mode & 0o777 for f in directory.iterdir()} == {0o600}
    assert os.listdir(tmp_path / "ingest") == []
    assert layer.present.present_count == 0
    assert layer.missing(range(1)) == [0]


@pytest.mark.parametrize("name", ["index", "table", "data", "blob"])
def test_a_layer_without_one_of_its_files_is_damaged(tmp_path, name):
    layer = make_lazy_layer(tmp_path, TABLE)
    (StoreLayout(tmp_path).lazy_layer(layer.digest) / name).unlink()
    with pytest.raises(StoreDamaged):
        reopen_lazy_layer(tmp_path)


async def test_reopening_keeps_the_spans_that_were_flushed_and_only_these(tmp_path):
    layer = make_lazy_layer(tmp_path, TABLE)
    put(layer, 1, 2, 8)
    layer.intake.flush()
    put(layer, 5)
    again = reopen_lazy_layer(tmp_path)
    assert again.missing(range(10)) == [0, 3, 4, 5, 6, 7, 9]
    assert again.kept.covers(100, 300)
    assert again.kept.covers(800, 900)
    assert not again.kept.covers(500, 600)
    assert again.kept.read(100, 200) == BLOB[100:300]
    fetcher = with_fetcher(again)
    assert await again.read(node(again), 100, 200) == BLOB[100:300]
    assert fetcher.asked == []
    assert await again.read(node(again), 500, 100) == BLOB[500:600]


@pytest.mark.fault("F29")
def test_every_byte_is_durable_before_the_map_speaks_of_it(tmp_path, monkeypatch):
    """What would survive a power cut is written down at each step, and the map is held to it."""
    layer = make_lazy_layer(tmp_path, TABLE)
    directory = StoreLayout(tmp_path).lazy_layer(layer.digest)
    events: list[str] = []
    names = {os.stat(directory / n).st_ino: n for n in ("data", "blob")}
    synced: dict[str, bytes] = {}

    def note(call):
        def wrapped(fd):
            call(fd)
            name = names.get(os.fstat(fd).st_ino, os.readlink(f"/proc/self/fd/{fd}"))
            events.append(os.path.basename(name))
            if name in ("data", "blob"):
                synced[name] = (directory / name).read_bytes()
                put(layer, 5)  # comes too late for this flush

        return wrapped

    replace = os.replace

    def rename(source, target):
        events.append(f"rename {os.path.basename(source)}")
        replace(source, target)

    monkeypatch.setattr(os, "fdatasync", note(os.fdatasync))
    monkeypatch.setattr(os, "fsync", note(os.fsync))
    monkeypatch.setattr(os, "replace", rename)
    put(layer, 1, 2)
    layer.intake.flush()
    assert events == ["data", "blob", "spans.new", "rename spans.new", directory.name]
    again = reopen_lazy_layer(tmp_path)
    assert again.missing(range(10)) == [0, 3, 4, 5, 6, 7, 8, 9]
    assert {data[100:300] for data in synced.values()} == {BLOB[100:300]}
    layer.intake.flush()
    assert 5 in reopen_lazy_layer(tmp_path).present


def test_a_flush_without_news_touches_nothing(tmp_path, monkeypatch):
    layer = make_lazy_layer(tmp_path, TABLE)
    put(layer, 1)
    layer.intake.flush()
    monkeypatch.setattr(os, "fdatasync", lambda _: pytest.fail("nothing to make durable"))
    layer.intake.flush()
    reopen_lazy_layer(tmp_path).intake.flush()


@pytest.mark.fault("F24")
def test_after_a_failed_sync_the_map_stays_behind_for_good(tmp_path, monkeypatch):
    """The kernel forgets a failed write after it has told once: the next sync proves nothing."""
    layer = make_lazy_layer(tmp_path, TABLE)
    put(layer, 1)
    layer.intake.flush()
    put(layer, 2)

    def fail(_):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", fail)
        with pytest.raises(LocalError):
            layer.intake.flush()
    put(layer, 3)
    layer.intake.flush()
    assert reopen_lazy_layer(tmp_path).missing(range(4)) == [0, 2, 3]


@pytest.mark.fault("F21")
@pytest.mark.parametrize(
    ("module", "store"),
    [
        (span_intake, lambda layer: layer.intake.put_span(1, TABLE.decode(1, BLOB[100:200]))),
        (kept_blob, lambda layer: layer.kept.put(100, BLOB[100:200])),
    ],
    ids=["span", "compressed"],
)
def test_a_full_disk_leaves_the_span_missing(tmp_path, monkeypatch, module, store):
    layer = make_lazy_layer(tmp_path, TABLE)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_all", full)
        with pytest.raises(StoreFull):
            store(layer)
    assert layer.missing([1]) == [1]
    assert not layer.kept.covers(100, 200)
    put(layer, 1)
    assert layer.missing([1]) == []


def test_a_disk_that_fails_under_the_kept_blob_is_reported_in_our_terms(tmp_path, monkeypatch):
    layer = make_lazy_layer(tmp_path, TABLE)

    def fail(*_):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", fail)
        with pytest.raises(StoreDamaged):
            layer.kept.read(0, 10)


def test_layers_of_several_digests_live_side_by_side(tmp_path):
    one = make_lazy_layer(tmp_path, TABLE)
    other = make_lazy_layer(tmp_path, TABLE, digest=Digest.of(b"other"))
    put(one, 1)
    assert other.missing([1]) == [1]
