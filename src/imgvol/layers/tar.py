"""The tar format: a strict push parser, bytes in and members out.

Rule 1: the parser wants one of three things at any time: to skip so many bytes (payloads, which it
never looks at nor copies), to collect so many (a header block, the body of a special header), or,
after the end, nothing. What it collects is bounded by limits.TAR_SPECIAL_SIZE.

Rule 2: a collected piece goes whole to the current step, a method that takes the bytes, chooses the
next step, and returns a member when one is complete. So input may be cut anywhere.

Rule 3: one number, the stored size after all overrides, says both where a payload ends and where
the next header is looked for. Readers with two such numbers show different people different
archives (CVE-2025-62518).

Special headers describe the next member: GNU `L` and `K` (long names) and PAX `x`. Of several of a
kind the last one counts, whole. PAX `g` is checked and otherwise ignored. Where the formats leave
room, the behaviour is that of Go's archive/tar, which the tools that make and unpack images use.
"""

import enum
from collections.abc import Callable
from typing import Final, NamedTuple

from imgvol import limits
from imgvol.errors import ContentError, InvalidLayer, LimitExceeded
from imgvol.layers.header import BLOCK, FormatError, Header, parse_header, parse_text
from imgvol.layers.pax import apply_records, parse_records
from imgvol.layers.sparse import BlockMap, Piece, RecordMap, TextMap, check_pieces, is_sparse

_ZERO_BLOCK: Final = bytes(BLOCK)
_DEVICE_NUMBERS: Final = range(1 << 32)


class MemberType(enum.Enum):
    """What a member is; the value is the usual type flag of its header."""

    FILE = b"0"
    HARDLINK = b"1"
    SYMLINK = b"2"
    CHAR = b"3"
    BLOCK = b"4"
    DIRECTORY = b"5"
    FIFO = b"6"


_OLD_FILE: Final = b"\0"  # or a directory, when the name ends in a slash
_OLD_SPARSE_FILE: Final = b"S"
_TYPES: Final = {kind.value: kind for kind in MemberType} | {
    _OLD_FILE: MemberType.FILE,
    b"7": MemberType.FILE,  # "contiguous", which meant something to one file system long ago
    _OLD_SPARSE_FILE: MemberType.FILE,
}
_LINKS: Final = frozenset({MemberType.HARDLINK, MemberType.SYMLINK})
_DEVICES: Final = frozenset({MemberType.CHAR, MemberType.BLOCK})


class TarMember(NamedTuple):
    """One member of an archive, as its headers give it: nothing is cleaned, mapped or clamped.

    A tuple and not a dataclass: layers have millions of members, and a frozen dataclass of this
    width takes several times as long to make.

    Attributes:
        name: The path as written, which may be empty, absolute, or lead out of the archive.
        type: What it is.
        mode: Permission, set-id and sticky bits.
        uid: Owner. Any 64-bit number: the archive decides.
        gid: Group, likewise.
        size: Size of a file's content, holes included; 0 for everything else.
        mtime_ns: Nanoseconds since 1970; may be negative or need more than 64 bits.
        linkname: Target of a hard or symbolic link, otherwise empty.
        devmajor: Of a character or block device, otherwise 0; 32 bits.
        devminor: Likewise.
        xattrs: Extended attributes, names without prefix, sorted.
        payload_offset: Where the stored content starts in the uncompressed archive.
        payload_size: How much is stored there.
        sparse: None, or for a file with holes: offset in the file and size of each stored piece,
            in order; they lie one after another from payload_offset.
    """

    name: bytes
    type: MemberType
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_ns: int = 0
    linkname: bytes = b""
    devmajor: int = 0
    devminor: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    payload_offset: int = 0
    payload_size: int = 0
    sparse: tuple[Piece, ...] | None = None


class TarParser:
    """Finds the members of a tar archive that arrives in pieces of any size.

    A member is reported as soon as its headers have passed, before its payload. Whatever follows
    the end of the archive is accepted and counted, for the layer's digest covers it too.

        parser = TarParser()
        for piece in pieces:
            for member in parser.feed(piece):
                ...
        parser.finish()

    Attributes:
        offset: Bytes seen so far.
    """

    def __init__(self) -> None:
        self.offset = 0
        self._step: Callable[[bytes], TarMember | None] = self._take_header
        self._wanted = BLOCK
        self._collected = bytearray()
        # Bytes to pass over before the next step. The last of them, the padding, may be missing.
        self._skip = 0
        self._padding = 0
        # What must not be cut off by the end of the archive; empty between members.
        self._inside = ""
        self._is_ended = False
        self._failure: ContentError | None = None
        self._members = 0
        self._header_offset = 0
        # From special headers, for the next member.
        self._records: dict[bytes, bytes] = {}
        self._long_name = b""
        self._long_link = b""

    @property
    def is_ended(self) -> bool:
        """Whether the end blocks have passed; what follows them is no part of the archive."""
        return self._is_ended

    def feed(self, data: bytes | memoryview) -> list[TarMember]:
        """Take the next bytes of the archive.

        Returns:
            The members whose headers ended in them, in order.

        Raises:
            InvalidLayer: This is no tar archive that we accept; `offset` is the header's.
            LimitExceeded: It is larger than a limit allows. Both are final.
        """
        if self._failure is not None:
            raise self._failure
        try:
            return self._feed(memoryview(data))
        except FormatError as error:
            self._failure = InvalidLayer(f"bad tar archive: {error}", offset=self._header_offset)
            raise self._failure from error
        except ContentError as error:
            self._failure = error
            raise

    def finish(self) -> None:
        """Say that the archive ends here.

        Raises:
            InvalidLayer: It ends inside a header or a payload. End blocks may be missing, and so
                may the padding of the last payload.
        """
        if self._failure is not None:
            raise self._failure
        if self._is_ended:
            return
        inside = self._inside
        if self._skip > self._padding:
            inside = "the content of a member"
        elif self._collected and not inside:
            inside = "a header"
        if inside:
            raise InvalidLayer(f"tar archive ends inside {inside}", offset=self.offset)

    def _feed(self, view: memoryview) -> list[TarMember]:
        members: list[TarMember] = []
        base, size = self.offset, len(view)
        if base + size > limits.TAR_SIZE:
            raise _too_large()
        position = 0
        while position < size and not self._is_ended:
            if self._skip:
                step = min(self._skip, size - position)
                self._skip -= step
                position += step
                continue
            end = position + self._wanted
            if end <= size and not self._collected:
                piece = bytes(view[position:end])
            else:
                end = min(end - len(self._collected), size)
                self._collected += view[position:end]
                if len(self._collected) < self._wanted:
                    break
                piece = bytes(self._collected)
                self._collected.clear()
            position = end
            self.offset = base + position
            member = self._step(piece)
            if member is not None:
                members.append(member)
        self.offset = base + size
        return members

    # --- steps: each takes what was wanted and says what is wanted next ---------------------------

    def _take_header(self, block: bytes) -> TarMember | None:
        self._header_offset = self.offset - BLOCK
        if block == _ZERO_BLOCK:
            self._step = self._take_second_zero_block
            return None
        header = parse_header(block)
        kind = _TYPES.get(header.flag)
        if kind is None:
            self._begin_special(header)
            return None
        return self._begin_member(header, kind, block)

    def _take_second_zero_block(self, block: bytes) -> None:
        if block != _ZERO_BLOCK:
            raise FormatError("data after a single zero block")
        self._is_ended = True

    def _begin_special(self, header: Header) -> None:
        step = {
            b"x": self._take_records,
            b"g": self._take_global_records,
            b"L": self._take_long_name,
            b"K": self._take_long_link,
        }.get(header.flag)
        if step is None:
            raise FormatError(f"member of unknown type {header.flag!r}")
        if header.size < 0:
            raise FormatError("negative size")
        if header.size > limits.TAR_SPECIAL_SIZE:
            raise LimitExceeded(
                "extended tar header too large",
                limit="TAR_SPECIAL_SIZE",
                allowed=limits.TAR_SPECIAL_SIZE,
                offset=self._header_offset,
            )
        if header.size:
            self._want(header.size, step, inside="an extended header")
        else:
            step(b"")

    def _take_records(self, body: bytes) -> None:
        self._records = parse_records(body)
        self._want_header(after=len(body))

    def _take_global_records(self, body: bytes) -> None:
        parse_records(body)
        # Go reports this header as a member of its own, which uses up what came before it.
        self._forget_special()
        self._want_header(after=len(body))

    def _take_long_name(self, body: bytes) -> None:
        self._long_name = parse_text(body)
        self._want_header(after=len(body))

    def _take_long_link(self, body: bytes) -> None:
        self._long_link = parse_text(body)
        self._want_header(after=len(body))

    # --- members ----------------------------------------------------------------------------------

    def _begin_member(self, header: Header, kind: MemberType, block: bytes) -> TarMember | None:
        if kind is MemberType.FILE and header.size < 0:
            raise FormatError("negative size")
        records = self._records
        if records:
            apply_records(records, header)
        header.name = self._long_name or header.name
        header.linkname = self._long_link or header.linkname
        self._forget_special()
        if header.flag == _OLD_FILE and header.name.endswith(b"/"):
            kind = MemberType.DIRECTORY
        if records and header.flag != _OLD_SPARSE_FILE and is_sparse(records):
            return self._begin_sparse(header, kind, RecordMap(records))
        if kind is not MemberType.FILE:
            return self._complete_other(header, kind)
        self._check_stored(header.size)
        if header.flag == _OLD_SPARSE_FILE:
            return self._begin_old_sparse(header, block)
        return self._complete_file(header, header.size, header.size)

    def _begin_old_sparse(self, header: Header, block: bytes) -> TarMember | None:
        if not header.is_gnu:
            raise FormatError("sparse member outside of the GNU format")
        blocks = BlockMap(block)

        def take(extension: bytes) -> TarMember | None:
            blocks.add(extension)
            return advance()

        def advance() -> TarMember | None:
            if not blocks.is_complete:
                self._want(BLOCK, take, inside="a sparse map")
                return None
            pieces = check_pieces(blocks.pieces, blocks.size, header.size)
            return self._complete_file(header, blocks.size, header.size, pieces)

        return advance()

    def _begin_sparse(self, header: Header, kind: MemberType, found: RecordMap) -> TarMember | None:
        if kind is not MemberType.FILE:
            raise FormatError("sparse member that is not a file")
        self._check_stored(header.size)
        header.name = found.name or header.name
        size = header.size if found.size is None else found.size
        if not found.is_text:
            pieces = check_pieces(found.read(), size, header.size)
            return self._complete_file(header, size, header.size, pieces)
        text = TextMap()
        stored = header.size  # the map is a part of it

        def take(block: bytes) -> TarMember | None:
            nonlocal stored
            stored -= BLOCK
            text.add(block)
            if not text.is_complete:
                want_block()
                return None
            pieces = check_pieces(text.pieces, size, stored)
            return self._complete_file(header, size, stored, pieces)

        def want_block() -> None:
            if stored < BLOCK:
                raise FormatError("GNU sparse map longer than its member")
            self._want(BLOCK, take, inside="a sparse map")

        want_block()
        return None

    def _check_stored(self, size: int) -> None:
        if size < 0:
            raise FormatError("negative size")
        if size > limits.TAR_SIZE - self._header_offset:
            raise _too_large()

    def _complete_other(self, header: Header, kind: MemberType) -> TarMember:
        """Make a member that has no payload, whatever size its header gives."""
        if kind not in _LINKS:
            header.linkname = b""
        if kind not in _DEVICES:
            header.devmajor = header.devminor = 0
        elif header.devmajor not in _DEVICE_NUMBERS or header.devminor not in _DEVICE_NUMBERS:
            raise FormatError("device number out of range")
        return self._complete(header, kind, 0, 0, None)

    def _complete_file(
        self, header: Header, size: int, stored: int, sparse: tuple[Piece, ...] | None = None
    ) -> TarMember:
        header.linkname = b""
        header.devmajor = header.devminor = 0
        return self._complete(header, MemberType.FILE, size, stored, sparse)

    def _complete(
        self,
        header: Header,
        kind: MemberType,
        size: int,
        stored: int,
        sparse: tuple[Piece, ...] | None,
    ) -> TarMember:
        self._members += 1
        if self._members > limits.TAR_ENTRIES:
            raise LimitExceeded(
                "too many members in one layer", limit="TAR_ENTRIES", allowed=limits.TAR_ENTRIES
            )
        self._want_header(after=stored)
        self._skip += stored
        return TarMember(
            header.name,
            kind,
            header.mode & 0o7777,
            header.uid,
            header.gid,
            size,
            header.mtime_ns,
            header.linkname,
            header.devmajor,
            header.devminor,
            header.xattrs,
            self.offset,
            stored,
            sparse,
        )

    def _forget_special(self) -> None:
        self._records = {}
        self._long_name = self._long_link = b""

    def _want(self, size: int, step: Callable[[bytes], TarMember | None], *, inside: str) -> None:
        self._wanted = size
        self._step = step
        self._inside = inside

    def _want_header(self, *, after: int) -> None:
        """Go on with a header, past the padding of the `after` bytes that came or are to come."""
        self._want(BLOCK, self._take_header, inside="")
        self._skip = self._padding = -after % BLOCK


def _too_large() -> LimitExceeded:
    return LimitExceeded("layer too large", limit="TAR_SIZE", allowed=limits.TAR_SIZE)
