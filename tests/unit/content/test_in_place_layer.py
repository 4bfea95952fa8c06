"""Layers in files that belong to somebody else: right bytes, or an error; never others."""

import os
import random

import pytest
import trio

from imgvol.content.in_place_layer import InPlaceLayer
from imgvol.content.place import Place, PlacedFile
from imgvol.content.records import IN_PLACE, LayerRecord
from imgvol.content.store import open_store
from imgvol.errors import StoreDamaged
from imgvol.images.collection import Collector
from imgvol.layers.builder import IndexBuilder
from imgvol.layers.index import ROOT
from imgvol.layers.tar import TarParser
from imgvol.oci.digest import DiffID, Digest
from support import images

RANDOM = random.Random(11)
LARGE = RANDOM.randbytes((2 << 20) + 17)
PIECES = [(4096, RANDOM.randbytes(700)), (20_000, b"y" * 5)]
SPARSE = bytearray(30_000)
for start, data in PIECES:
    SPARSE[start : start + len(data)] = data
CONTENTS = {b"empty": b"", b"small": b"hello", b"large": LARGE, b"sparse": bytes(SPARSE)}
TAR = images.tar_bytes(
    [
        images.file("empty"),
        images.file("small", b"hello"),
        images.file("large", LARGE),
        images.sparse("sparse", len(SPARSE), PIECES),
    ]
)
BEFORE = 1024
DIGEST = Digest.of(TAR)


def index_of(tar: bytes) -> bytes:
    parser, builder = TarParser(), IndexBuilder(own_files=False)
    for member in parser.feed(tar):
        assert builder.add(member) is None
    return builder.finish()


def write_archive(path, tar=TAR):
    path.write_bytes(bytes(BEFORE) + tar + bytes(BEFORE))
    return path


def place_of(path) -> Place:
    identity = PlacedFile(os.fsencode(path), DIGEST).settle()
    return Place(path=os.fsencode(path), offset=BEFORE, size=len(TAR), file=identity)


@pytest.fixture
def archive(tmp_path):
    return write_archive(tmp_path / "archive.tar")


@pytest.fixture
def open_layer(tmp_path, archive):
    """Opens the archive's layer as it was when this fixture was made."""
    directory = tmp_path / "place"
    directory.mkdir()
    (directory / "index").write_bytes(index_of(TAR))
    place = place_of(archive)
    return lambda: InPlaceLayer(directory, place, DIGEST, 1, trio.CapacityLimiter(4))


def node_of(layer, name):
    (node,) = [node for found, node in layer.index.iter_children(ROOT) if found == name]
    return node


async def read(layer, name, offset=0, size=1 << 30):
    node = node_of(layer, name)
    data = bytes(await layer.read(node, offset, size))
    if data:
        assert bytes(layer.read_blocking(node, offset, size)) == data
    return data


async def test_every_range_of_every_file_is_read_from_where_the_layer_lies(open_layer):
    layer = open_layer()
    for name, content in CONTENTS.items():
        assert await read(layer, name) == content
        for _ in range(20):
            offset = RANDOM.randrange(len(content) + 10)
            size = RANDOM.randrange(1, len(content) + 10)
            assert await read(layer, name, offset, size) == content[offset : offset + size]
    assert layer.failure is None


def rewrite_in_place(path, keep_times):
    """Other bytes of the same length, through the same inode."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(BEFORE + TAR.index(LARGE))
        file.write(b"other bytes")
    if keep_times:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert path.stat().st_mtime_ns == status.st_mtime_ns


CHANGES = {
    "rewritten": lambda path: rewrite_in_place(path, keep_times=False),
    "rewritten, with its old time": lambda path: rewrite_in_place(path, keep_times=True),
    "cut off": lambda path: os.truncate(path, 700_000),
    "longer": lambda path: os.truncate(path, path.stat().st_size + 1),
    "of another time": os.utime,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_a_file_that_has_changed_is_refused_for_good(archive, open_layer, change):
    layer = open_layer()
    assert await read(layer, b"small") == b"hello"
    old = archive.read_bytes(), archive.stat()
    change(archive)
    for name in (b"small", b"large", b"sparse"):
        for ask in (layer.read, trio.to_thread.run_sync):
            arguments = (node_of(layer, name), 0, 10)
            with pytest.raises(StoreDamaged, match="has changed"):
                await (
                    ask(*arguments) if ask == layer.read else ask(layer.read_blocking, *arguments)
                )
    assert "has changed" in str(layer.failure)
    with pytest.raises(StoreDamaged, match="has changed"):
        open_layer()
    archive.write_bytes(old[0])
    os.utime(archive, ns=(old[1].st_atime_ns, old[1].st_mtime_ns))
    with pytest.raises(StoreDamaged, match="has changed"):
        await read(layer, b"small")
    assert await read(open_layer(), b"large") == LARGE, "a new look finds the old bytes again"


async def test_a_change_just_before_the_bytes_are_read_is_noticed(archive, open_layer):
    layer = open_layer()
    gather = layer._gather

    def rewrite_and_gather(*arguments):
        rewrite_in_place(archive, keep_times=True)
        return gather(*arguments)

    layer._gather = rewrite_and_gather
    layer._read_cached = lambda *_: None
    with pytest.raises(StoreDamaged, match="has changed"):
        await read(layer, b"large")


TOUCHES = {
    "another mode": lambda path: path.chmod(0o640),
    "another name": lambda path: os.link(path, path.with_name("twin")),
}


@pytest.mark.parametrize("touch", TOUCHES.values(), ids=TOUCHES)
async def test_a_file_that_was_only_touched_is_hashed_again_and_served(archive, open_layer, touch):
    layer = open_layer()
    touch(archive)
    assert await read(layer, b"large") == LARGE
    assert layer.failure is None
    assert await read(open_layer(), b"large") == LARGE


async def test_a_file_that_is_replaced_or_gone_is_served_while_it_is_open(archive, open_layer):
    layer = open_layer()
    other = write_archive(archive.with_name("new"), bytes(len(TAR)))
    os.replace(other, archive)
    assert await read(layer, b"large") == LARGE
    with pytest.raises(StoreDamaged, match="has changed"):
        open_layer()
    archive.unlink()
    assert await read(layer, b"sparse") == CONTENTS[b"sparse"]
    with pytest.raises(StoreDamaged, match="cannot be opened"):
        open_layer()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda p: os.symlink("elsewhere", p)])
async def test_something_else_of_that_name_is_refused(archive, open_layer, make):
    os.rename(archive, archive.with_name("elsewhere"))
    make(archive)
    with pytest.raises(StoreDamaged):
        open_layer()


def record_of(**changes) -> LayerRecord:
    fields = {
        "digest": DIGEST,
        "diff_id": DiffID(DIGEST),
        "media_type": "application/vnd.oci.image.layer.v1.tar",
        "size": len(TAR),
        "unpacked_size": len(TAR),
        "entries": 4,
        "format": IN_PLACE,
    }
    return LayerRecord(**(fields | changes))


async def test_the_store_keeps_an_index_and_a_row_and_forgets_both(tmp_path, archive):
    root = tmp_path / "root"
    place = place_of(archive)
    async with open_store(root) as store:
        record = await store.add_in_place_layer(record_of(), place, index_of(TAR))
        assert await store.records.place(record) == place
    async with open_store(root) as store:
        (record,) = await store.records.layers()
        assert record.is_in_place
        assert not record.is_stored
        assert await store.is_intact(record)
        assert await read(await store.open_in_place_layer(record), b"large") == LARGE
        assert 0 < (await store.usage()).layers_size < 100_000
        archive.chmod(0o600)
        assert not await store.is_intact(record)
        assert (await Collector(store).collect()).freed > 0
        assert os.listdir(root / "places") == []
        assert await store.records.place(record) is None
    assert archive.exists()


async def test_a_row_without_index_and_an_index_without_row_are_dropped(tmp_path, archive):
    root = tmp_path / "root"
    async with open_store(root) as store:
        await store.add_in_place_layer(record_of(), place_of(archive), index_of(TAR))
    os.rename(root / "places" / DIGEST.encoded, root / "places" / ("0" * 64))
    async with open_store(root) as store:
        assert await store.records.layers() == []
        assert os.listdir(root / "places") == []


async def test_numbers_that_need_all_64_bits_are_kept(tmp_path, archive):
    place = place_of(archive)
    huge = type(place.file)(size=1, mtime_ns=-1, ctime_ns=2**62, inode=2**64 - 1, device=2**64 - 2)
    place = Place(path=b"/\xff\n", offset=0, size=len(TAR), file=huge)
    async with open_store(tmp_path / "root") as store:
        record = await store.add_in_place_layer(record_of(), place, index_of(TAR))
        assert await store.records.place(record) == place
