"""Scrubbing by pieces: what is damaged gives errors, the rest is served, pulling puts it right."""

import os
import random

import pytest
import trio

from imgvol.content.damage import DAMAGED_NAME
from imgvol.content.pieces import PIECE_SIZE, PIECES_NAME
from imgvol.content.records import FaultKind
from imgvol.content.store import open_store
from imgvol.errors import StoreDamaged
from imgvol.images.layer_tar import find_layer_tar
from imgvol.images.leases import Leases
from imgvol.images.pull import Puller, PullProgress
from imgvol.images.resolve import resolve_image, wanted_platform
from imgvol.images.scrubbing import Scrubber, ScrubProgress
from imgvol.images.service import ImageService, PullOptions
from imgvol.images.views import Views
from support import images
from support.sources import MemorySource

RANDOM = random.Random(1)
FIRST, LARGE, LAST = RANDOM.randbytes(5000), RANDOM.randbytes(3_500_000), RANDOM.randbytes(900_000)
FILLER = RANDOM.randbytes(700_000)
HOLES = [(4096, RANDOM.randbytes(700)), (3_000_000, RANDOM.randbytes(100_000))]
SPARSE_SIZE = 4_000_001
FILES = {b"first": FIRST, b"large": LARGE, b"last": LAST, b"filler": FILLER}
IMAGE = images.Image(
    [
        images.Layer(
            [
                images.file("first", FIRST),
                images.file("large", LARGE),
                images.sparse("sparse", SPARSE_SIZE, HOLES),
                images.file("dropped", RANDOM.randbytes(1_500_000)),
                images.file("filler", FILLER),
                images.file("last", LAST),
                images.file("dropped", b"new"),
            ],
            "gzip",
        )
    ]
)
pytestmark = pytest.mark.expects_log("is damaged")


async def pull(store):
    source = MemorySource(IMAGE)
    resolved = await resolve_image(source, wanted_platform("linux/amd64"))
    return await Puller(store).pull(source, resolved, "x.test/one:1", PullProgress())


async def scrub(store, views, *, repair=False):
    service = ImageService(store, views, leases=Leases(store.records))
    return await Scrubber(store, views, service).scrub(
        (), repair=repair, options=PullOptions(), progress=ScrubProgress()
    )


def flip(path, offset, size=1):
    with open(path, "r+b") as file:
        file.seek(offset)
        data = file.read(size)
        file.seek(offset)
        file.write(bytes(byte ^ 1 for byte in data))


def node_of(layer, name):
    return layer.index.child(0, name)


async def contents(layer) -> dict[bytes, bytes | None]:
    """Every file, None for those that give errors somewhere."""
    found = {}
    for name in (*FILES, b"sparse", b"dropped"):
        node = node_of(layer, name)
        try:
            found[name] = bytes(await layer.read(node, 0, layer.index.record(node).size))
        except StoreDamaged:
            found[name] = None
    return found


def sparse_content() -> bytes:
    out = bytearray(SPARSE_SIZE)
    for offset, data in HOLES:
        out[offset : offset + len(data)] = data
    return bytes(out)


EXPECTED = {**FILES, b"sparse": sparse_content(), b"dropped": b"new"}


@pytest.mark.fault("F27")
@pytest.mark.parametrize(
    ("where", "wrong"),
    [
        ("small entry", {b"first"}),
        ("large file", {b"large"}),
        ("piece of a sparse file", {b"sparse"}),
        ("hole of a sparse file", {b"sparse"}),
        ("end of a sparse file", {b"sparse"}),
        ("cut", {b"large"}),
        ("gone", {b"large"}),
        ("hole of the data", set()),
    ],
)
async def test_only_what_is_damaged_gives_errors(tmp_path, where, wrong):
    async with open_store(tmp_path) as store:
        image, views = await pull(store), Views(store)
        (layer,) = image.layers
        directory = store.layout.layer(layer.digest)
        async with views.hold(image) as view:
            (opened,) = view.layers
            assert await scrub(store, views) == ()
            assert await contents(opened) == EXPECTED
            large, sparse = (
                directory / "files" / str(opened.index.own_file(node_of(opened, name)))
                for name in (b"large", b"sparse")
            )
            match where:
                case "small entry":
                    (extent,) = opened.index.extents(node_of(opened, b"first"))
                    flip(directory / "data", extent.position + 4999)
                case "large file":
                    flip(large, 2_500_000)
                case "piece of a sparse file":
                    flip(sparse, 3_050_000)
                case "hole of a sparse file":
                    flip(sparse, 2_000_000)
                case "end of a sparse file":
                    os.truncate(sparse, 3_500_000)
                case "cut":
                    os.truncate(large, 2_500_000)
                case "gone":
                    large.unlink()
                case "hole of the data":
                    # Nobody reads there: the bytes are in a file of their own.
                    flip(directory / "data", 2_000_000)
            faults = await scrub(store, views)
            assert len(faults) == bool(wrong)
            for fault in faults:
                assert {
                    name.lstrip(b"/") for place in fault.places for name in place.files
                } >= wrong
            found = await store.records.layer(layer.digest)
            assert found.slot == layer.slot
            assert found.is_complete
            assert found.is_damaged == bool(wrong)
            for other in (opened, await store.open_layer(found)):
                read = await contents(other)
                damaged = {name for name, content in read.items() if content is None}
                # A piece may hold the end of one file and the beginning of the next.
                assert wrong <= damaged <= wrong | neighbours(where)
                assert all(read[name] == EXPECTED[name] for name in read.keys() - damaged)
            again = await scrub(store, views)
            assert [fault.places for fault in again] == [fault.places for fault in faults]
    async with open_store(tmp_path) as store:
        (image,) = await store.records.images()
        async with Views(store).hold(image) as view:
            read = await contents(view.layers[0])
            assert wrong <= {name for name, content in read.items() if content is None}


def neighbours(where: str) -> set[bytes]:
    return {
        "small entry": {b"large"},
        "piece of a sparse file": {b"large"},
        "gone": {b"first", b"sparse"},
        "cut": {b"sparse"},
    }.get(where, set())


async def test_the_undamaged_part_of_a_large_file_is_read(tmp_path):
    async with open_store(tmp_path) as store:
        image, views = await pull(store), Views(store)
        (layer,) = image.layers
        async with views.hold(image) as view:
            (opened,) = view.layers
            node = node_of(opened, b"large")
            number = opened.index.own_file(node)
            flip(store.layout.layer(layer.digest) / "files" / str(number), 2_500_000)
            (fault,) = await scrub(store, views)
            (place,) = fault.places
            assert place.size == PIECE_SIZE
            assert place.files == (b"/large",)
            position = view.layers[0].index.extents(node)[0]
            assert position.offset == 0
            good = 2_500_000 - PIECE_SIZE
            assert await opened.read(node, 0, good) == LARGE[:good]
            end = 2_500_000 + PIECE_SIZE
            assert await opened.read(node, end, len(LARGE)) == LARGE[end:]
            for offset, size in ((2_500_000, 1), (0, len(LARGE)), (2_499_000, 5000)):
                with pytest.raises(StoreDamaged, match="a part of a stored layer"):
                    await opened.read(node, offset, size)


async def test_a_pull_puts_it_right_also_where_it_is_open(tmp_path):
    async with open_store(tmp_path) as store:
        image, views = await pull(store), Views(store)
        (layer,) = image.layers
        condemned = []
        views.on_condemned.append(condemned.append)
        async with views.hold(image) as view:
            (opened,) = view.layers
            flip(store.layout.layer(layer.digest) / "data", 700)
            flip(store.layout.layer(layer.digest) / "files" / "0", 700)
            await scrub(store, views)
            assert condemned == [opened], "what the kernel has of it is dropped"
            assert not os.listdir(store.layout.shared_files), "no pull may link to it"
            damaged = await contents(opened)
            assert None in damaged.values()
            again = await pull(store)
            assert again.layers == (layer,)
            assert not (store.layout.layer(layer.digest) / DAMAGED_NAME).exists()
            assert await contents(opened) == EXPECTED
            assert opened.damaged is None
            assert await scrub(store, views) == ()


async def test_damage_that_is_gone_is_forgotten(tmp_path):
    async with open_store(tmp_path) as store:
        image, views = await pull(store), Views(store)
        data = store.layout.layer(image.layers[0].digest) / "data"
        async with views.hold(image) as view:
            flip(data, 700)
            assert len(await scrub(store, views)) == 1
            flip(data, 700)
            assert await scrub(store, views) == ()
            assert await contents(view.layers[0]) == EXPECTED
            assert await store.records.layer(image.layers[0].digest) == image.layers[0]


async def test_a_layer_without_digests_of_pieces_gets_them_when_it_has_been_proven(tmp_path):
    async with open_store(tmp_path) as store:
        image, views = await pull(store), Views(store)
        (layer,) = image.layers
        directory = store.layout.layer(layer.digest)
        expected = (directory / PIECES_NAME).read_bytes()
        for spoil in (os.unlink, lambda path: flip(path, 40), lambda path: os.truncate(path, 20)):
            spoil(directory / PIECES_NAME)
            assert await scrub(store, views) == ()
            assert (directory / PIECES_NAME).read_bytes() == expected
        # Never of what could not be proven.
        os.unlink(directory / PIECES_NAME)
        flip(directory / "data", 700)
        assert len(await scrub(store, views)) == 1
        assert not (directory / PIECES_NAME).exists()
        found = await store.records.layer(layer.digest)
        assert found.is_refused
        assert found.fault.kind is FaultKind.DAMAGED


async def test_a_list_of_damage_that_is_damaged_itself_keeps_the_layer_closed(tmp_path):
    async with open_store(tmp_path) as store:
        image, views = await pull(store), Views(store)
        directory = store.layout.layer(image.layers[0].digest)
        flip(directory / "data", 700)
        await scrub(store, views)
        flip(directory / DAMAGED_NAME, 12)
        (image,) = await store.records.images()
        with pytest.raises(StoreDamaged, match="list of what is damaged"):
            await views.acquire(image)
        async with views.hold(await pull(store)) as view:
            assert await contents(view.layers[0]) == EXPECTED


async def test_what_is_damaged_is_not_exported(tmp_path):
    async with open_store(tmp_path) as store:
        image, views = await pull(store), Views(store)
        flip(store.layout.layer(image.layers[0].digest) / "data", 700)
        await scrub(store, views)
        record = await store.records.layer(image.layers[0].digest)
        with pytest.raises(StoreDamaged, match="has changed since"):
            await find_layer_tar(store, record, trio.CapacityLimiter(1))
