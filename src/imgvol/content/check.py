"""Compares what is recorded with what lies in the store: `fsck`, without reading the data itself.

Every check gives `Finding`s and changes nothing. `mend` repairs one: it removes what is wrong, so
that it is fetched again. A store in use can be checked, too; what is written in that moment may
look wrong once, but not twice (`Store.check`).

Everything that blocks is a plain function.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import trio

from imgvol.content import inventory
from imgvol.content.blobs import BlobStore
from imgvol.content.card import LayerCard
from imgvol.content.layout import DATA_NAME, FILES_NAME, INDEX_NAME, StoreLayout
from imgvol.content.lazy_directory import BLOB_NAME, SPANS_NAME, TABLE_NAME
from imgvol.content.open_file import read_whole
from imgvol.content.place import Place
from imgvol.content.records import LayerRecord, Records
from imgvol.content.span_map import SpanMap
from imgvol.errors import ImgvolError, NotFound, StoreDamaged
from imgvol.layers.index import LayerIndex
from imgvol.layers.lazy.open import open_span_table
from imgvol.oci.digest import Digest


class Remedy(Enum):
    """What `mend` does about a finding."""

    REBUILD = "the database is set aside and rebuilt"
    FORGET_LAYER = "the layer is removed, to be pulled again"
    DROP_ROWS = "they are dropped"
    PULL = "pull the image again"
    REMOVE = "it is removed"
    DETACH = "the dead mount is detached"
    UNMOUNT = "unmount it, and mount it again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        subject: What it is of: `layer sha256:…`, `database`, a path.
        problem: What is wrong.
        digest: Of the layer, image or document, if it is one's.
        path: What `Remedy.REMOVE` removes.
    """

    subject: str
    problem: str
    remedy: Remedy
    digest: Digest | None = None
    path: Path | None = None

    @property
    def can_be_mended(self) -> bool:
        """Whether `mend` knows what to do."""
        return self.remedy in {Remedy.FORGET_LAYER, Remedy.DROP_ROWS, Remedy.REMOVE}


async def check_store(layout: StoreLayout, records: Records) -> list[Finding]:
    """Everything that is wrong in a store whose database can be opened."""
    database = [
        Finding(subject="database", problem=problem, remedy=Remedy.REBUILD)
        for problem in await records.check()
    ]
    database += [
        Finding(
            subject="database",
            problem=f"rows of {table} belong to no {parent}",
            remedy=Remedy.DROP_ROWS,
        )
        for table, parent in sorted(await records.dangling())
    ]
    layers = await records.layers()
    places = {record.digest: await records.place(record) for record in layers if record.is_in_place}
    documents = await records.documents()
    incomplete = await records.incomplete_images()

    def check_files() -> list[Finding]:
        return [
            *(finding for record in layers for finding in _check_layer(layout, record, places)),
            *_check_documents(layout, documents),
            *_check_strays(layout, layers),
        ]

    found = await trio.to_thread.run_sync(check_files)
    found += [
        Finding(
            subject=f"image {manifest}",
            problem="a layer is not in the store",
            remedy=Remedy.PULL,
            digest=manifest,
        )
        for manifest in incomplete
    ]
    return database + found


async def mend(layout: StoreLayout, records: Records, finding: Finding) -> None:
    """Repairs what a check has found. Nobody else may use the store."""
    match finding.remedy:
        case Remedy.FORGET_LAYER:
            assert finding.digest is not None
            await records.forget_layer(finding.digest)
            for home in inventory.homes(layout):
                stray = home / finding.digest.encoded
                await trio.to_thread.run_sync(inventory.remove_stray, stray)
        case Remedy.DROP_ROWS:
            await records.drop_dangling()
        case Remedy.REMOVE:
            assert finding.path is not None
            await trio.to_thread.run_sync(inventory.remove_stray, finding.path)


def _check_layer(
    layout: StoreLayout, record: LayerRecord, places: dict[Digest, Place | None]
) -> Iterator[Finding]:
    directory = inventory.home_of(layout, record) / record.digest.encoded
    for problem in _layer_problems(directory, record, places):
        yield Finding(
            subject=f"layer {record.digest}",
            problem=problem,
            remedy=Remedy.FORGET_LAYER,
            digest=record.digest,
        )


def _layer_problems(
    directory: Path, record: LayerRecord, places: dict[Digest, Place | None]
) -> Iterator[str]:
    if not directory.is_dir() or directory.is_symlink():
        yield "its files are gone"
        return
    if record.is_damaged or record.is_refused:
        assert record.fault is not None
        yield f"it was found to be bad: {record.fault.reason}"
        return
    try:
        LayerIndex(_read(directory / INDEX_NAME))
        if record.is_in_place:
            place = places[record.digest]
            if place is None:
                yield "where it lies is not recorded"
            elif not place.is_intact():
                yield f"the file that it is read from has changed: {os.fsdecode(place.path)}"
        elif record.is_complete:
            _check_complete(directory, record)
        else:
            _check_lazy(directory)
    except StoreDamaged as exc:
        yield str(exc)


def _check_complete(directory: Path, record: LayerRecord) -> None:
    card = LayerCard.load(directory, record.digest)
    if (card.record.diff_id, card.record.unpacked_size) != (record.diff_id, record.unpacked_size):
        raise StoreDamaged("its card is another layer's")
    _check_size(directory / DATA_NAME, record.unpacked_size)
    for file in card.own_files:
        end = max((offset + size for offset, size in file.pieces), default=0)
        _check_size(directory / FILES_NAME / str(file.number), end, is_exact=False)


def _check_lazy(directory: Path) -> None:
    table = open_span_table(_read(directory / TABLE_NAME))
    _check_size(directory / DATA_NAME, table.data_size)
    _check_size(directory / BLOB_NAME, table.blob_size)
    if SpanMap(directory / SPANS_NAME, table.span_count).is_damaged:
        raise StoreDamaged("the map of what is here is damaged, or does not fit its table")


def _check_size(path: Path, expected: int, *, is_exact: bool = True) -> None:
    try:
        status = os.lstat(path)
    except OSError as exc:
        raise StoreDamaged("a file is missing", file=path.name) from exc
    actual = status.st_size
    if actual < expected or (is_exact and actual > expected):
        raise StoreDamaged(
            "a file has another size", file=path.name, expected=expected, actual=actual
        )


def _read(path: Path) -> bytes:
    try:
        return read_whole(path)
    except OSError as exc:
        raise StoreDamaged("a file cannot be read", file=path.name, reason=exc.strerror) from exc


def _check_documents(
    layout: StoreLayout, documents: dict[Digest, frozenset[Digest]]
) -> Iterator[Finding]:
    """Documents of images: by the image's manifest."""
    blobs = BlobStore(layout)
    for manifest, needed in documents.items():
        for digest in sorted(needed):
            problem = ""
            try:
                blobs.read(digest)
            except NotFound:
                problem = "is gone"
            except (ImgvolError, OSError):
                problem = "has changed"
            if problem:
                yield Finding(
                    subject=f"image {manifest}",
                    problem=f"the document {digest} {problem}",
                    remedy=Remedy.PULL,
                    digest=manifest,
                )


def _check_strays(layout: StoreLayout, layers: Sequence[LayerRecord]) -> Iterator[Finding]:
    """What belongs to nothing. Documents and records that nobody needs are not wrong: garbage."""
    for path in inventory.strays(layout, layers):
        yield _stray(layout, path, "no record speaks of it")
    known = {layout.blob(digest) for digest in BlobStore(layout).sizes()}
    for algorithm in layout.blobs.iterdir():
        for path in algorithm.iterdir():
            if path not in known:
                yield _stray(layout, path, "it is no document")
    for content, users in inventory.shared_file_users(layout).items():
        if not users:
            yield _stray(layout, layout.shared_file(content), "no layer links to it")


def _stray(layout: StoreLayout, path: Path, problem: str) -> Finding:
    return Finding(
        subject=str(path.relative_to(layout.root)),
        problem=problem,
        remedy=Remedy.REMOVE,
        path=path,
    )
