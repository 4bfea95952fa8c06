"""The layers of one store, stored and lazy, to copy between: without a daemon or a database."""

import random
import threading
from dataclasses import replace
from pathlib import Path

import trio

from imgvol.content.copy_plan import plan_copies
from imgvol.content.copy_sources import Candidate
from imgvol.content.layer_writer import LayerWriter
from imgvol.content.layout import StoreLayout
from imgvol.content.lazy_directory import create_lazy_layer
from imgvol.content.lazy_layer import LazyLayerStore
from imgvol.content.place import FileIdentity, Place
from imgvol.content.space import SpaceLedger
from imgvol.layers.builder import IndexBuilder
from imgvol.layers.compression import Compression
from imgvol.layers.index import LayerIndex
from imgvol.layers.lazy.spans import Region
from imgvol.layers.tar import TarParser
from imgvol.oci.digest import DiffID, Digest
from support.images import Layer
from support.records import layer_record
from support.stargz import Stargz

CHUNK = 60_000
NOISE = random.Random(5).randbytes(2_000_000)


def noise(start: int, size: int) -> bytes:
    return NOISE[start : start + size]


class Machine:
    """The layers of one store, without a database."""

    def __init__(self, root: Path) -> None:
        self.layout = StoreLayout(root)
        self.layout.make()
        self.slots = 0
        self.reads = trio.CapacityLimiter(4)
        self.space = SpaceLedger()

    def record(self, name: str, **fields):
        self.slots += 1
        return replace(layer_record(name), slot=self.slots, **fields)

    def store(self, name: str, entries) -> Candidate:
        """A layer that was pulled."""
        layer = Layer(entries)
        parser, builder = TarParser(), IndexBuilder()
        with LayerWriter(self.layout) as writer:
            for member in parser.feed(layer.tar):
                number = builder.add(member)
                if number is not None:
                    writer.expect(number, member)
            writer.write(layer.tar, 0)
            record = self.record(
                name, diff_id=DiffID(Digest.parse(layer.diff_id)), unpacked_size=len(layer.tar)
            )
            writer.publish(record, builder.finish(), builder.referenced_files)
        return Candidate(record)

    def place(self, name: str, entries) -> Candidate:
        """One that is read in an archive."""
        layer = Layer(entries)
        builder = IndexBuilder(own_files=False)
        for member in TarParser().feed(layer.tar):
            builder.add(member)
        record = self.record(name, format="in place")
        self.layout.place(record.digest).mkdir()
        (self.layout.place(record.digest) / "index").write_bytes(builder.finish())
        path = self.layout.root / name
        path.write_bytes(b"before" + layer.tar)
        identity = FileIdentity.of(path.stat())
        place = Place(path=bytes(path), offset=6, size=len(layer.tar), file=identity)
        return Candidate(record, place)

    def lazy(self, name: str, entries, compression=Compression.GZIP) -> LazyLayerStore:
        _, lazy = Stargz(entries, CHUNK, compression).opened()
        record = self.record(name, is_complete=False)
        create_lazy_layer(self.layout, record.digest, index=lazy.index, table=lazy.table)
        return self.reopen(LazyLayerStore, record)

    def reopen(self, kind, record):
        directory = self.layout.lazy_layer(record.digest)
        layer = kind(directory, record.digest, record.slot, self.reads, self.space)
        layer.record = record
        return layer

    def plan(self, layer, *candidates):
        return plan_copies(layer, candidates, self.layout, threading.Event())


def fill(layer: LazyLayerStore, entries, names=None, *, is_kept: bool = True) -> None:
    """Shows what some files hold, as if it had been fetched, or else copied."""
    contents = {entry.name.encode(): entry.content for entry in entries}
    for name, node in files_of(layer.index):
        if names is not None and name.decode() not in names:
            continue
        for extent in layer.index.extents(node):
            for span in layer.table.spans_of(extent.position, extent.size):
                regions = [
                    (part.position, contents[name][part.position - extent.position :][: part.size])
                    for part in layer.table.parts(span)
                ]
                layer.intake.put_span(
                    span, [Region(*region) for region in regions], is_kept=is_kept
                )


def files_of(index: LayerIndex):
    waiting = [0]
    while waiting:
        parent = waiting.pop()
        for name, node in index.iter_children(parent):
            if index.is_directory(node):
                waiting.append(node)
            else:
                yield (index.path_of(parent).rstrip(b"/") + b"/" + name)[1:], node


def present_files(layer: LazyLayerStore) -> set[str]:
    return {
        name.decode()
        for name, node in files_of(layer.index)
        if layer.has(node, 0, layer.index.record(node).size)
    }


def check_content(layer: LazyLayerStore, entries) -> None:
    """Whatever is present is right."""
    contents = {entry.name: entry.content for entry in entries}
    nodes = dict(files_of(layer.index))
    for name in present_files(layer):
        node = nodes[name.encode()]
        size = layer.index.record(node).size
        if name in contents:
            assert bytes(layer.read_blocking(node, 0, size)) == contents[name], name
    assert layer.scrubber.damaged_spans(lambda _size: None) == []
