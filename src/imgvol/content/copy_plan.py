"""Finds what a lazy layer lacks in other layers of this machine, and copies it.

Theory of operation. A chunk is looked for twice. Layers that had a table of contents know digests
(`chunk_catalogue`): the same digest is the same content, wherever it is. Layers that were pulled
plainly know none, and hashing every file on the day that it comes would cost every pull; so a file
with the same path and size is a *likely* place, and one with the same name and size a *possible*
one. Each is a guess until the bytes have been read
and hashed: the digest is checked over the very bytes that are stored, and so it matters little who
has them, or whether they change meanwhile. Where the filesystem shares blocks between files, larger
pieces are shared instead of written, and hashed where they are then.

The plan has 42 bytes per chunk and lives only as long as there is something to copy. Sources are
searched one after the other, and only what was found of them is remembered. Everything here blocks.
"""

import contextlib
import hashlib
import os
import threading
import time
from array import array
from collections.abc import Mapping, Sequence
from typing import Final

from imgvol import limits
from imgvol.content.chunk_catalogue import NO_NODE, ChunkCatalogue, ChunkOwners
from imgvol.content.cloning import clone_part
from imgvol.content.copy_places import Clone, CopyCounts, Places
from imgvol.content.copy_sources import Candidate, CopySource, SourceFiles, write_catalogue
from imgvol.content.layout import CHUNKS_NAME, StoreLayout
from imgvol.content.lazy_layer import LazyLayerStore
from imgvol.content.namesakes import namesakes, same_files
from imgvol.errors import StoreDamaged
from imgvol.layers.lazy.chunks import ChunkTable
from imgvol.layers.lazy.spans import Part, Region
from imgvol.oci.digest import Digest

# The landmarks of eStargz are a byte each, belong to no file, and would be all that is fetched.
_WELL_KNOWN: Final = {hashlib.sha256(data).digest(): data for data in (b"\x0f",)}


class CopyPlan:
    """What of one layer can be copied, and from where. For any thread.

    Attributes:
        spans: Those that are missing and may be had, in the blob's order.
        size: Bytes that they have in the blob, if all guesses are right.
        sampled: What was found out before anything was copied.
    """

    def __init__(self, layer: LazyLayerStore, table: ChunkTable) -> None:
        self.spans: Sequence[int] = ()
        self.size = 0
        self._layer = layer
        self._table = table
        self._can_copy = bytearray(table.span_count)
        self._known = Places(table.chunk_count)
        self._likely = Places(table.chunk_count)
        self._possible = Places(table.chunk_count)
        self._places = (self._known, self._likely, self._possible)
        self._sources: list[SourceFiles] = []
        # Filesystems that share no blocks with ours.
        self._unshared: set[int] = set()
        self.sampled = CopyCounts()

    def can_copy(self, span: int) -> bool:
        """Whether a span may be had here. In no time."""
        return span < len(self._can_copy) and bool(self._can_copy[span])

    def copy(self, spans: Sequence[int]) -> CopyCounts:
        """Copies those of some spans that are here, verified; the others stay missing.

        Raises:
            StoreFull: No room.
            LocalError: The disk failed.
        """
        counts = CopyCounts()
        damaged: set[Digest] = set()
        for span in spans:
            if not self.can_copy(span) or span in self._layer.present:
                continue
            if not self._copy_span(span, counts, damaged):
                self._can_copy[span] = 0
                continue
            counts.spans += 1
            counts.size += _extent(self._table, span)
        counts.damaged = tuple(sorted(damaged))
        return counts

    def _copy_span(self, span: int, counts: CopyCounts, damaged: set[Digest]) -> bool:
        """Copies a span from wherever its chunks are; False if one of them is nowhere."""

        def share(target: int) -> bool:
            return all(self._share(clone, target, counts, damaged) for clone in clones)

        # Each round that fails leaves one place, or one filesystem, less to share from.
        while True:
            regions: list[Region] = []
            clones: list[Clone] = []
            if not self._gather(span, regions, clones, counts, damaged):
                return False
            if not clones:
                self._layer.intake.put_span(span, regions, is_kept=False)
                return True
            if self._layer.intake.put_copy(span, regions, share):
                counts.cloned += sum(clone.size for clone in clones)
                return True

    def _gather(
        self,
        span: int,
        regions: list[Region],
        clones: list[Clone],
        counts: CopyCounts,
        damaged: set[Digest],
    ) -> bool:
        """Reads the chunks of a span, but for those whose blocks may be shared."""
        for chunk in sorted(self._table.chunks_of_span(span)):
            part = self._table.part(chunk)
            clone = self._clone_of(chunk, part)
            if clone is not None:
                clones.append(clone)
                continue
            data = self._read_part(chunk, part, counts, damaged)
            if data is None:
                return False
            regions.append(Region(part.position, data))
        return True

    def _clone_of(self, chunk: int, part: Part) -> Clone | None:
        """How to share a chunk's blocks with the place where it would be read."""
        if part.size < limits.CLONE_LEAST:
            return None
        for places in self._places:
            place = places.get(chunk)
            if place is None:
                continue
            source = self._sources[place[0]]
            with contextlib.suppress(StoreDamaged):
                file, start = source.open(*place[1:])
                device = os.fstat(file.fd).st_dev
                clone = Clone(chunk, part, places, source, file, start, device)
                if clone.size and device not in self._unshared:
                    return clone
            break  # it is read there
        return None

    def _share(self, clone: Clone, target: int, counts: CopyCounts, damaged: set[Digest]) -> bool:
        try:
            if clone_part(clone.file, clone.start, clone.source.digest, target, clone.part):
                return True
        except OSError:
            # Most cannot at all. Of whatever else it is, writing tells.
            self._unshared.add(clone.device)
            return False
        except StoreDamaged:
            pass  # cut off
        self._refuse(clone.chunk, clone.places, clone.source, counts, damaged)
        return False

    def _is_sound(self, span: int, counts: CopyCounts, damaged: set[Digest]) -> bool:
        """Whether all of a span can be read somewhere."""
        return all(
            self._read_part(chunk, self._table.part(chunk), counts, damaged) is not None
            for chunk in sorted(self._table.chunks_of_span(span))
        )

    def _read_part(
        self, chunk: int, part: Part, counts: CopyCounts, damaged: set[Digest]
    ) -> bytes | None:
        if part.digest in _WELL_KNOWN:
            return _WELL_KNOWN[part.digest]
        for places in self._places:
            place = places.get(chunk)
            if place is None:
                continue
            source = self._sources[place[0]]
            with contextlib.suppress(StoreDamaged):  # gone, or cut off
                data = source.read(*place[1:], part.size)
                if hashlib.sha256(data).digest() == part.digest:
                    return data
            self._refuse(chunk, places, source, counts, damaged)
        return None

    def _refuse(
        self,
        chunk: int,
        places: Places,
        source: SourceFiles,
        counts: CopyCounts,
        damaged: set[Digest],
    ) -> None:
        """A place has other bytes than the chunk."""
        places.drop(chunk)
        if places is self._known and source.is_verified:
            damaged.add(source.digest)
        else:
            counts.unlike += 1

    # --- planning --------------------------------------------------------------------------------

    def search(
        self,
        candidates: Sequence[Candidate],
        layout: StoreLayout,
        owners: ChunkOwners,
        stopped: threading.Event,
    ) -> None:
        """Looks for what is missing, layer by layer, until all has been found, or for long."""
        wanted = self._wanted(owners)
        deadline = time.monotonic() + limits.COPY_SEARCH_TIME
        for candidate in candidates:
            if stopped.is_set() or not wanted or time.monotonic() > deadline:
                break
            with contextlib.suppress(OSError, StoreDamaged):  # gone, or damaged: as if it were not
                source = candidate.open(layout)
                wanted = self._search_one(source, wanted, owners)
        self._sum_up()

    def _wanted(self, owners: ChunkOwners) -> "array[int]":
        """The chunks of missing spans that a file has."""
        table, present = self._table, self._layer.present
        return array(
            "I",
            (
                chunk
                for chunk in range(table.chunk_count)
                if owners.nodes[chunk] != NO_NODE
                and table.is_chunk_pinned(chunk)
                and table.span_of_chunk(chunk) not in present
            ),
        )

    def _search_one(
        self, source: CopySource, wanted: "array[int]", owners: ChunkOwners
    ) -> "array[int]":
        """Searches one layer; returns what has not been found by its digest."""
        number, found = len(self._sources), 0
        missing = wanted
        if source.catalogue is not None and self._is_promising(source.catalogue, wanted):
            missing = array("I", (c for c in wanted if not self._find(c, source, number)))
            found += len(wanted) - len(missing)
        found += self._compare(source, number, missing, owners)
        if found:
            self._sources.append(source.files)
        return missing

    def _is_promising(self, catalogue: ChunkCatalogue, wanted: "array[int]") -> bool:
        """Whether a layer has any of a sample of what is wanted: most layers have nothing."""
        step = len(wanted) // limits.COPY_SAMPLE + 1
        return any(True for c in wanted[::step] for _ in catalogue.find(self._table.digest(c)))

    def _find(self, chunk: int, source: CopySource, number: int) -> bool:
        assert source.catalogue is not None
        part = self._table.part(chunk)
        for node, offset in source.catalogue.find(part.digest):
            place = source.locate(node, offset, part.size)
            if place is not None:
                self._known.put(chunk, number, place)
                return True
        return False

    def _compare(
        self, source: CopySource, number: int, missing: "array[int]", owners: ChunkOwners
    ) -> int:
        """Finds files of the same path and size; returns how many chunks that gave places."""
        index = self._layer.index
        nodes = {owners.nodes[chunk] for chunk in missing if chunk not in self._likely}
        twins = dict(same_files(index, source.index, nodes))
        found = self._put_all(self._likely, source, number, missing, owners, twins)
        nodes = {
            owners.nodes[chunk]
            for chunk in missing
            if chunk not in self._likely and chunk not in self._possible
        }
        if 0 < len(nodes) <= limits.COPY_NAMES:
            twins = dict(namesakes(index, source.index, nodes))
            found += self._put_all(self._possible, source, number, missing, owners, twins)
        return found

    def _put_all(
        self,
        places: Places,
        source: CopySource,
        number: int,
        missing: "array[int]",
        owners: ChunkOwners,
        twins: Mapping[int, int],
    ) -> int:
        found = 0
        for chunk in missing:
            twin = twins.get(owners.nodes[chunk])
            if twin is not None and chunk not in places:
                size = self._table.part(chunk).size
                place = source.locate(twin, owners.offsets[chunk], size)
                if place is not None:
                    places.put(chunk, number, place)
                    found += 1
        return found

    def _sum_up(self) -> None:
        table, present = self._table, self._layer.present
        spans = array("I")
        for span in range(table.span_count):
            if span not in present and all(map(self._has_place, table.chunks_of_span(span))):
                spans.append(span)
                self.size += _extent(table, span)
        self.spans = spans
        for span in spans:
            self._can_copy[span] = 1

    def expected_size(self) -> int:
        """About how many bytes of the blob can be had: guesses count as far as a sample is right.

        Paths and sizes may be the same where the bytes are not, as of compiled files with a date.
        """
        table = self._table
        guessed = [
            span
            for span in self.spans
            if any(chunk not in self._known for chunk in table.chunks_of_span(span))
        ]
        sizes = {span: _extent(table, span) for span in guessed}
        guess, sampled, right = sum(sizes.values()), 0, 0
        damaged: set[Digest] = set()
        for span in guessed[:: len(guessed) // limits.COPY_SAMPLE + 1]:
            if sampled > limits.COPY_SAMPLE_SIZE:
                break
            sampled += sizes[span]
            if self._is_sound(span, self.sampled, damaged):
                right += sizes[span]
            else:
                self._can_copy[span] = 0
        self.sampled.damaged = tuple(sorted(damaged))
        return self.size - guess + (guess * right // sampled if sampled else 0)

    def _has_place(self, chunk: int) -> bool:
        if any(chunk in places for places in self._places):
            return True
        is_pinned = self._table.is_chunk_pinned(chunk)
        return is_pinned and self._table.digest(chunk) in _WELL_KNOWN


def plan_copies(
    layer: LazyLayerStore,
    candidates: Sequence[Candidate],
    layout: StoreLayout,
    stopped: threading.Event,
) -> CopyPlan | None:
    """Finds out what of a layer can be copied; None if it would save too little.

    What is copied cannot be part of the layer's proof any more: for next to nothing that is not
    worth it. The layer gets its catalogue, for others to copy from it.

    Args:
        layer: Lazy, and open.
        candidates: Where to look, the likeliest first.
        stopped: Ends the search early.
    """
    table = layer.table
    if not isinstance(table, ChunkTable) or layer.present.is_full:
        return None
    owners = ChunkOwners(table, layer.index)
    if not (layer.directory / CHUNKS_NAME).exists():
        with contextlib.suppress(OSError):  # no room: others will miss it, nobody else
            write_catalogue(layer.directory, table, owners)
    plan = CopyPlan(layer, table)
    plan.search(candidates, layout, owners, stopped)
    least = limits.COPY_LEAST_SHARE * table.blob_size
    is_worthwhile = layer.forgoes_proof or plan.expected_size() >= least
    return plan if plan.spans and is_worthwhile else None


def _extent(table: ChunkTable, span: int) -> int:
    start, end = table.compressed_range(span)
    return end - start
