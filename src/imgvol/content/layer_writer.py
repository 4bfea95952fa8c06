"""Writes one layer as it streams by: a sparse data file, and own files for large entries.

Theory of operation. The pulling thread hands over pieces of the uncompressed tar in order, each
after the parser has seen it, so that every large payload that begins inside a piece is announced
(`expect`) before the piece is written. A piece goes into the data file at its own offset, except
for the parts that belong to announced payloads: these go to `files/<n>`, and stay holes in the
data file. On the way each piece of the tar gets a digest of its own (`pieces`). Everything lies in
one directory below `ingest/` until `publish` has made it durable and
renamed it: a crash leaves either nothing or a complete layer.

Everything here blocks; one thread at a time uses a writer.
"""

import contextlib
import hashlib
import os
import secrets
import shutil
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from imgvol.content.card import CARD_NAME, LayerCard, OwnFile
from imgvol.content.durable import (
    start_writeback,
    sync_directory,
    translate_os_errors,
    write_all,
    write_file,
)
from imgvol.content.exchange import put_directory
from imgvol.content.layout import DATA_NAME, FILES_NAME, INDEX_NAME, StoreLayout
from imgvol.content.open_file import OpenFile
from imgvol.content.pieces import PIECES_NAME, PieceHasher
from imgvol.content.records.layers import LayerRecord
from imgvol.content.space import SpaceLedger
from imgvol.layers.tar import TarMember
from imgvol.oci.digest import Digest

# Dirty data that may pile up before the kernel is asked to begin writing.
WRITEBACK_STEP: Final = 16 << 20

_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class LayerWriter:
    """One layer in the making; a context manager that removes what was not published.

    Args:
        layout: Of the store.
        space: Counts what is written; None: nobody does.
    """

    def __init__(self, layout: StoreLayout, space: SpaceLedger | None = None) -> None:
        self._layout = layout
        self._space = space or SpaceLedger()
        self._taken = 0
        self._directory = layout.ingest / f"layer-{secrets.token_hex(8)}"
        self._expected: deque[_LargeFile] = deque()
        self._own_files: dict[int, OwnFile] = {}
        self._pieces = PieceHasher()
        self._length = 0
        self._written_back = 0
        with translate_os_errors("begin a layer"):
            self._directory.mkdir(mode=0o700)
            (self._directory / FILES_NAME).mkdir(mode=0o700)
            self._data = os.open(self._directory / DATA_NAME, _CREATE, 0o600)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._data)
        for large in self._expected:
            large.close()
        mark = self._space.begin_giving()
        shutil.rmtree(self._directory, ignore_errors=True)
        self._space.give(self._taken, mark)

    @property
    def directory(self) -> Path:
        """Where it writes, until it publishes."""
        return self._directory

    def expect(self, number: int, member: TarMember) -> None:
        """Announces that a member's payload goes to `files/<number>`."""
        with translate_os_errors("write a layer"):
            path = self._directory / FILES_NAME / str(number)
            self._expected.append(_LargeFile.create(number, path, member))
        self._finish_passed()

    def write(self, piece: bytes | memoryview, position: int) -> None:
        """Writes a piece of the uncompressed tar, which begins at `position`.

        Raises:
            StoreFull: No room.
        """
        view = memoryview(piece)
        with self._space.writing(len(view)):
            self._write(view, position)
        self._taken += len(view)

    def _write(self, view: memoryview, position: int) -> None:
        end = position + len(view)
        self._length = end
        self._pieces.update(view)
        with translate_os_errors("write a layer"):
            cursor = position
            while self._expected and self._expected[0].start < end:
                large = self._expected[0]
                if cursor < large.start:
                    write_all(self._data, view[cursor - position : large.start - position], cursor)
                    cursor = large.start
                stop = min(large.end, end)
                large.write(view[cursor - position : stop - position])
                cursor = stop
                if cursor < large.end:
                    return
                self._close_first()
            if cursor < end:
                write_all(self._data, view[cursor - position :], cursor)
            if end - self._written_back >= WRITEBACK_STEP:
                start_writeback(self._data, self._written_back, end - self._written_back)
                self._written_back = end

    def publish(self, record: LayerRecord, index: bytes, referenced: Collection[int]) -> None:
        """Makes the layer durable and visible. Call it only when both digests have been checked.

        Args:
            record: What the layer is; its digest is its name in the store.
            index: The serialised LayerIndex.
            referenced: The numbers of the large files that the index still points at.

        Raises:
            StoreFull: No room.
            LocalError: The filesystem failed, a failed fsync included.
        """
        self._finish_passed()
        files = self._directory / FILES_NAME
        with translate_os_errors("store a layer"):
            dropped = self._own_files.keys() - set(referenced)
            for number in dropped:
                (files / str(number)).unlink()
                del self._own_files[number]
            # Reads of the tail of a sparse data file must meet zeros, not the end of the file.
            os.ftruncate(self._data, self._length)
            os.fdatasync(self._data)
            write_file(self._directory / INDEX_NAME, index)
            card = self._card(record, is_whole=not dropped)
            write_file(self._directory / CARD_NAME, card.to_bytes())
            pieces = self._pieces.finish()
            write_file(self._directory / PIECES_NAME, pieces.to_bytes(record.digest))
            for number in sorted(referenced):
                _sync_file(files / str(number))
                if content := self._own_files[number].content:
                    self._share(files / str(number), content.encoded)
            sync_directory(files)
            sync_directory(self._directory)
            # One may be there: left between rename and record, a twin's, or damaged since. Ours is
            # as good as any, and whole.
            replaced = put_directory(self._directory, self._layout.layer(record.digest))
            sync_directory(self._layout.layers)
        self._taken = 0
        if replaced is not None:
            shutil.rmtree(replaced, ignore_errors=True)

    def share_data(self, twin: Digest) -> None:
        """One data file for this layer and a stored one, if theirs are the same.

        That is so of layers with one diff ID; but theirs may have changed since it was verified,
        and is compared byte by byte. Call it before `publish`, when all has been written.
        """
        self._finish_passed()
        # Gone meanwhile, no hard links here, or too many: sharing is a saving, not a promise.
        with contextlib.suppress(OSError):
            os.ftruncate(self._data, self._length)
            path = self._layout.layer(twin) / DATA_NAME
            theirs = OpenFile(path, os.O_RDONLY)
            if _is_same(self._data, theirs.fd):
                link = self._directory / f"{DATA_NAME}.link"
                os.link(path, link)
                # What was compared, or what has been put in its place since?
                if os.path.samestat(os.fstat(theirs.fd), os.lstat(link)):
                    os.replace(link, self._directory / DATA_NAME)
                    os.ftruncate(self._data, 0)  # nobody's any more: nothing to be written back
                else:
                    link.unlink()

    def _card(self, record: LayerRecord, *, is_whole: bool) -> LayerCard:
        own_files = tuple(sorted(self._own_files.values(), key=lambda file: file.position))
        card = LayerCard(record=record, own_files=own_files, proof=record.diff_id)
        if is_whole:
            return card
        hasher = record.diff_id.hasher()
        self._pieces = PieceHasher()
        for piece in card.iter_pieces(self._directory):
            hasher.update(piece)
            self._pieces.update(piece)
        return replace(card, proof=Digest.from_hasher(hasher))

    def _share(self, path: Path, content: str) -> None:
        """One file on disk and in the page cache for equal large files of any layers."""
        shared = self._layout.shared_file(content)
        # No hard links here, too many on one file, or collected in this moment: sharing is a
        # saving, not a promise.
        with contextlib.suppress(OSError):
            try:
                os.link(path, shared)
            except FileExistsError:
                if shared.stat().st_size == path.stat().st_size:
                    twin = path.with_name(f"{path.name}.link")
                    os.link(shared, twin)
                    os.replace(twin, path)

    def _finish_passed(self) -> None:
        """Closes empty payloads: no piece will ever reach them."""
        while self._expected and self._expected[0].start == self._expected[0].end:
            self._close_first()

    def _close_first(self) -> None:
        large = self._expected.popleft()
        large.close()
        self._own_files[large.number] = OwnFile(
            number=large.number, position=large.start, pieces=large.pieces, content=large.content
        )


def _is_same(one: int, other: int) -> bool:
    """Whether two files hold the same."""
    size = os.fstat(one).st_size
    return os.fstat(other).st_size == size and all(
        os.pread(one, WRITEBACK_STEP, at) == os.pread(other, WRITEBACK_STEP, at)
        for at in range(0, size, WRITEBACK_STEP)
    )


@dataclass(slots=True)
class _LargeFile:
    """A large payload on its way into a file of its own."""

    number: int
    fd: int
    start: int
    end: int
    pieces: tuple[tuple[int, int], ...]
    is_sparse: bool
    _written: int = 0
    _hasher: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    @classmethod
    def create(cls, number: int, path: Path, member: TarMember) -> Self:
        fd = os.open(path, _CREATE, 0o600)
        try:
            os.ftruncate(fd, member.size)
        except BaseException:
            os.close(fd)
            raise
        return cls(
            number=number,
            fd=fd,
            start=member.payload_offset,
            end=member.payload_offset + member.payload_size,
            pieces=((0, member.size),) if member.sparse is None else member.sparse,
            is_sparse=member.sparse is not None,
        )

    def write(self, view: memoryview) -> None:
        """Writes the next bytes of the payload where they belong in the file."""
        if not self.is_sparse:
            self._hasher.update(view)
            write_all(self.fd, view, self._written)
            self._written += len(view)
            return
        passed = 0
        for offset, size in self.pieces:
            if not view:
                break
            if passed + size > self._written:
                within = self._written - passed
                part = view[: size - within]
                write_all(self.fd, part, offset + within)
                self._written += len(part)
                view = view[len(part) :]
            passed += size

    @property
    def content(self) -> Digest | None:
        """The content's digest; None for sparse files, whose holes would have to be hashed."""
        return None if self.is_sparse else Digest.from_hasher(self._hasher)

    def close(self) -> None:
        start_writeback(self.fd, 0, 0)
        os.close(self.fd)


def _sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)
