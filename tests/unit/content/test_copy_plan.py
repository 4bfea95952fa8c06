"""What a lazy layer takes from others of the machine: all that is the same, and nothing else."""

import hashlib
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgvol import limits
from imgvol.content.chunk_catalogue import ChunkOwners
from imgvol.content.copy_sources import Candidate, write_catalogue
from imgvol.content.layer_store import LayerStore
from imgvol.content.lazy_layer import LazyLayerStore
from imgvol.images.fetch.rest import lacking
from imgvol.layers.compression import Compression
from support.copying import CHUNK, Machine, check_content, fill, noise, present_files
from support.images import directory, file, hardlink


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


OLD = [
    directory("usr"),
    file("usr/same", noise(0, 5000)),
    file("usr/changed", noise(5000, 5000)),
    file("usr/grown", noise(10_000, 5000)),
    file("usr/large", noise(100_000, 1_200_000)),  # a file of its own
    hardlink("usr/link", "usr/large"),
    file("v1/data", noise(20_000, 9000)),
    file("v1/other-name", noise(30_000, 9000)),
]
NEW = [
    directory("usr"),
    file("usr/same", noise(0, 5000)),
    file("usr/changed", noise(5001, 5000)),
    file("usr/grown", noise(10_000, 5001)),
    file("usr/large", noise(100_000, 1_200_000)),
    file("v2/data", noise(20_000, 9000)),
    file("v2/renamed", noise(30_000, 9000)),
    file("v2/new", noise(40_000, 9000)),
]
BY_NAME = {"usr/same", "usr/large", "v2/data"}


@pytest.mark.parametrize("kind", ["store", "place"])
@pytest.mark.parametrize("compression", [Compression.GZIP, Compression.ZSTD])
def test_files_are_found_by_path_and_by_name_where_no_digests_are_known(machine, kind, compression):
    source = getattr(machine, kind)("old", OLD)
    layer = machine.lazy("new", NEW, compression)
    plan = machine.plan(layer, source)
    counts = plan.copy(plan.spans)
    assert present_files(layer) == BY_NAME
    assert plan.sampled.unlike + counts.unlike == 1  # usr/changed has the same size
    assert counts.damaged == ()
    ranges = [layer.table.compressed_range(span) for span in layer.present]
    assert counts.size == sum(end - start for start, end in ranges)
    assert counts.spans == len(ranges)
    check_content(layer, NEW)


def test_digests_find_what_has_another_name(machine):
    old = machine.lazy("old", OLD)
    fill(old, OLD)
    old.intake.flush()
    layer = machine.lazy("new", NEW)
    plan = machine.plan(layer, Candidate(old.record))
    counts = plan.copy(plan.spans)
    assert present_files(layer) == BY_NAME | {"v2/renamed"}
    # The digest has told beforehand that `changed` is another.
    assert plan.sampled.unlike + counts.unlike == 1
    check_content(layer, NEW)


def test_only_what_is_present_of_a_lazy_layer_is_copied(machine):
    old = machine.lazy("old", OLD)
    fill(old, OLD, {"usr/same", "v1/data"})
    layer = machine.lazy("new", NEW)
    # It is open: its map in memory is ahead of the one on disk.
    plan = machine.plan(layer, Candidate(old.record, None, old))
    if plan is None:  # both are little: less than is worth a proof
        assert sum(len(e.content) for e in NEW) * limits.COPY_LEAST_SHARE > 14_000
        fill(old, OLD, {"usr/large"})
        plan = machine.plan(layer, Candidate(old.record, None, old))
    plan.copy(plan.spans)
    assert present_files(layer) == BY_NAME
    check_content(layer, NEW)
    assert machine.plan(machine.lazy("other", NEW), Candidate(old.record)) is None


def test_a_catalogue_serves_the_complete_form_too(machine):
    old = machine.lazy("old", OLD)
    source = machine.store("stored", OLD)
    complete = machine.layout.layer(source.record.digest)
    write_catalogue(complete, old.table, ChunkOwners(old.table, old.index))
    LayerStore(machine.layout, source.record.digest, 1, machine.reads)
    layer = machine.lazy("new", NEW)
    plan = machine.plan(layer, source)
    plan.copy(plan.spans)
    assert present_files(layer) == BY_NAME | {"v2/renamed"}
    check_content(layer, NEW)


@pytest.mark.parametrize("has_catalogue", [True, False])
def test_a_place_that_has_changed_since_is_not_copied(machine, has_catalogue):
    source = machine.store("old", OLD)
    directory_ = machine.layout.layer(source.record.digest)
    if has_catalogue:
        old = machine.lazy("lazy", OLD)
        write_catalogue(directory_, old.table, ChunkOwners(old.table, old.index))
    layer = machine.lazy("new", NEW)
    plan = machine.plan(layer, source)
    data = bytearray((directory_ / "data").read_bytes())
    for place in range(0, len(data), 100):
        data[place] ^= 1
    (directory_ / "data").write_bytes(data)
    counts = plan.copy(plan.spans)
    assert present_files(layer) == {"usr/large"}
    # What nobody has ever verified under that digest is no damage.
    assert counts.damaged == ((source.record.digest,) if has_catalogue else ())
    check_content(layer, NEW)


def test_a_source_that_goes_meanwhile_is_missed_and_no_more(machine):
    source = machine.store("old", OLD)
    layer = machine.lazy("new", NEW)
    layer.present.give_up(0)  # without a proof to lose no samples are taken: no file is open
    plan = machine.plan(layer, source)
    shutil.rmtree(machine.layout.layer(source.record.digest))
    plan.copy(plan.spans)
    # Its data file is open; of its large files none was.
    assert present_files(layer) == BY_NAME - {"usr/large"}
    check_content(layer, NEW)


def test_a_source_that_is_damaged_or_gone_is_passed_over(machine):
    gone, cut = machine.store("gone", OLD), machine.store("cut", OLD)
    shutil.rmtree(machine.layout.layer(gone.record.digest))
    index = machine.layout.layer(cut.record.digest) / "index"
    index.write_bytes(index.read_bytes()[:-1])
    good = machine.store("good", OLD)
    layer = machine.lazy("new", NEW)
    plan = machine.plan(layer, gone, cut, good)
    plan.copy(plan.spans)
    assert present_files(layer) == BY_NAME


def test_a_damaged_catalogue_is_done_without(machine):
    source = machine.store("old", OLD)
    chunks = machine.layout.layer(source.record.digest) / "chunks"
    for junk in (b"", b"imgvolCC", bytes(100)):
        chunks.write_bytes(junk)
        layer = machine.lazy(f"new{len(junk)}", NEW)
        plan = machine.plan(layer, source)
        plan.copy(plan.spans)
        assert present_files(layer) == BY_NAME


def test_next_to_nothing_is_not_copied(machine):
    source = machine.store("old", [file("usr/same", noise(0, 5000))])
    assert machine.plan(machine.lazy("new", NEW), source) is None


def test_files_that_only_look_the_same_are_no_reason_to_forgo_the_proof(machine):
    names = [f"f{number}" for number in range(50)]
    old = [file(name, noise(3000 * i, 3000)) for i, name in enumerate(names)]
    # All have the same size, one has the same bytes.
    new = [file(name, noise(3000 * i + (i != 7), 3000)) for i, name in enumerate(names)]
    layer = machine.lazy("new", new)
    assert machine.plan(layer, machine.store("old", old)) is None
    assert not layer.forgoes_proof
    layer.present.give_up(0)  # it does already: then every byte counts
    plan = machine.plan(layer, machine.store("again", old))
    plan.copy(plan.spans)
    assert present_files(layer) == {"f7"}


def test_a_search_that_takes_long_ends_with_what_it_has(machine, monkeypatch):
    sources = [machine.store("old", OLD[:3]), machine.store("older", OLD)]
    layer = machine.lazy("new", NEW)
    layer.present.give_up(0)
    monkeypatch.setattr(limits, "COPY_SEARCH_TIME", -1)
    assert machine.plan(layer, *sources) is None
    monkeypatch.undo()
    plan = machine.plan(layer, *sources)
    plan.copy(plan.spans)
    assert present_files(layer) == BY_NAME


def test_a_layer_without_sources_has_no_plan(machine):
    layer = machine.lazy("new", NEW)
    assert machine.plan(layer) is None
    assert (layer.directory / "chunks").exists()


def test_copied_spans_survive_and_are_checked_by_their_digests(machine):
    source = machine.store("old", OLD)
    layer = machine.lazy("new", NEW)
    plan = machine.plan(layer, source)
    plan.copy(plan.spans)
    assert layer.forgoes_proof
    assert not layer.is_settled
    layer.intake.flush()
    again = machine.reopen(LazyLayerStore, layer.record)
    assert present_files(again) == BY_NAME
    assert again.forgoes_proof
    assert again.kept.size == 0
    assert again.present_size == layer.present_size == plan_size(again)
    # Nothing but missing spans is lacking, however much of the blob is.
    parts = lacking(again, 0, again.table.blob_size, range(again.table.span_count))
    missing = again.missing(range(again.table.span_count))
    wanted = sum(size_of(again, span) for span in missing)
    assert wanted <= sum(end - start for start, end in parts) <= 1.25 * wanted

    check_content(again, NEW)
    data = again.directory / "data"
    content = data.read_bytes()
    data.write_bytes(content.replace(noise(100, 50), bytes(50)))
    (damaged,) = again.scrubber.damaged_spans(lambda _size: None)
    again.scrubber.forget([damaged])
    assert present_files(again) == BY_NAME - {"usr/same"}
    assert again.present_size == plan_size(again)
    assert present_files(machine.reopen(LazyLayerStore, layer.record)) == BY_NAME - {"usr/same"}


def test_a_layer_that_fills_up_is_settled_and_not_complete(machine):
    source = machine.store("old", OLD)
    layer = machine.lazy("new", NEW)
    plan = machine.plan(layer, source)
    plan.copy(plan.spans)
    fill(layer, NEW)
    assert layer.present.is_full
    assert layer.is_settled
    assert not layer.is_complete
    assert layer.present_size == layer.table.blob_size
    assert lacking(layer, 0, layer.table.blob_size, range(layer.table.span_count)) == []


def size_of(layer, span: int) -> int:
    start, end = layer.table.compressed_range(span)
    return end - start


def plan_size(layer) -> int:
    return sum(size_of(layer, span) for span in layer.present)


NAMES = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)
CONTENTS = st.tuples(st.integers(0, 3), st.sampled_from([1, 500, 501, 70_000]))
TREES = st.dictionaries(NAMES, CONTENTS, max_size=6)


def entries_of(tree) -> list:
    """A file that is also the directory of another one is left out."""
    return [
        file(name, noise(1000 * which, size))
        for name, (which, size) in sorted(tree.items())
        if not any(other.startswith(f"{name}/") for other in tree)
    ]


@settings(max_examples=40)
@given(old=TREES, new=TREES, is_lazy=st.booleans())
def test_the_same_file_at_the_same_path_is_always_found_and_a_wrong_one_never_shown(
    old, new, is_lazy
):
    with tempfile.TemporaryDirectory() as directory_:
        machine = Machine(Path(directory_))
        before, now = entries_of(old), entries_of(new)
        if is_lazy:
            opened = machine.lazy("old", before)
            fill(opened, before)
            source = Candidate(opened.record, None, opened)
        else:
            source = machine.store("old", before)
        layer = machine.lazy("new", now)
        layer.present.give_up(0) if layer.table.span_count else None  # however little
        plan = machine.plan(layer, source)
        if plan is not None:
            plan.copy(plan.spans)
        known = {(entry.name, entry.content) for entry in before}
        contents = {entry.content for entry in before}
        expected = {e.name for e in now if (e.name, e.content) in known}
        if is_lazy:
            expected = {e.name for e in now if e.content in contents}
        found = present_files(layer)
        assert expected <= found
        # Chunks of large files may be had without the whole of any.
        pieces = {hashlib.sha256(c[:CHUNK]).digest() for c in contents}
        pieces |= {hashlib.sha256(c[CHUNK:]).digest() for c in contents}
        for entry in now:
            if entry.name in found:
                digests = {hashlib.sha256(p).digest() for p in cut(entry.content)}
                assert digests <= pieces
        check_content(layer, now)


def cut(content: bytes) -> list[bytes]:
    return [content[at : at + CHUNK] for at in range(0, len(content), CHUNK)]
