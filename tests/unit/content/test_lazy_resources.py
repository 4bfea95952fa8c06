"""What an open lazy layer holds, and what it must not do to whoever shares the process with it."""

import gc
import os
import threading
import weakref

import pytest

from imgvol.content import kept_blob, lazy_directory
from imgvol.content.layout import StoreLayout
from imgvol.errors import LocalError, StoreFull
from imgvol.layers.index import ROOT, LayerIndex
from imgvol.oci.digest import Digest
from support import members
from support.spans import FakeFetcher, PlainTable, cut, index_of, make_lazy_layer, use_plain_tables

BLOB = bytes(range(250)) * 4
TABLE = PlainTable(BLOB, cut(len(BLOB), 100))


@pytest.fixture(autouse=True)
def _plain_tables(monkeypatch):
    use_plain_tables(monkeypatch)


def open_files(below) -> list[str]:
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            continue
    return [link for link in links if link.startswith(str(below))]


class Complete:
    index = LayerIndex(index_of(members.file(b"all", len(BLOB), payload_offset=512)))

    async def read(self, *_):
        return b"final"


def put(layer, span: int) -> None:
    start, end = TABLE.compressed_range(span)
    layer.kept.put(start, BLOB[start:end])
    layer.intake.put_span(span, TABLE.decode(span, BLOB[start:end]))


async def test_a_completed_layer_gives_back_the_room_of_its_lazy_form(tmp_path):
    layer = make_lazy_layer(tmp_path, TABLE)
    put(layer, 1)
    assert len(open_files(tmp_path / "lazy")) == 3, "data, blob, and the directory"
    layer.complete(Complete())
    assert open_files(tmp_path / "lazy") == []
    # A flight that lands late, and a flush that comes late.
    put(layer, 2)
    layer.intake.flush()
    assert await layer.read(layer.index.child(ROOT, b"all"), 0, 10) == b"final"


def test_a_completed_layer_keeps_neither_its_table_nor_a_second_index(tmp_path):
    layer = make_lazy_layer(tmp_path, TABLE)
    table, told = weakref.ref(layer.table), []
    layer.on_complete = lambda completed: told.append(completed.index)
    layer.complete(Complete())
    gc.collect()
    assert table() is None
    assert told == [Complete.index]
    assert layer.missing(range(TABLE.span_count)) == [], "nobody waits for a span any more"
    assert layer.table.compressed_range(3) == (0, 0)


async def test_a_reader_whose_span_comes_after_the_switch_reads_the_final_form(tmp_path):
    layer = make_lazy_layer(tmp_path, TABLE)

    class Late(FakeFetcher):
        async def ensure(self, spans):
            layer.complete(Complete())
            for span in spans:
                put(layer, span)

    layer.fetcher = Late()
    assert await layer.read(layer.index.child(ROOT, b"all"), 0, 10) == b"final"


def test_asking_what_is_kept_never_waits_for_the_disk(tmp_path, monkeypatch):
    """The event loop asks, while threads write to a disk that has all hands full."""
    layer = make_lazy_layer(tmp_path, TABLE)
    writing, go_on = threading.Event(), threading.Event()
    write_all = kept_blob.write_all

    def slow(*arguments):
        writing.set()
        assert go_on.wait(10)
        write_all(*arguments)

    monkeypatch.setattr(kept_blob, "write_all", slow)
    writer = threading.Thread(target=put, args=(layer, 1))
    writer.start()
    assert writing.wait(5)
    asked = threading.Thread(target=lambda: (layer.kept.size, layer.kept.covers(0, 10)))
    asked.start()
    asked.join(5)
    was_blocked = asked.is_alive()
    go_on.set()
    writer.join(10)
    asked.join(10)
    assert not was_blocked


async def test_after_a_failed_sync_readers_get_errors_and_no_zeros(tmp_path, monkeypatch):
    """The kernel may drop pages that it could not write; the file then reads as a hole."""
    layer = make_lazy_layer(tmp_path, TABLE)
    put(layer, 1)

    def fail(_):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", fail)
        with pytest.raises(LocalError):
            layer.intake.flush()
    with pytest.raises(LocalError):
        await layer.read(layer.index.child(ROOT, b"all"), 100, 10)


def test_a_lazy_layer_that_does_not_fit_leaves_nothing(tmp_path, monkeypatch):
    layout = StoreLayout(tmp_path)
    for directory in layout.directories():
        directory.mkdir(exist_ok=True)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "ftruncate", full)
    with pytest.raises(StoreFull):
        lazy_directory.create_lazy_layer(layout, Digest.of(b"x"), index=b"i", table=TABLE)
    assert os.listdir(layout.ingest) == []
