"""Files inside a tar archive, read in place.

The archive is indexed once: only headers are read, contents are jumped over. Nothing is extracted,
so a name is no more than a key: it is cleaned as if the archive's top were the root, and `..` stays
there. Of equal names the last one counts. Links lead to other names of the archive, a few at most.

A compressed archive cannot be read at random: it is decompressed once, into a temporary file
without a name, which the system removes whatever happens to us.
"""

import itertools
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from imgvol import limits
from imgvol.errors import (
    ImgvolError,
    InvalidDocument,
    InvalidLayer,
    LimitExceeded,
    RegistryUnavailable,
    Unsupported,
)
from imgvol.layers.tar import MemberType, TarMember, TarParser
from imgvol.sources.files import FileRange, RangeReader, local_errors, open_file
from imgvol.sources.packing import SNIFFED, Packing, iter_unpacked

_BLOCK: Final = 512
# Headers are read by this much: small members are taken many at a time, large ones jumped over.
_HEADERS_PIECE: Final = 16 * limits.KIB


class _Stored(NamedTuple):
    offset: int
    size: int


class _Link(NamedTuple):
    target: bytes


class ArchiveFiles:
    """The files of a tar archive. Made by `open_archive`.

    Attributes:
        path: Of the archive.
        packing: How it is compressed; what is read then is a temporary copy.
    """

    def __init__(
        self,
        path: str,
        descriptor: int,
        entries: dict[bytes, _Stored | _Link],
        packing: Packing = Packing.NONE,
    ) -> None:
        self.path = path
        self.packing = packing
        self._descriptor = descriptor
        self._entries = entries

    def open(self, path: str) -> FileRange | None:
        """Open a file of the archive, through links; None when there is none of this name.

        Raises:
            InvalidDocument: Its links go round in a circle.
        """
        name = _clean(path.encode("utf-8", "surrogateescape"))
        for _ in range(limits.SYMLINKS_FOLLOWED):
            match self._entries.get(name):
                case None:
                    return None
                case _Link(target):
                    name = target
                case _Stored(offset, size):
                    with local_errors(self.path):
                        return FileRange(os.dup(self._descriptor), offset, size)
        raise InvalidDocument("too many links in the archive", archive=self.path, member=path)

    def close(self) -> None:
        """Close the archive. Idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def open_archive(
    path: str, *, stop: threading.Event, spool_directory: str | None = None
) -> ArchiveFiles:
    """Open and index an archive. Blocks: for long, when it is compressed.

    Args:
        path: The archive.
        stop: Setting it ends the work soon, with RegistryUnavailable.
        spool_directory: Where a compressed archive is decompressed; None: the system's choice.

    Raises:
        NotFound: There is no such file.
        InvalidDocument: It is no tar archive, or a damaged one.
        Unsupported: It is compressed in a way that we do not read.
        LimitExceeded: It is too large, or has too many members.
        StoreFull: No room to decompress it.
    """
    with open_file(path) as opened:
        return read_archive(path, opened, stop=stop, spool_directory=spool_directory)


def read_archive(
    path: str, opened: FileRange, *, stop: threading.Event, spool_directory: str | None = None
) -> ArchiveFiles:
    """As `open_archive`, of a file that is open; `path` is for messages."""
    with _archive_errors(path), local_errors(path):
        packing = Packing.of(opened.read(0, SNIFFED))
        if packing is not Packing.NONE:
            return _open_spooled(path, opened, packing, stop, spool_directory)
        entries = dict(_iter_entries(opened, stop))
        return ArchiveFiles(path, opened.detach(), entries)


def spool_stream(
    path: str, pieces: Iterable[bytes], *, stop: threading.Event, spool_directory: str
) -> ArchiveFiles:
    """As `open_archive`, of what comes from a pipe, which is kept in a temporary file."""
    source = iter(pieces)
    head = b""
    with _archive_errors(path), local_errors(path):
        while len(head) < SNIFFED and (piece := next(source, None)) is not None:
            head += piece
        packing = Packing.of(head)
        return _spool(path, itertools.chain([head], source), packing, stop, spool_directory)


def _open_spooled(
    path: str,
    packed: FileRange,
    packing: Packing,
    stop: threading.Event,
    directory: str | None,
) -> ArchiveFiles:
    pieces = RangeReader(packed, stop=stop).iter_pieces()
    return _spool(path, pieces, packing, stop, directory or tempfile.gettempdir())


def _spool(
    path: str, pieces: Iterable[bytes], packing: Packing, stop: threading.Event, directory: str
) -> ArchiveFiles:
    """Decompresses an archive into a temporary file without a name, and indexes that."""
    with local_errors(directory), tempfile.TemporaryFile(dir=directory) as spool:
        size = 0
        for piece in iter_unpacked(pieces, packing):
            size += len(piece)
            if size > limits.ARCHIVE_SPOOL_SIZE:
                raise LimitExceeded(
                    "the archive is too large to be decompressed for you",
                    hint="Decompress it yourself, and give the plain tar.",
                    limit="ARCHIVE_SPOOL_SIZE",
                    allowed=limits.ARCHIVE_SPOOL_SIZE,
                )
            spool.write(piece)
        spool.flush()
        with FileRange(os.dup(spool.fileno()), 0, size) as plain:
            entries = dict(_iter_entries(plain, stop))
            return ArchiveFiles(path, plain.detach(), entries, packing)


def _iter_entries(
    archive: FileRange, stop: threading.Event
) -> Iterator[tuple[bytes, _Stored | _Link]]:
    """The archive's members by clean name, in order."""
    names_size = 0
    for count, member in enumerate(_iter_members(archive, stop), 1):
        names_size += len(member.name) + len(member.linkname)
        if count > limits.ARCHIVE_ENTRIES:
            raise _too_much("members", "ARCHIVE_ENTRIES", limits.ARCHIVE_ENTRIES)
        if names_size > limits.INDEX_STRINGS_SIZE:
            raise _too_much("bytes in names", "INDEX_STRINGS_SIZE", limits.INDEX_STRINGS_SIZE)
        entry = _entry(member)
        if entry is not None:
            yield _clean(member.name), entry


def _entry(member: TarMember) -> _Stored | _Link | None:
    match member.type:
        case MemberType.FILE if member.sparse is None:
            return _Stored(member.payload_offset, member.payload_size)
        case MemberType.HARDLINK:
            return _Link(_clean(member.linkname))
        case MemberType.SYMLINK:
            parent = b"" if member.linkname.startswith(b"/") else member.name.rpartition(b"/")[0]
            return _Link(_clean(parent + b"/" + member.linkname))
        case _:
            return None


def _iter_members(archive: FileRange, stop: threading.Event) -> Iterator[TarMember]:
    """Members with offsets in the archive. A new parser starts after every jump over a content."""
    parser, base, position = TarParser(), 0, 0
    while not parser.is_ended:
        if stop.is_set():
            raise RegistryUnavailable("reading was cancelled")
        data = archive.read(position, _HEADERS_PIECE)
        if not data:
            parser.finish()
            return
        position += len(data)
        next_header = position
        for member in parser.feed(data):
            start = base + member.payload_offset
            end = start + member.payload_size
            if end > archive.size:
                raise InvalidLayer("tar archive ends inside the content of a member", offset=start)
            next_header = end + -end % _BLOCK
            yield member._replace(payload_offset=start)
        if next_header > position:
            parser, base, position = TarParser(), next_header, next_header


def _clean(name: bytes) -> bytes:
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in {b"", b"."}:
            parts.append(part)
    return b"/".join(parts)


@contextmanager
def _archive_errors(path: str) -> Iterator[None]:
    """Say of the archive what the rooms below say of layers."""
    try:
        yield
    except InvalidLayer as error:
        raise InvalidDocument(
            f"the archive is damaged: {error.message}",
            hint=_name_hint(path),
            archive=path,
            offset=error.fields.get("offset"),
        ) from error
    except LimitExceeded as error:
        fields = dict(error.fields)
        hint = error.hint
        if fields["limit"] == "ZSTD_WINDOW":
            fields["limit"] = "ARCHIVE_ZSTD_WINDOW"
            hint = "Compress it again without --ultra and --long: zstd -d --long=31 FILE; zstd TAR."
        message = error.message.replace("layer", "archive", 1)
        raise LimitExceeded(message, hint=hint, **{"archive": path, **fields}) from error
    except Unsupported as error:
        raise Unsupported(
            error.message.replace("layer", "archive", 1),
            hint="Decompress it first, and give the plain tar.",
            archive=path,
        ) from error


def _name_hint(path: str) -> str:
    """A word on a name that claims something else than the bytes do."""
    try:
        with open_file(path) as opened:
            found = Packing.of(opened.read(0, SNIFFED))
    except ImgvolError:
        return ""
    claimed = Packing.named(path)
    if claimed is None or claimed is found:
        return ""
    return (
        f"Its name says {claimed.value or 'not compressed'}, "
        f"its first bytes say {found.value or 'not compressed'}."
    )


def _too_much(what: str, limit: str, allowed: int) -> LimitExceeded:
    return LimitExceeded(f"the archive has too many {what}", limit=limit, allowed=allowed)
