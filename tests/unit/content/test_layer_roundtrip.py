"""What a writer stores, a reader gives back: any split of the stream, any range of a file."""

import os
import random

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from imgvol.content.card import LayerCard
from imgvol.content.layer_store import LayerStore
from imgvol.content.layer_writer import LayerWriter
from imgvol.content.layout import StoreLayout
from imgvol.errors import StoreDamaged
from imgvol.layers.builder import IndexBuilder
from imgvol.layers.index import ROOT
from imgvol.layers.tar import TarParser
from imgvol.oci.digest import Digest
from support import images
from support.records import record_of

MIB = 1 << 20
RANDOM = random.Random(7)
SMALL = RANDOM.randbytes(5000)
LARGE = RANDOM.randbytes(2 * MIB + 17)
PIECES = [(4096, RANDOM.randbytes(700)), (MIB + 1, RANDOM.randbytes(MIB))]
SPARSE_SIZE = 5 * MIB + 3
SMALL_PIECES = [(512, b"x" * 100), (9000, b"y" * 5)]


def expanded(size: int, pieces: list[tuple[int, bytes]]) -> bytes:
    out = bytearray(size)
    for offset, data in pieces:
        out[offset : offset + len(data)] = data
    return bytes(out)


CONTENTS = {
    b"empty": b"",
    b"small": SMALL,
    b"large": LARGE,
    b"again": LARGE,
    b"after": b"the end",
    b"sparse": expanded(SPARSE_SIZE, PIECES),
    b"little": expanded(10_000, SMALL_PIECES),
}
TAR = images.tar_bytes(
    [
        images.file("empty"),
        images.file("small", SMALL),
        images.file("large", LARGE),
        images.file("replaced", b"r" * (MIB + 5)),
        images.file("again", LARGE),
        images.sparse("sparse", SPARSE_SIZE, PIECES),
        images.sparse("little", 10_000, SMALL_PIECES),
        images.file("replaced", b"small now"),
        images.file("after", b"the end"),
    ]
)
DIGEST = Digest.of(TAR)


def make_layout(root) -> StoreLayout:
    layout = StoreLayout(root)
    for path in layout.directories():
        path.mkdir(exist_ok=True)
    return layout


def store(layout: StoreLayout, sizes) -> None:
    parser, builder = TarParser(), IndexBuilder()
    with LayerWriter(layout) as writer:
        position = 0
        while position < len(TAR):
            piece = TAR[position : position + next(sizes)]
            for member in parser.feed(piece):
                number = builder.add(member)
                if number is not None:
                    writer.expect(number, member)
            writer.write(piece, position)
            position += len(piece)
        parser.finish()
        index = builder.finish()
        writer.publish(record_of(DIGEST, TAR), index, builder.referenced_files)


def test_the_tar_can_be_put_together_again(tmp_path):
    """Sparse members and large ones, each from where it lies: this is what a scrub hashes."""
    layout = make_layout(tmp_path)
    store(layout, constantly(100_000))
    directory = layout.layer(DIGEST)
    card = LayerCard.load(directory, DIGEST)
    assert len(card.own_files) > 1
    assert any(file.content is None for file in card.own_files), "a sparse one"
    # What a later member replaced is gone.
    whole = TAR.replace(b"r" * (MIB + 5), bytes(MIB + 5))
    assert b"".join(card.iter_pieces(directory)) == whole != TAR
    assert card.proof == Digest.of(whole)


def constantly(size: int):
    while True:
        yield size


def randomly(seed: int):
    generator = random.Random(seed)
    while True:
        yield generator.choice([1, 511, 512, 513, 100_000, MIB, 3 * MIB])


def open_store(layout: StoreLayout) -> LayerStore:
    return LayerStore(layout, DIGEST, 1, trio.CapacityLimiter(1))


@pytest.mark.parametrize(
    "sizes", [constantly(len(TAR)), constantly(777), constantly(512), *map(randomly, range(5))]
)
async def test_every_split_of_the_stream_stores_the_same(tmp_path, sizes):
    layout = make_layout(tmp_path)
    store(layout, sizes)
    layer = open_store(layout)
    for name, content in CONTENTS.items():
        node = layer.index.child(ROOT, name)
        assert bytes(await layer.read(node, 0, len(content) + 10)) == content, name
    assert os.listdir(layout.ingest) == []


async def test_ranges_are_exact_cached_or_not(tmp_path):
    layout = make_layout(tmp_path)
    store(layout, constantly(65536))
    layer = open_store(layout)

    @settings(max_examples=200)
    @given(st.sampled_from(sorted(CONTENTS)), st.integers(0, 6 * MIB), st.integers(0, 2 * MIB))
    def check(name, offset, size):
        content = CONTENTS[name]
        node = layer.index.child(ROOT, name)
        size_left = min(size, len(content) - offset)
        if size_left <= 0:
            return
        expected = content[offset : offset + size]
        assert bytes(layer.read_blocking(node, offset, size_left)) == expected
        cached = layer._read_cached(node, offset, size_left)
        assert cached is None or bytes(cached) == expected

    check()
    small = layer.index.child(ROOT, b"small")
    assert layer._read_cached(small, 10, 20) == SMALL[10:30], "just written: in the page cache"


def test_equal_large_files_share_one_file_and_replaced_ones_go(tmp_path):
    layout = make_layout(tmp_path)
    store(layout, constantly(65536))
    files = layout.layer(DIGEST) / "files"
    layer = open_store(layout)
    numbers = [layer.index.own_file(layer.index.child(ROOT, name)) for name in (b"large", b"again")]
    first, second = (os.stat(files / str(number)) for number in numbers)
    assert first.st_ino == second.st_ino
    sparse = layer.index.own_file(layer.index.child(ROOT, b"sparse"))
    assert {int(name) for name in os.listdir(files)} == {*numbers, sparse}
    status = os.stat(files / str(sparse))
    assert status.st_size == SPARSE_SIZE
    assert status.st_blocks * 512 < SPARSE_SIZE, "holes are holes"


def test_a_data_file_has_holes_where_large_files_lay(tmp_path):
    layout = make_layout(tmp_path)
    store(layout, constantly(65536))
    status = os.stat(layout.layer(DIGEST) / "data")
    assert status.st_size == len(TAR)
    assert status.st_blocks * 512 < 200_000


async def test_a_data_file_cut_short_is_an_error_not_a_short_answer(tmp_path):
    layout = make_layout(tmp_path)
    store(layout, constantly(65536))
    os.truncate(layout.layer(DIGEST) / "data", 600)
    layer = open_store(layout)
    node = layer.index.child(ROOT, b"small")
    with pytest.raises(StoreDamaged, match="shorter"):
        await layer.read(node, 0, 5000)


def test_an_unpublished_layer_leaves_nothing(tmp_path):
    layout = make_layout(tmp_path)
    parser, builder = TarParser(), IndexBuilder()
    with LayerWriter(layout) as writer:
        for member in parser.feed(TAR[:MIB]):
            if (number := builder.add(member)) is not None:
                writer.expect(number, member)
        writer.write(TAR[:MIB], 0)
    assert os.listdir(layout.ingest) == []
    assert os.listdir(layout.layers) == []


async def test_a_sequential_reader_leaves_no_pages_behind_itself(tmp_path):
    """Counted by mincore through a mapping, after reading 48 MiB in steps."""
    import ctypes
    import mmap

    size = 48 * MIB
    layout = make_layout(tmp_path)
    tar = images.tar_bytes([images.file("big", bytes(size))])
    parser, builder = TarParser(), IndexBuilder()
    with LayerWriter(layout) as writer:
        for member in parser.feed(tar):
            if (number := builder.add(member)) is not None:
                writer.expect(number, member)
        writer.write(tar, 0)
        writer.publish(record_of(DIGEST, tar), builder.finish(), builder.referenced_files)
    layer = open_store(layout)
    node = layer.index.child(ROOT, b"big")
    path = layout.layer(DIGEST) / "files" / "0"

    def resident() -> int:
        libc = ctypes.CDLL(None, use_errno=True)
        with path.open("rb") as opened, mmap.mmap(opened.fileno(), size, mmap.MAP_PRIVATE) as area:
            pages = size // mmap.PAGESIZE
            vector = (ctypes.c_ubyte * pages)()
            address = ctypes.addressof(ctypes.c_char.from_buffer(area))
            assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), vector) == 0
            del address
            return sum(byte & 1 for byte in vector) * mmap.PAGESIZE

    path.read_bytes()
    assert resident() > 40 * MIB, "otherwise the test shows nothing"
    for offset in range(0, size, MIB):
        assert len(await layer.read(node, offset, MIB)) == MIB
    assert resident() <= 20 * MIB
