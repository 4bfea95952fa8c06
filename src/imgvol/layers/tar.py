"""The tar format: a strict push parser, bytes in and members out.

Rule 1: the parser wants one of three things at any time: to skip so many bytes (payloads, which it
never looks at nor copies), to collect so many (a header block, the body of a special header), or,
after the end, nothing. What it collects is bounded by limits.TAR_SPECIAL_SIZE.

Rule 2: a collected piece goes whole to the current step, a method that takes the bytes, chooses the
next step, and returns a member when one is complete. So input may be cut anywhere.

Rule 3: one number, the stored size after all overrides, says both where a payload ends and where
the next header is looked for. Readers with two such numbers show different people different
archives (CVE-2025-62518).

Rule 4: the usual members, which are nearly all, are taken by a short cut wherever they lie whole in
the input (`plain`). It takes nothing that the steps would not take in the same way, and leaves
everything else to them: they alone say what is wrong.

Special headers describe the next member: GNU `L` and `K` (long names) and PAX `x`. Of several of a
kind the last one counts, whole. PAX `g` is checked and otherwise ignored. Where the formats leave
room, the behaviour is that of Go's archive/tar, which the tools that make and unpack images use.
"""

from collections.abc import Callable
from typing import Final

from imgvol import limits
from imgvol.errors import ContentError, InvalidLayer, LimitExceeded
from imgvol.layers.header import BLOCK, FormatError, Header, parse_header, parse_text
from imgvol.layers.member import MemberType, TarMember
from imgvol.layers.pax import apply_records, parse_records
from imgvol.layers.plain import take_plain
from imgvol.layers.sparse import BlockMap, Piece, RecordMap, TextMap, check_pieces, is_sparse

__all__ = ["MemberType", "TarMember", "TarParser"]

_ZERO_BLOCK: Final = bytes(BLOCK)
_DEVICE_NUMBERS: Final = range(1 << 32)


_OLD_FILE: Final = b"\0"  # or a directory, when the name ends in a slash
_OLD_SPARSE_FILE: Final = b"S"
_TYPES: Final = {kind.value: kind for kind in MemberType} | {
    _OLD_FILE: MemberType.FILE,
    b"7": MemberType.FILE,  # "contiguous", which meant something to one file system long ago
    _OLD_SPARSE_FILE: MemberType.FILE,
}
_LINKS: Final = frozenset({MemberType.HARDLINK, MemberType.SYMLINK})
_DEVICES: Final = frozenset({MemberType.CHAR, MemberType.BLOCK})
# Looked up once: of a class they take longer.
_FILE: Final = MemberType.FILE
_DIRECTORY: Final = MemberType.DIRECTORY


_Step = Callable[[bytes], TarMember | None]


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
        self._step: _Step = self._take_header
        self._wanted = BLOCK
        self._collected = bytearray()
        # Bytes to pass over before the next step. The last of them, the padding, may be missing.
        self._skip = 0
        self._padding = 0
        # What must not be cut off by the end of the archive; empty between members.
        self._inside = ""
        self._is_ended = False
        self._special: dict[bytes, _Step] = {
            b"x": self._take_records,
            b"g": self._take_global_records,
            b"L": self._take_long_name,
            b"K": self._take_long_link,
        }
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
            raise self._failure.anew()
        try:
            return self._feed(data)
        except FormatError as error:
            self._failure = InvalidLayer(f"bad tar archive: {error}", offset=self._header_offset)
            raise self._failure.anew() from error
        except ContentError as error:
            self._failure = error.anew()
            raise

    def finish(self) -> None:
        """Say that the archive ends here.

        Raises:
            InvalidLayer: It ends inside a header or a payload. End blocks may be missing, and so
                may the padding of the last payload.
        """
        if self._failure is not None:
            raise self._failure.anew()
        if self._is_ended:
            return
        inside = self._inside
        if self._skip > self._padding:
            inside = "the content of a member"
        elif self._collected and not inside:
            inside = "a header"
        if inside:
            raise InvalidLayer(f"tar archive ends inside {inside}", offset=self.offset)

    def _feed(self, data: bytes | memoryview) -> list[TarMember]:
        members: list[TarMember] = []
        base, size = self.offset, len(data)
        if base + size > limits.TAR_SIZE:
            raise _too_large()
        collected = self._collected
        position = 0
        while not self._is_ended:
            if self._skip:
                step = min(self._skip, size - position)
                self._skip -= step
                position += step
            if position >= size:
                break
            if isinstance(data, bytes) and self._is_between:
                known = len(members)
                position = take_plain(data, position, base, members, self._members)
                if len(members) > known:
                    self._members += len(members) - known
                    self._padding = -members[-1].payload_size % BLOCK
                    if position >= size:
                        self._skip = position - size
                        break
            end = position + self._wanted
            if end <= size and not collected:
                piece = bytes(data[position:end])  # of bytes that is one copy, not two
            else:
                end = min(end - len(collected), size)
                collected += data[position:end]
                if len(collected) < self._wanted:
                    break
                piece = bytes(collected)
                collected.clear()
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

    @property
    def _is_between(self) -> bool:
        """Whether a header is due, whose member nothing has been said of yet."""
        return (
            self._wanted == BLOCK
            and not (self._collected or self._inside)
            and not (self._records or self._long_name or self._long_link)
            and self._step == self._take_header
        )

    def _begin_special(self, header: Header) -> None:
        step = self._special.get(header.flag)
        if step is None:
            raise FormatError(f"member of unknown type {header.flag!r}")
        size = header.size
        if size < 0:
            raise FormatError("negative size")
        if size > limits.TAR_SPECIAL_SIZE:
            raise LimitExceeded(
                "extended tar header too large",
                limit="TAR_SPECIAL_SIZE",
                allowed=limits.TAR_SPECIAL_SIZE,
                offset=self._header_offset,
            )
        if size:
            self._want(size, step, inside="an extended header")
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
        if kind is _FILE and header.size < 0:
            raise FormatError("negative size")
        records = self._records
        if records or self._long_name or self._long_link:
            header = self._apply_special(header)
        if header.flag == _OLD_FILE and header.name.endswith(b"/"):
            kind = _DIRECTORY
        if records and header.flag != _OLD_SPARSE_FILE and is_sparse(records):
            return self._begin_sparse(header, kind, RecordMap(records))
        if kind is not _FILE:
            return self._complete_other(header, kind)
        self._check_stored(header.size)
        if header.flag == _OLD_SPARSE_FILE:
            return self._begin_old_sparse(header, block)
        return self._complete_file(header, header.size, header.size)

    def _apply_special(self, header: Header) -> Header:
        """A header with what special headers said of it, which is used up."""
        if self._records:
            header = apply_records(self._records, header)
        if self._long_name:
            header = header._replace(name=self._long_name)
        if self._long_link:
            header = header._replace(linkname=self._long_link)
        self._forget_special()
        return header

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
        if kind is not _FILE:
            raise FormatError("sparse member that is not a file")
        self._check_stored(header.size)
        if found.name:
            header = header._replace(name=found.name)
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
        linkname, devices = b"", (0, 0)
        if kind in _LINKS:
            linkname = header.linkname
        elif kind in _DEVICES:
            devices = header.devmajor, header.devminor
            if not all(number in _DEVICE_NUMBERS for number in devices):
                raise FormatError("device number out of range")
        return self._complete(header, kind, 0, 0, None, linkname, devices)

    def _complete_file(
        self, header: Header, size: int, stored: int, sparse: tuple[Piece, ...] | None = None
    ) -> TarMember:
        return self._complete(header, _FILE, size, stored, sparse, b"", (0, 0))

    def _complete(
        self,
        header: Header,
        kind: MemberType,
        size: int,
        stored: int,
        sparse: tuple[Piece, ...] | None,
        linkname: bytes,
        devices: tuple[int, int],
    ) -> TarMember:
        self._members += 1
        if self._members > limits.TAR_ENTRIES:
            raise LimitExceeded(
                "too many members in one layer", limit="TAR_ENTRIES", allowed=limits.TAR_ENTRIES
            )
        self._want_header(after=stored)
        self._skip += stored
        _, name, _, mode, uid, gid, _, mtime_ns, _, _, _, xattrs = header
        # As TarMember() does, in a fraction of the time.
        return tuple.__new__(
            TarMember,
            (
                name,
                kind,
                mode & 0o7777,
                uid,
                gid,
                size,
                mtime_ns,
                linkname,
                *devices,
                xattrs,
                self.offset,
                stored,
                sparse,
            ),
        )

    def _forget_special(self) -> None:
        self._records = {}
        self._long_name = self._long_link = b""

    def _want(self, size: int, step: _Step, *, inside: str) -> None:
        self._wanted = size
        self._step = step
        self._inside = inside

    def _want_header(self, *, after: int) -> None:
        """Go on with a header, past the padding of the `after` bytes that came or are to come."""
        self._wanted = BLOCK
        self._step = self._take_header
        self._inside = ""
        self._skip = self._padding = -after % BLOCK


def _too_large() -> LimitExceeded:
    return LimitExceeded("layer too large", limit="TAR_SIZE", allowed=limits.TAR_SIZE)
