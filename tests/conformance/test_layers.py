"""The contract of `content.layer.Layer`, held over everything that readers can meet as a layer."""

import contextlib
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from imgvol import limits
from imgvol.content.damage import DamagedParts
from imgvol.content.fetching import FetchStatistics
from imgvol.content.in_place_layer import InPlaceLayer
from imgvol.content.layer import Layer
from imgvol.content.layer_store import LayerStore
from imgvol.content.layer_writer import LayerWriter
from imgvol.content.layout import StoreLayout
from imgvol.content.lazy_directory import create_lazy_layer
from imgvol.content.lazy_layer import LazyLayerStore
from imgvol.content.place import Place, PlacedFile
from imgvol.errors import ImgvolError, InvalidLayer, RegistryUnavailable, StoreDamaged
from imgvol.layers.builder import IndexBuilder
from imgvol.layers.index import ROOT
from imgvol.layers.tar import TarParser
from imgvol.oci.digest import Digest
from support import images
from support.records import record_of
from support.spans import FakeFetcher, PlainTable, cut, index_of, use_plain_tables

PAGE = 4096
SPAN = 10_000
SLOT = 7
MANY = 1 << 40
NOISE = random.Random(5)
SPARSE = {
    b"sparse": (120_000, [(PAGE, NOISE.randbytes(700)), (90_001, b"y" * 5)]),
    b"only-hole": (70_000, [(70_000, b"")]),
    b"large-sparse": (
        2 * limits.LARGE_FILE,
        [(3, b"abc"), (limits.LARGE_FILE + 1, NOISE.randbytes(PAGE))],
    ),
}
PLAIN = {
    b"empty": b"",
    b"one": b"1",
    b"page": NOISE.randbytes(PAGE),
    b"spans": NOISE.randbytes(3 * SPAN + 17),
    b"zeros": bytes(50_000),
    b"large": NOISE.randbytes(limits.LARGE_FILE + PAGE + 1),
}


def expanded(size: int, pieces: list[tuple[int, bytes]]) -> bytes:
    out = bytearray(size)
    for offset, data in pieces:
        out[offset : offset + len(data)] = data
    return bytes(out)


CONTENTS = PLAIN | {name: expanded(*sparse) for name, sparse in SPARSE.items()}
TAR = images.tar_bytes(
    [
        *(images.file(name.decode(), content) for name, content in PLAIN.items()),
        *(images.sparse(name.decode(), *sparse) for name, sparse in SPARSE.items()),
        images.symlink("link", "spans"),
    ]
)
DIGEST = Digest.of(TAR)


# --- the implementations -------------------------------------------------------------------------


@dataclass
class Case:
    """A layer, and how to take its bytes away under its readers."""

    layer: Layer
    damage: Callable[[], None]


class Fetcher(FakeFetcher):
    """Has the blob at hand, and gives readers time to meet."""

    def __init__(self, layer: LazyLayerStore) -> None:
        self.statistics = FetchStatistics()
        self._layer = layer

    async def ensure(self, spans) -> None:
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure.with_traceback(None)
        for span in spans:
            start, end = self._layer.table.compressed_range(span)
            self._layer.intake.put_span(span, self._layer.table.decode(span, TAR[start:end]))
            await trio.lowlevel.checkpoint()


def make_layout(root: Path) -> StoreLayout:
    layout = StoreLayout(root)
    for directory in layout.directories():
        directory.mkdir(exist_ok=True, parents=True)
    return layout


def stored_layer(layout: StoreLayout) -> LayerStore:
    builder = IndexBuilder()
    with LayerWriter(layout) as writer:
        for member in TarParser().feed(TAR):
            number = builder.add(member)
            if number is not None:
                writer.expect(number, member)
        writer.write(TAR, 0)
        writer.publish(record_of(DIGEST, TAR), builder.finish(), builder.referenced_files)
    return LayerStore(layout, DIGEST, SLOT, trio.CapacityLimiter(4))


def complete(root: Path) -> Case:
    layout = make_layout(root)

    def damage() -> None:
        directory = layout.layer(DIGEST)
        for file in [directory / "data", *(directory / "files").iterdir()]:
            os.truncate(file, 0)

    return Case(stored_layer(layout), damage)


def lazy(root: Path) -> Case:
    layout = make_layout(root)
    index = index_of(*TarParser().feed(TAR))
    create_lazy_layer(layout, DIGEST, index=index, table=PlainTable(TAR, cut(len(TAR), SPAN)))
    layer = LazyLayerStore(layout.lazy_layer(DIGEST), DIGEST, SLOT, trio.CapacityLimiter(4))
    # What is made anew from its file has digests only.
    layer.fetcher = fetcher = Fetcher(layer)

    def damage() -> None:
        fetcher.failure = RegistryUnavailable("the registry is down")

    return Case(layer, damage)


def lazy_present(root: Path) -> Case:
    """All spans are here, and the layer has not been verified as a whole."""
    case = lazy(root)
    layer = case.layer
    assert isinstance(layer, LazyLayerStore)
    for span in range(layer.table.span_count):
        start, end = layer.table.compressed_range(span)
        layer.intake.put_span(span, layer.table.decode(span, TAR[start:end]))

    def damage() -> None:
        os.truncate(StoreLayout(root).lazy_layer(DIGEST) / "data", 0)

    return Case(layer, damage)


def lazy_completed(root: Path) -> Case:
    case, final = lazy(root), complete(root)
    assert isinstance(case.layer, LazyLayerStore)
    assert isinstance(final.layer, LayerStore)
    case.layer.complete(final.layer)
    return Case(case.layer, final.damage)


def lazy_bad(root: Path) -> Case:
    """One that is found to be bad when it is damaged."""
    case = lazy_present(root)

    def damage() -> None:
        case.layer.failure = InvalidLayer("lies")

    return Case(case.layer, damage)


def in_place(root: Path) -> Case:
    archive = root / "archive.tar"
    archive.write_bytes(bytes(512) + TAR + bytes(512))
    path = os.fsencode(archive)
    directory = root / "place"
    directory.mkdir()
    (directory / "index").write_bytes(index_of(*TarParser().feed(TAR)))
    identity = PlacedFile(path, DIGEST).settle()
    place = Place(path=path, offset=512, size=len(TAR), file=identity)

    def damage() -> None:
        archive.write_bytes(bytes(archive.stat().st_size + 1))

    return Case(InPlaceLayer(directory, place, DIGEST, SLOT, trio.CapacityLimiter(4)), damage)


@pytest.fixture(params=[complete, lazy, lazy_present, lazy_completed, lazy_bad, in_place])
def case(request, tmp_path, monkeypatch) -> Case:
    use_plain_tables(monkeypatch)
    return request.param(tmp_path)


@pytest.fixture
def layer(case) -> Layer:
    return case.layer


def node_of(layer: Layer, name: bytes) -> int:
    node = layer.index.child(ROOT, name)
    assert node is not None
    return node


async def read(layer: Layer, name: bytes, offset: int = 0, size: int = MANY) -> bytes:
    return bytes(await layer.read(node_of(layer, name), offset, size))


# --- what it is ----------------------------------------------------------------------------------


def test_it_says_which_layer_it_is(layer):
    assert (layer.digest, layer.slot, layer.failure) == (DIGEST, SLOT, None)


def test_its_index_tells_of_all_files(layer):
    sizes = {
        name: layer.index.record(node).size
        for name, node in layer.index.iter_children(ROOT)
        if name in CONTENTS
    }
    assert sizes == {name: len(content) for name, content in CONTENTS.items()}


def test_all_number_the_same_files_alike(layer, tmp_path):
    """What the kernel has been told stays true whatever form the layer takes."""
    final = stored_layer(make_layout(tmp_path / "other"))
    found = dict(layer.index.iter_children(ROOT))
    assert found == dict(final.index.iter_children(ROOT))
    assert found.keys() == {*CONTENTS, b"link"}


# --- what it reads -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTENTS)
async def test_a_file_is_what_it_was(layer, name):
    assert await read(layer, name) == CONTENTS[name]
    assert await read(layer, name) == CONTENTS[name], "and is so again"


@pytest.mark.parametrize("name", CONTENTS)
async def test_reads_end_where_the_file_does(layer, name):
    content = CONTENTS[name]
    size = len(content)
    assert await read(layer, name, max(size - 3, 0), 10) == content[-3:]
    assert await read(layer, name, max(size - 3, 0), MANY) == content[-3:]
    for offset in (size, size + 1, size + PAGE, MANY):
        assert await read(layer, name, offset, 10) == b""
    assert await read(layer, name, 0, 0) == b""


@pytest.mark.parametrize("name", CONTENTS)
async def test_any_range_is_exact(layer, name):
    content, noise = CONTENTS[name], random.Random(name)
    edges = [0, 1, PAGE - 1, PAGE, SPAN, len(content) // 2, max(len(content) - PAGE, 0)]
    edges += [offset + delta for offset, _ in SPARSE.get(name, (0, []))[1] for delta in (-1, 0, 1)]
    for _ in range(60):
        offset = noise.choice([noise.randrange(len(content) + 1), noise.choice(edges)])
        size = noise.choice([1, 5, PAGE, SPAN, noise.randrange(200_000)])
        assert await read(layer, name, offset, size) == content[offset : offset + size]


@pytest.mark.parametrize("name", CONTENTS)
async def test_what_is_read_without_waiting_is_the_same_or_nothing(layer, name):
    content, noise = CONTENTS[name], random.Random(name)
    node = node_of(layer, name)
    for _ in range(2):  # and when all of it has just been read
        for _ in range(30):
            offset = noise.randrange(len(content) + 1)
            size = noise.choice([0, 1, PAGE, SPAN, MANY])
            found = layer.read_now(node, offset, size)
            assert found is None or bytes(found) == content[offset : offset + size]
        await read(layer, name)


@pytest.mark.parametrize("make", [complete, lazy_completed, in_place])
async def test_what_was_just_read_is_there_without_waiting(make, tmp_path, monkeypatch):
    use_plain_tables(monkeypatch)
    layer = make(tmp_path).layer
    for name in (b"page", b"large"):
        await read(layer, name)
        assert layer.read_now(node_of(layer, name), 0, MANY) == CONTENTS[name]


async def test_many_read_at_once(layer):
    async def look(seed: int) -> None:
        noise = random.Random(seed)
        for _ in range(10):
            name = noise.choice(list(CONTENTS))
            offset = noise.randrange(len(CONTENTS[name]) + 1)
            size = noise.choice([10, PAGE, 3 * SPAN])
            found = await read(layer, name, offset, size)
            assert found == CONTENTS[name][offset : offset + size]

    async with trio.open_nursery() as nursery:
        for seed in range(30):
            nursery.start_soon(look, seed)


async def test_a_reader_who_goes_away_harms_nobody(layer):
    async def give_up() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await read(layer, b"spans")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(give_up)
        assert await read(layer, b"spans") == CONTENTS[b"spans"]
    assert layer.failure is None


@pytest.mark.parametrize("name", CONTENTS)
async def test_a_file_of_the_store_that_may_stand_for_one_is_that_file(layer, name):
    node = node_of(layer, name)
    file = await layer.backing_file(node)
    assert (file is not None) == layer.has_backing_file(node)
    if file is not None:
        assert os.pread(file.fd, 4 * limits.LARGE_FILE, 0) == CONTENTS[name]
    assert layer.is_sound(node)


@pytest.mark.parametrize("make", [complete, lazy_completed])
def test_large_files_of_complete_layers_have_one_until_the_layer_is_bad(
    make, tmp_path, monkeypatch
):
    use_plain_tables(monkeypatch)
    layer = make(tmp_path).layer
    having = {name for name in CONTENTS if layer.has_backing_file(node_of(layer, name))}
    assert having == {b"large", b"large-sparse"}
    layer.failure = InvalidLayer("lies")
    for name in CONTENTS:
        assert not layer.has_backing_file(node_of(layer, name))
        assert not layer.is_sound(node_of(layer, name))


@pytest.mark.parametrize("make", [lazy_present, in_place])
def test_no_file_has_one_where_content_may_go_or_change(make, tmp_path, monkeypatch):
    use_plain_tables(monkeypatch)
    layer = make(tmp_path).layer
    assert not any(layer.has_backing_file(node_of(layer, name)) for name in CONTENTS)


# --- when it cannot ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [b"page", b"large", b"sparse"])
async def test_what_cannot_be_read_is_an_error_and_never_short(case, name):
    case.damage()
    for _ in range(2):
        with contextlib.suppress(ImgvolError):
            assert case.layer.read_now(node_of(case.layer, name), 0, MANY) is None
        with pytest.raises(ImgvolError):
            await read(case.layer, name)


async def test_what_is_known_of_files_needs_none_of_their_bytes(case):
    case.damage()
    node = node_of(case.layer, b"large")
    assert case.layer.index.record(node).size == len(CONTENTS[b"large"])


async def test_an_error_that_many_get_does_not_grow(case):
    """Errors that are kept are raised again and again, each time with the frames of that time."""
    case.damage()
    for _ in range(40):
        with pytest.raises(ImgvolError) as raised:
            await read(case.layer, b"page")
    frames, trace = 0, raised.value.__traceback__
    while trace is not None:
        frames, trace = frames + 1, trace.tb_next
    assert frames < 20


@pytest.mark.parametrize("make", [in_place, lazy_bad])
async def test_a_failure_for_good_is_told_and_answers_every_read(make, tmp_path, monkeypatch):
    use_plain_tables(monkeypatch)
    case = make(tmp_path)
    case.damage()
    with pytest.raises((StoreDamaged, InvalidLayer)):
        await read(case.layer, b"page")
    assert case.layer.failure is not None
    for name in (b"one", b"page", b"large"):
        with pytest.raises(ImgvolError) as raised:
            await read(case.layer, name)
        assert type(raised.value) is type(case.layer.failure)
        assert str(raised.value) == str(case.layer.failure)
        # What was raised knows the layer, by the calls that it came through: the layer has another.
        assert raised.value is not case.layer.failure


async def test_a_registry_that_failed_is_asked_again(tmp_path, monkeypatch):
    use_plain_tables(monkeypatch)
    case = lazy(tmp_path)
    case.damage()
    with pytest.raises(RegistryUnavailable):
        await read(case.layer, b"page")
    assert case.layer.failure is None
    case.layer.fetcher.failure = None
    assert await read(case.layer, b"page") == CONTENTS[b"page"]


@pytest.mark.parametrize("make", [complete, lazy_completed])
async def test_a_file_of_the_store_that_was_cut_off_stands_for_none(make, tmp_path, monkeypatch):
    use_plain_tables(monkeypatch)
    case = make(tmp_path)
    case.damage()
    with pytest.raises(StoreDamaged, match="size"):
        await case.layer.backing_file(node_of(case.layer, b"large"))


async def test_nothing_of_a_layer_stands_for_a_file_while_a_part_is_known_to_be_damaged(tmp_path):
    layer = complete(tmp_path).layer
    assert isinstance(layer, LayerStore)
    large, other = node_of(layer, b"large"), node_of(layer, b"large-sparse")
    number = layer.index.own_file(large)
    assert number is not None
    layer.damaged = DamagedParts({number: ((PAGE, PAGE + 1),)})
    assert not layer.has_backing_file(large)
    assert not layer.has_backing_file(other)
    assert not layer.is_sound(large)
    assert layer.is_sound(other)
