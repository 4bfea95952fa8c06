"""Lazy layers in tests: opened as the fetch engine does, compared with their tar."""

import io
import random
import tarfile
from collections.abc import Callable, Mapping

from imgvol.layers.builder import IndexBuilder
from imgvol.layers.compression import iter_decoded
from imgvol.layers.index import ROOT, WHITEOUT, Extent, LayerIndex
from imgvol.layers.lazy.locate import ExternalToc, NeedTail, Toc, TocRange, find_toc, open_layer
from imgvol.layers.lazy.spans import LazyLayer, SpanTable
from imgvol.layers.tar import TarParser


def locate(blob: bytes, annotations: Mapping[str, str]) -> Toc | None:
    """Asks for the table of contents, and for the end of the blob only when told to."""
    found = find_toc(annotations, len(blob))
    if isinstance(found, NeedTail):
        found = find_toc(annotations, len(blob), blob[-found.size :])
    assert not isinstance(found, NeedTail)
    return found


def open_lazy(
    blob: bytes, annotations: Mapping[str, str], external: bytes | None = None
) -> LazyLayer:
    """Opens a layer; `external` is the layer of another image with its table of contents."""
    found = locate(blob, annotations)
    if isinstance(found, TocRange):
        return open_layer(found, blob[found.start : found.end])
    assert isinstance(found, ExternalToc)
    assert external is not None
    return open_layer(found, external)


def reader(table: SpanTable, blob: bytes) -> Callable[[Extent], bytes]:
    """Reads extents through the table, span by span, each decoded at most once."""
    buffer = bytearray(table.data_size)
    present: set[int] = set()

    def read(extent: Extent) -> bytes:
        for span in table.spans_of(extent.position, extent.size):
            if span in present:
                continue
            present.add(span)
            start, end = table.compressed_range(span)
            regions = table.decode(span, blob[start:end])
            places = table.positions(span)
            assert all(
                any(
                    first <= r.position and r.position + len(r.data) <= last
                    for first, last in places
                )
                for r in regions
            )
            for region in regions:
                place = slice(region.position, region.position + len(region.data))
                assert place.stop <= table.data_size
                buffer[place] = region.data
        return bytes(buffer[extent.position : extent.position + extent.size])

    return read


def describe(index: LayerIndex, read: Callable[[Extent], bytes]) -> dict[bytes, object]:
    """Everything that an index says, and the content of every file, without positions."""
    found: dict[bytes, object] = {}
    pending = [ROOT]
    while pending:
        directory = pending.pop()
        path = index.path_of(directory)
        found[path] = index.record(directory), index.xattrs(directory)
        for name, node in index.iter_children(directory):
            child = path.rstrip(b"/") + b"/" + name
            if node == WHITEOUT:
                found[child] = "whiteout"
            elif index.is_directory(node):
                pending.append(node)
            elif not index.is_foreign_link(node):
                found[child] = _describe_leaf(index, node, read)
    found |= {b"-> " + path: "foreign link" for _, path in index.foreign_links()}
    return found


def _describe_leaf(index: LayerIndex, node: int, read: Callable[[Extent], bytes]) -> object:
    record = index.record(node)
    if index.is_symlink(node):
        content: object = index.symlink_target(node)
    else:
        data = bytearray(record.size)
        for extent in index.extents(node):
            data[extent.offset : extent.offset + extent.size] = read(extent)
        content = bytes(data)
    names = {(index.path_of(parent), name) for parent, name in index.hardlink_names(node)}
    return record, index.xattrs(node), frozenset(names), content


def describe_tar(archive: bytes) -> dict[bytes, object]:
    """The same of a plain tar, read by the parser that streams use."""
    parser, builder = TarParser(), IndexBuilder(own_files=False)
    for member in parser.feed(archive):
        builder.add(member)
    parser.finish()
    index = LayerIndex(builder.finish())
    return describe(index, lambda e: archive[e.position : e.position + e.size])


def describe_lazy(layer: LazyLayer, blob: bytes) -> dict[bytes, object]:
    return describe(LayerIndex(layer.index), reader(layer.table, blob))


def decompress(blob: bytes) -> bytes:
    return b"".join(iter_decoded([blob]))


def rich_archive(*, is_lowest: bool = False) -> bytes:
    """A tar with everything that a layer may have, of some 16 MB; the lowest links to no other."""
    noise = random.Random(1)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:

        def add(name: str, data: bytes | None = None, **fields: object) -> None:
            member = tarfile.TarInfo(name)
            member.mtime = 1_700_000_000
            for key, value in fields.items():
                setattr(member, key, value)
            if data is not None:
                member.size = len(data)
            archive.addfile(member, io.BytesIO(data or b""))

        def text(size: int) -> bytes:
            return noise.randbytes(size // 8).hex().encode().ljust(size, b"\n")[:size]

        add("./", type=tarfile.DIRTYPE, mode=0o711)
        add("etc/", type=tarfile.DIRTYPE, mode=0o750, uid=7, gid=3_000_000_000)
        add("etc/passwd", text(900), mode=0o4755, uid=1000)
        add("etc/empty", b"")
        add("etc/old", b"old", mtime=-5)
        add("./etc/link", type=tarfile.SYMTYPE, linkname="/nowhere/ünïcode")
        add("etc/hard", type=tarfile.LNKTYPE, linkname="etc/passwd")
        add("etc/harder", type=tarfile.LNKTYPE, linkname="./etc/hard")
        add("etc/linked-symlink", type=tarfile.LNKTYPE, linkname="etc/link")
        add("dev/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666)
        add("dev/sda", type=tarfile.BLKTYPE, devmajor=8, devminor=0)
        add("dev/pipe", type=tarfile.FIFOTYPE)
        add("gone/.wh.file", b"")
        add("fresh/.wh..wh..opq", b"")
        add("fresh/new", b"new")
        add("absent/parents/of/a/file", text(5000))
        add("weird/" + "x" * 200 + '/naïve <&> \u2028"\\\n', text(77))
        capability = (
            "\x01\0\0\x02\0\x04" + "\0" * 14
        )  # cap_net_bind_service=ep, as the kernel wants
        pax = {"SCHILY.xattr.user.note": "välue", "SCHILY.xattr.security.capability": capability}
        add("etc/attributes", b"a", pax_headers=pax)
        if not is_lowest:
            add("etc/lower", type=tarfile.LNKTYPE, linkname="not/in/this/layer")
        add("usr/", type=tarfile.DIRTYPE, mode=0o755)
        add("usr/share/", type=tarfile.DIRTYPE, mode=0o755)
        for number in range(60):
            add(f"usr/share/{number}.txt", text(noise.randrange(1, 4000)))
        add("usr/lib/large", noise.randbytes(9_500_000), mode=0o755)
        zeros = bytes(1_500_000)
        add(
            "usr/lib/holes",
            zeros + noise.randbytes(100_000) + zeros + noise.randbytes(50_000) + zeros,
        )
        add("usr/lib/zeros", bytes(300_000))
        add("usr/lib/exact", noise.randbytes(8 << 20)[: 1 << 20])
        add("usr/lib/last", type=tarfile.SYMTYPE, linkname="large")
    return out.getvalue()
