"""Lazy layers in a store whose background completes them, or finds that they have lied.

async with case_of(tmp_path, honest(), monkeypatch) as case:
    layer = await complete(case)
"""

import random
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from imgvol import limits
from imgvol.content.layer_store import LayerStore
from imgvol.content.lazy_layer import LazyLayerStore
from imgvol.content.records import LayerRecord, Origin
from imgvol.content.store import Store, open_store
from imgvol.images.fetch.engine import open_fetch_engine
from imgvol.images.finding import STARGZ
from imgvol.images.lazy import LazyLayers
from imgvol.layers.index import ROOT, LayerIndex
from imgvol.layers.lazy.spans import LazyLayer
from imgvol.oci.digest import DiffID, Digest
from support import images
from support.spans import RangeSource, serve, until
from support.stargz import TIME, Stargz

NOISE = random.Random(11)
SMALL = NOISE.randbytes(3000)
LARGE = NOISE.randbytes(300_000)
HUGE = NOISE.randbytes(limits.LARGE_FILE + 5)  # a file of its own in the final form
ORIGIN = Origin(argument="example.com/x:1", plain_http=False, insecure=False, ca_file=None)


def entries() -> list[images.Entry]:
    return [
        images.directory("etc", mtime_ns=TIME),
        images.file("etc/small", SMALL, mtime_ns=TIME, mode=0o600, uid=7),
        images.file("etc/large", LARGE, mtime_ns=TIME, xattrs={"user.note": b"yes"}),
        images.file("etc/huge", HUGE, mtime_ns=TIME),
        images.file("etc/empty", mtime_ns=TIME),
        images.symlink("etc/link", "small", mtime_ns=TIME),
        images.hardlink("etc/hard", "etc/small", mtime_ns=TIME),
        images.whiteout("gone"),
    ]


CONTENTS = {b"small": SMALL, b"large": LARGE, b"huge": HUGE, b"empty": b"", b"hard": SMALL}


def honest() -> Stargz:
    return Stargz(entries(), chunk=50_000)


@dataclass
class Case:
    """A lazy layer in a store."""

    store: Store
    record: LayerRecord
    source: RangeSource

    async def open(self) -> LazyLayerStore | LayerStore:
        record = await self.store.records.layer(self.record.digest)
        assert record is not None
        if record.is_complete:
            return await self.store.open_layer(record)
        return await self.store.open_lazy_layer(record)


def record_of(layer: images.Layer, lazy: LazyLayer) -> LayerRecord:
    return LayerRecord(
        digest=Digest.parse(layer.digest),
        diff_id=DiffID(Digest.parse(layer.diff_id)),
        media_type=layer.media_type,
        size=layer.size,
        unpacked_size=LayerIndex(lazy.index).file_bytes,
        entries=LayerIndex(lazy.index).entry_count,
        format=STARGZ,
        is_complete=False,
    )


@asynccontextmanager
async def case_of(root, stargz: Stargz, monkeypatch, **changes):
    layer, lazy = stargz.opened()
    source = RangeSource(layer.blob, piece=20_000)
    serve(monkeypatch, source)
    for name, value in changes.items():
        setattr(layer, name, value)
    async with open_store(root) as store:
        record = await store.add_lazy_layer(record_of(layer, lazy), lazy, ORIGIN)
        yield Case(store, record, source)


@asynccontextmanager
async def background(store):
    """LazyLayers; the block's end cancels what it still does."""
    async with open_fetch_engine() as engine, trio.open_nursery() as nursery:
        yield LazyLayers(store, engine, nursery)
        nursery.cancel_scope.cancel()


def is_settled(lazy: LazyLayers, layer) -> bool:
    return lazy.fetcher(layer) is None


async def complete(case: Case) -> LazyLayerStore:
    """Opens the layer and lets the background do its work to the end, good or bad."""
    async with background(case.store) as lazy:
        layer = await case.open()
        assert isinstance(layer, LazyLayerStore)
        await lazy.attach(layer, case.record)
        await until(lambda: is_settled(lazy, layer))
    return layer


async def read(layer, name: bytes) -> bytes:
    etc = layer.index.child(ROOT, b"etc")
    node = layer.index.child(etc, name)
    size = layer.index.record(node).size
    return bytes(await layer.read(node, 0, size + 10))


# --- lies


def other_mode(stargz):
    stargz.entry("etc/small")["mode"] = 0o4755


def other_owner(stargz):
    stargz.entry("etc/small")["uid"] = 0


def other_time(stargz):
    stargz.entry("etc/small")["modtime"] = "2020-01-01T00:00:00Z"


def other_content(stargz):
    """The digests are right for their spans, which the tar has elsewhere."""
    small, other = stargz.entry("etc/small"), stargz.entry("etc/other")
    for key in ("offset", "digest", "chunkDigest"):
        small[key], other[key] = other[key], small[key]


def extra_file(stargz):
    stargz.body.entry("reg", "etc/extra", mode=0o644)


def missing_file(stargz):
    stargz.body.entries.remove(stargz.entry("etc/empty"))


def other_target(stargz):
    stargz.entry("etc/link")["linkName"] = "huge"


def other_xattr(stargz):
    stargz.entry("etc/large")["xattrs"] = {"user.note": "bm8="}


def no_whiteout(stargz):
    stargz.body.entries.remove(stargz.entry(".wh.gone"))


def other_link(stargz):
    stargz.entry("etc/hard")["linkName"] = "etc/empty"


LIES = [
    other_mode,
    other_owner,
    other_time,
    other_content,
    extra_file,
    missing_file,
    other_target,
    other_xattr,
    no_whiteout,
    other_link,
]


def lying(lie) -> Stargz:
    more = images.file("etc/other", SMALL[::-1], mtime_ns=TIME)
    stargz = Stargz([*entries(), more], chunk=50_000)
    lie(stargz)
    return stargz
