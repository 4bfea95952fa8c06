"""Every claim that a table of contents can make and the tar does not keep is noticed, in every
format in which it can be made."""

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest
import trio

from imgvol.content.records import LayerRecord, Origin
from imgvol.content.store import Store, open_store
from imgvol.images.comparison import first_difference
from imgvol.images.ingest import LayerIngest, LayerProgress
from imgvol.layers.compression import Compression
from imgvol.layers.index import LayerIndex
from imgvol.layers.lazy.spans import LazyLayer
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import DiffID, Digest
from support import images, soci
from support.spans import RangeReader, RangeSource
from support.stargz import TIME, Stargz
from support.toc_blobs import sha256

NOISE = random.Random(23)
ONE, OTHER = NOISE.randbytes(3000), NOISE.randbytes(3000)
ENTRIES = [
    images.directory("etc", mtime_ns=TIME, mode=0o750),
    images.file("etc/one", ONE, mtime_ns=TIME, uid=7, gid=8, xattrs={"user.note": b"yes"}),
    images.file("etc/other", OTHER, mtime_ns=TIME),
    images.file("etc/empty", mtime_ns=TIME),
    images.symlink("etc/link", "one", mtime_ns=TIME),
    images.hardlink("etc/hard", "etc/one", mtime_ns=TIME),
    images.hardlink("etc/lower", "lower/file", mtime_ns=TIME),
    images.character_device("null", 1, 3, mtime_ns=TIME),
    images.block_device("disk", 8, 1, mtime_ns=TIME),
    images.fifo("pipe", mtime_ns=TIME),
    replace(images.whiteout("etc/gone"), mtime_ns=TIME),
    images.directory("fresh", mtime_ns=TIME),
    replace(images.opaque("fresh"), mtime_ns=TIME),
]

Toc = list[dict]
Ztoc = list[soci.Entry]


@dataclass(frozen=True)
class Lie:
    """What is changed in the entries of each kind of table."""

    toc: Callable[[Toc], object]
    ztoc: Callable[[Ztoc], object]


def named(entries: Toc, name: str) -> dict:
    return next(entry for entry in entries if entry["name"] == name)


def says(path: str, toc: dict, /, **ztoc) -> Lie:
    """Other values of one entry."""

    def change(entries: Ztoc) -> None:
        (at,) = (n for n, e in enumerate(entries) if e.name.rstrip(b"/") == path.encode())
        entries[at] = replace(entries[at], **ztoc)

    return Lie(lambda entries: named(entries, path).update(toc), change)


def adds(toc: dict, /, **ztoc) -> Lie:
    # The place of a member without content means nothing, but has to be a possible one.
    entry = soci.Entry(mtime=b"2023-11-14T22:13:20Z", offset=0, **ztoc)

    def add(entries: Ztoc) -> None:
        entries.append(replace(entry, offset=max(e.offset + e.size for e in entries) + 1024))

    return Lie(lambda entries: entries.append(toc), add)


def leaves_out(name: str) -> Lie:
    def leave_out(entries: Ztoc) -> None:
        entries[:] = [e for e in entries if e.name.rstrip(b"/") != name.encode()]

    return Lie(lambda entries: entries.remove(named(entries, name)), leave_out)


def swap_content(entries: Toc) -> None:
    """The digests are right for their spans, which the tar has elsewhere."""
    one, other = named(entries, "etc/one"), named(entries, "etc/other")
    for key in ("offset", "digest", "chunkDigest"):
        one[key], other[key] = other[key], one[key]


def swap_places(entries: Ztoc) -> None:
    one, other = (next(e for e in entries if e.name == n) for n in (b"etc/one", b"etc/other"))
    places = {one.name: other.offset, other.name: one.offset}
    entries[:] = [replace(e, offset=places.get(e.name, e.offset)) for e in entries]


def shorten(entries: Toc) -> None:
    entry = named(entries, "etc/one")
    entry |= {"size": 2000, "digest": sha256(ONE[:2000]), "chunkDigest": sha256(ONE[:2000])}


def take_another_end(entries: Toc) -> None:
    """Bytes of the tar behind the file's own are shown as its content."""
    padded = images.padded(ONE)[:3010]
    named(entries, "etc/one").update(
        size=3010, digest=sha256(padded), chunkDigest=sha256(padded), chunkSize=3010
    )


LIES = {
    "name": says("etc/one", {"name": "etc/uno"}, name=b"etc/uno"),
    "name in the same place": says("etc/other", {"name": "etc/othes"}, name=b"etc/othes"),
    "mode": says("etc/one", {"mode": 0o600}, mode=0o600),
    "set-uid": says("etc/one", {"mode": 0o4644}, mode=0o4644),
    "mode of a directory": says("etc", {"mode": 0o777}, mode=0o777),
    "owner": says("etc/one", {"uid": 0}, uid=0),
    "group": says("etc/one", {"gid": 0}, gid=0),
    "time": says("etc/one", {"modtime": "2020-01-01T00:00:00Z"}, mtime=b"2020-01-01T00:00:00Z"),
    "time of a link": says(
        "etc/link", {"modtime": "2020-01-01T00:00:00Z"}, mtime=b"2020-01-01T00:00:00Z"
    ),
    "value of an xattr": says(
        "etc/one",
        {"xattrs": {"user.note": "bm8="}},
        records=((b"SCHILY.xattr.user.note", b"no"),),
    ),
    "another xattr": says(
        "etc/other", {"xattrs": {"user.x": "bm8="}}, records=((b"SCHILY.xattr.user.x", b"no"),)
    ),
    "no xattr": says("etc/one", {"xattrs": {}}, records=()),
    "capabilities": says(
        "etc/other",
        {"xattrs": {"security.capability": "AQAAAgAEAAAAAAAAAAAAAAAAAAA="}},
        records=((b"SCHILY.xattr.security.capability", b"\1\0\0\2\0\4" + bytes(14)),),
    ),
    "shorter": Lie(shorten, says("etc/one", {}, size=2000).ztoc),
    "longer": Lie(take_another_end, says("etc/one", {}, size=3010).ztoc),
    "content": Lie(swap_content, swap_places),
    "target of a symbolic link": says("etc/link", {"linkName": "other"}, linkname=b"other"),
    "target as long": says("etc/link", {"linkName": "two"}, linkname=b"two"),
    "target in a lower layer": says("etc/lower", {"linkName": "lower/x"}, linkname=b"lower/x"),
    "target of a hard link": says("etc/hard", {"linkName": "etc/other"}, linkname=b"etc/other"),
    "hard link to nothing here": says("etc/hard", {"linkName": "etc/x"}, linkname=b"etc/x"),
    "type": says("etc/empty", {"type": "fifo"}, type=b"fifo"),
    "file for a device": says("null", {"type": "reg"}, type=b"reg", major=0, minor=0),
    "symbolic link for a hard one": says("etc/hard", {"type": "symlink"}, type=b"symlink"),
    "device": says("null", {"devMinor": 5}, minor=5),
    "block for char": says("null", {"type": "block"}, type=b"block"),
    "major of a disk": says("disk", {"devMajor": 9}, major=9),
    "missing": leaves_out("etc/empty"),
    "missing with content": leaves_out("etc/other"),
    "missing directory": leaves_out("etc"),
    "missing hard link": leaves_out("etc/hard"),
    "missing whiteout": leaves_out("etc/.wh.gone"),
    "missing opaque mark": leaves_out("fresh/.wh..wh..opq"),
    "extra": adds({"type": "reg", "name": "etc/extra"}, name=b"etc/extra"),
    "extra directory": adds({"type": "dir", "name": "etc/d"}, name=b"etc/d", type=b"dir"),
    "extra whiteout": adds({"type": "reg", "name": "etc/.wh.more"}, name=b"etc/.wh.more"),
    "extra opaque mark": adds(
        {"type": "reg", "name": "etc/.wh..wh..opq"}, name=b"etc/.wh..wh..opq"
    ),
    "extra hard link": adds(
        {"type": "hardlink", "name": "twin", "linkName": "etc/one"},
        name=b"twin",
        type=b"hardlink",
        linkname=b"etc/one",
    ),
}


def toc_layer(compression: Compression, lie: Lie | None) -> tuple[images.Layer, LazyLayer]:
    made = Stargz(ENTRIES, compression=compression)
    if lie is not None:
        lie.toc(made.body.entries)
    return made.opened()


def soci_layer(lie: Lie | None) -> tuple[images.Layer, LazyLayer]:
    layer = images.Layer(images.tar_bytes(ENTRIES))
    draft = soci.draft_of(layer.tar, layer.blob, 4000)
    entries = list(draft.entries)
    if lie is not None:
        lie.ztoc(entries)
    return layer, draft.open(entries=entries)


FORMATS = {
    "eStargz": partial(toc_layer, Compression.GZIP),
    "zstd:chunked": partial(toc_layer, Compression.ZSTD),
    "SOCI": soci_layer,
}


async def difference(store: Store, format_: str, layer: images.Layer, lazy: LazyLayer):
    """What the comparison says when all spans are here and the tar has been read."""
    digest, diff_id = Digest.parse(layer.digest), DiffID(Digest.parse(layer.diff_id))
    index = LayerIndex(lazy.index)
    record = LayerRecord(
        digest=digest,
        diff_id=diff_id,
        media_type=layer.media_type,
        size=layer.size,
        unpacked_size=index.file_bytes,
        entries=index.entry_count,
        format=format_,
        is_complete=False,
    )
    origin = Origin(argument="example.com/x:1", plain_http=False, insecure=False, ca_file=None)
    shown = await store.open_lazy_layer(await store.add_lazy_layer(record, lazy, origin))
    for span in range(shown.table.span_count):
        start, end = shown.table.compressed_range(span)
        shown.intake.put_span(span, shown.table.decode(span, layer.blob[start:end]))
    ingest = LayerIngest(
        open_blob=lambda: RangeReader(RangeSource(layer.blob), 0, layer.size, None),
        store=store,
        descriptor=Descriptor(media_type=layer.media_type, digest=digest, size=layer.size),
        compression=Compression(layer.compression),
        diff_id=diff_id,
        progress=LayerProgress(digest=layer.digest, size=layer.size),
    )
    record = await store.complete_layer(await trio.to_thread.run_sync(ingest.run))
    complete = await store.open_layer(record)
    return first_difference(shown, complete, threading.Event())


@pytest.mark.parametrize("format_", FORMATS)
async def test_the_truth_has_no_difference(format_, tmp_path):
    layer, lazy = FORMATS[format_](None)
    async with open_store(tmp_path) as store:
        assert await difference(store, format_, layer, lazy) is None


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("format_", FORMATS)
async def test_every_lie_is_noticed(format_, lie, tmp_path):
    layer, lazy = FORMATS[format_](LIES[lie])
    async with open_store(tmp_path) as store:
        assert await difference(store, format_, layer, lazy) is not None
