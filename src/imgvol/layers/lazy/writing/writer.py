"""Makes a lazy layer of a tar: feed the tar, then take the blob.

    writer = LayerWriter(ESTARGZ, scratch, WriterOptions(prioritized=paths))
    for piece in tar:
        writer.feed(piece)
    for piece in writer.finish():
        blob.write(piece)
    writer.result

Rule 1: Content is compressed as it comes, every chunk alone, and goes to the scratch file. Only at
the end, when all members are known, is it said in which order they come (`order`), and the blob is
put together: what a chunk looks like does not depend on where it ends up.

Rule 2: Headers and padding between two contents are a piece of their own in the blob. The order of
bytes is that of a tar, so whoever decompresses all of the blob has one.

Rule 3: eStargz is another tar than what it was made of: it has a landmark more, which says how much
to fetch first, and the table of contents. zstd:chunked is the same tar, and so has the same diff
ID, unless some of its files are wanted first: then it has another order, and the landmark, too.

Rule 4: The same tar and the same options give the same blob.
"""

import hashlib
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO, Final, Protocol

from imgvol import limits
from imgvol.errors import InvalidArgument, LimitExceeded, Unsupported
from imgvol.layers.compression import Compression
from imgvol.layers.header import BLOCK
from imgvol.layers.lazy.writing.crc64 import Crc64
from imgvol.layers.lazy.writing.entries import chunk_entries
from imgvol.layers.lazy.writing.fields import Fields, read_fields
from imgvol.layers.lazy.writing.frames import DEFAULT_LEVELS, LEVELS, decompress, open_compressor
from imgvol.layers.lazy.writing.order import arrange, check_links
from imgvol.layers.lazy.writing.records import Chunk, Record, Scratch, Slice
from imgvol.layers.lazy.writing.split import Content, Head, Padding, Part, Rest, TarSplitter
from imgvol.layers.lazy.writing.tar_split import TarSplit
from imgvol.layers.paths import clean_path
from imgvol.layers.reserved import NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK
from imgvol.layers.tar import MemberType, TarMember
from imgvol.oci.digest import Digest

_HOLE: Final = 64 * limits.KIB
_ZEROS: Final = bytes(_HOLE)
_LANDMARK_CONTENT: Final = b"\x0f"
_END_BLOCKS: Final = bytes(2 * BLOCK)
# Trailing zeros that are still worth telling in a tar-split; tar pads to 10 KiB.
_TAR_SPLIT_END: Final = 16 * limits.MIB


class Dialect(Protocol):
    """One format, for one layer."""

    compression: Compression
    chunk_size: int
    changes_tar: bool
    """Whether its tar always is another one."""
    has_ends: bool
    """Whether it says where files end, and what are holes."""
    wants_tar_split: bool

    def describe(self, member: TarMember, fields: Fields) -> tuple[bytes, bool]:
        """The part of an entry that does not depend on the blob, and whether it says all."""
        ...

    def close(
        self, entries: list[bytes], offset: int, level: int, tar_split: TarSplit | None
    ) -> "Ending":
        """What comes behind the content. Empties the list of entries."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """The end of a blob.

    Attributes:
        blob: Its bytes.
        tar: Those that it adds to the tar.
        annotations: What the layer's descriptor has to say.
    """

    blob: bytes
    tar: bytes = b""
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterOptions:
    """How to write.

    Attributes:
        chunk_size: Bytes of content that are compressed at once; 0: as the format has it.
        level: Of the compression; 0: the default.
        prioritized: Files that are wanted first, in that order: paths from the root without a
            slash at their start.
    """

    chunk_size: int = 0
    level: int = 0
    prioritized: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenLayer:
    """What a blob turned out to be.

    Attributes:
        diff_id: Of its tar; None: that of the tar which it was made of.
        unpacked_size: Bytes of its tar.
        annotations: What the layer's descriptor has to say.
        files: How many regular files it has.
        prioritized: How many of the files that were wanted first it has.
    """

    diff_id: Digest | None
    unpacked_size: int
    annotations: Mapping[str, str]
    files: int
    prioritized: int


class LayerWriter:
    """Makes one layer. See above.

    Args:
        dialect: The format.
        scratch: A temporary file, empty, for reading and writing; it stays the caller's. It grows
            to about the size of the blob.
        options: How to write.

    Attributes:
        result: What it has become, once `finish` has come to its end.

    Raises:
        InvalidArgument: An option makes no sense.
    """

    def __init__(self, dialect: Dialect, scratch: BinaryIO, options: WriterOptions) -> None:
        self.result: WrittenLayer | None = None
        self._dialect = dialect
        self._scratch = Scratch(scratch)
        self._options = options
        self._chunk_size = _checked_chunk_size(options.chunk_size or dialect.chunk_size)
        self._level = _checked_level(options.level, dialect.compression)
        self._compress = open_compressor(dialect.compression, self._level)
        self._splitter = TarSplitter()
        self._records: list[Record] = []
        self._entries_size = 0
        self._chunk = bytearray()
        self._chunk_offset = 0
        self._pieces = 0
        self._content_hash = hashlib.sha256()
        self._checksum = Crc64()
        self._rest: list[Slice] = []
        self._rest_size = 0
        self._is_rest_zeros = True

    def feed(self, data: bytes) -> None:
        """Takes the next bytes of the tar.

        Raises:
            InvalidLayer: They are no tar.
            LimitExceeded: The table of contents would become too large, or another limit.
            Unsupported: It has something that the format cannot tell.
        """
        for part in self._splitter.feed(data):
            self._take(part)

    def finish(self) -> Iterator[bytes]:
        """The blob, in order; to be exhausted.

        Raises:
            What `feed` does.
        """
        for part in self._splitter.finish():
            self._take(part)
        check_links(self._records)
        arrangement = arrange(self._records, self._options.prioritized)
        landmark: list[Record] = []
        is_changed = self._dialect.changes_tar or bool(arrangement.front)
        if is_changed:
            landmark = [self._landmark(has_prefetch=bool(arrangement.front))]
            members = [*arrangement.front, *landmark, *arrangement.rest]
        else:
            members = self._records
        assembly = _Assembly(self._dialect, self._scratch, self._level, is_hashed=is_changed)
        tar_split = self._open_tar_split(members, is_changed=is_changed)
        files = sum(one.member.type is MemberType.FILE for one in members) - len(landmark)
        yield from assembly.members(members, tar_split)
        prioritized = arrangement.files
        # Their room is for the table of contents.
        self._records.clear()
        del members, arrangement, landmark
        if is_changed:
            # The table of contents comes before the end of its tar.
            yield from assembly.gap(b"" if self._dialect.changes_tar else _END_BLOCKS, tar_split)
        else:
            yield from assembly.rest(self._rest, self._rest_size, tar_split)
        yield from assembly.end(tar_split)
        self.result = WrittenLayer(
            diff_id=assembly.diff_id() if is_changed else None,
            unpacked_size=assembly.unpacked_size,
            annotations=assembly.annotations,
            files=files,
            prioritized=prioritized,
        )

    # --- recording --------------------------------------------------------------------------------

    def _take(self, part: Part) -> None:
        match part:
            case Head(member, raw):
                self._begin(member, raw)
            case Content(data, is_last):
                self._add_content(data, is_last=is_last)
            case Padding(data):
                if data != bytes(-self._records[-1].member.payload_size % BLOCK):
                    self._records[-1].padding = self._scratch.put(data)
            case Rest(data):
                self._is_rest_zeros = self._is_rest_zeros and not any(data)
                self._rest_size += len(data)
                self._rest.append(self._scratch.put(self._compress(data)))

    def _begin(self, member: TarMember, raw: bytes) -> None:
        if member.sparse is not None:
            raise Unsupported(
                "a sparse file, which no table of contents can tell",
                hint="Build the image again without GNU tar's --sparse.",
                path=member.name,
            )
        entry, is_exact = self._dialect.describe(member, read_fields(raw))
        self._entries_size += len(entry)
        self._check_entries()
        record = Record(
            member=member,
            path=b"/".join(clean_path(member.name)),
            target=b"/".join(clean_path(member.linkname))
            if member.type is MemberType.HARDLINK
            else None,
            entry=entry,
            head=self._scratch.put(raw),
            is_exact=is_exact,
        )
        self._records.append(record)
        self._chunk_offset = self._pieces = 0
        self._content_hash = hashlib.sha256()
        self._checksum = Crc64()
        if member.type is MemberType.FILE and not member.size:
            record.digest = self._content_hash.digest()

    def _check_entries(self) -> None:
        if self._entries_size > limits.TOC_SIZE:
            raise LimitExceeded(
                "the table of contents would be too large",
                hint="Larger chunks make it smaller; so do fewer files in one layer.",
                limit="TOC_SIZE",
                allowed=limits.TOC_SIZE,
            )

    def _add_content(self, data: bytes | memoryview, *, is_last: bool) -> None:
        view = memoryview(data)
        while view:
            piece = view[: self._chunk_size - len(self._chunk)]
            self._chunk += piece
            view = view[len(piece) :]
            if len(self._chunk) == self._chunk_size or (is_last and not view):
                self._end_chunk()
        if is_last:
            record = self._records[-1]
            record.digest = self._content_hash.digest()
            record.checksum = self._checksum.digest()

    def _end_chunk(self) -> None:
        content = bytes(self._chunk)
        self._chunk.clear()
        self._content_hash.update(content)
        if self._dialect.wants_tar_split:
            self._checksum.update(content)
        pieces = [(0, len(content), False)]
        if self._dialect.has_ends and self._pieces < limits.TAR_SPARSE_PIECES // 2:
            pieces = _find_holes(content)
        for start, end, is_hole in pieces:
            piece = content if len(pieces) == 1 else content[start:end]
            chunk = Chunk(
                self._chunk_offset + start,
                end - start,
                self._scratch.put(self._compress(piece)),
                hashlib.sha256(piece).digest(),
                is_hole,
            )
            self._records[-1].chunks.append(chunk)
            self._entries_size += _CHUNK_ENTRY
        self._check_entries()
        self._pieces += len(pieces)
        self._chunk_offset += len(content)

    def _landmark(self, *, has_prefetch: bool) -> Record:
        name = PREFETCH_LANDMARK if has_prefetch else NO_PREFETCH_LANDMARK
        member = TarMember(name, MemberType.FILE, size=1, payload_size=1)
        self._begin(member, header_block(name, 1))
        self._add_content(_LANDMARK_CONTENT, is_last=True)
        return self._records.pop()

    def _open_tar_split(self, members: Sequence[Record], *, is_changed: bool) -> TarSplit | None:
        if not self._dialect.wants_tar_split:
            return None
        paths = {member.path for member in members}
        is_exact = len(paths) == len(members) and all(member.is_exact for member in members)
        is_end_exact = self._is_rest_zeros and self._rest_size <= _TAR_SPLIT_END
        if not is_exact or not (is_changed or is_end_exact):
            return None
        return TarSplit(self._level)


class _Assembly:
    """Puts a blob together: headers, contents, table of contents."""

    def __init__(self, dialect: Dialect, scratch: Scratch, level: int, *, is_hashed: bool) -> None:
        self.unpacked_size = 0
        self.annotations: Mapping[str, str] = {}
        self._dialect = dialect
        self._scratch = scratch
        self._level = level
        self._compress = open_compressor(dialect.compression, level)
        self._offset = 0
        self._gap = bytearray()
        self._entries: list[bytes] = []
        self._hash = hashlib.sha256() if is_hashed else None
        self._padding = b""
        self._end = b""  # for the tar-split

    def diff_id(self) -> Digest:
        """Of all that has passed."""
        assert self._hash is not None
        return Digest("sha256", self._hash.hexdigest())

    def members(self, members: Sequence[Record], tar_split: TarSplit | None) -> Iterator[bytes]:
        """All members, in the order of the blob."""
        for record in members:
            head = self._scratch.get(record.head)
            if tar_split is not None:
                tar_split.add(self._padding + head, record)
            self._gap += head
            offsets = []
            if record.chunks:
                yield from self._flush()
            for chunk in record.chunks:
                offsets.append(self._offset)
                frame = self._scratch.get(chunk.frame)
                self._pass(chunk.size, frame)
                yield self._emit(frame)
            self._entries.extend(
                chunk_entries(record, offsets, self._offset, has_ends=self._dialect.has_ends)
            )
            self._padding = self._scratch.padding_of(record)
            self._gap += self._padding
            if len(self._gap) >= limits.MIB:
                yield from self._flush()

    def gap(self, more: bytes, tar_split: TarSplit | None) -> Iterator[bytes]:
        """What the last member leaves, and more bytes of the tar."""
        self._gap += more
        if tar_split is not None:
            self._end = self._padding + more
        yield from self._flush()

    def rest(
        self, frames: Sequence[Slice], size: int, tar_split: TarSplit | None
    ) -> Iterator[bytes]:
        """What follows the last member in a tar that is not changed."""
        yield from self._flush()
        if tar_split is not None:
            self._end = self._padding + bytes(size)
        for place in frames:
            yield self._emit(self._scratch.get(place))
        self.unpacked_size += size

    def end(self, tar_split: TarSplit | None) -> Iterator[bytes]:
        """The table of contents, and what says where it is."""
        if tar_split is not None:
            tar_split.finish(self._end)
        entries, self._entries = self._entries, []
        ending = self._dialect.close(entries, self._offset, self._level, tar_split)
        if self._hash is not None:
            self._hash.update(ending.tar)
        self.unpacked_size += len(ending.tar)
        self.annotations = ending.annotations
        yield self._emit(ending.blob)

    def _pass(self, size: int, frame: bytes) -> None:
        self.unpacked_size += size
        if self._hash is not None:
            # Nobody has seen this order of the bytes yet: what counts is what readers will see.
            self._hash.update(decompress(self._dialect.compression, frame, size))

    def _flush(self) -> Iterator[bytes]:
        if not self._gap:
            return
        data = bytes(self._gap)
        self._gap.clear()
        self.unpacked_size += len(data)
        if self._hash is not None:
            self._hash.update(data)
        yield self._emit(self._compress(data))

    def _emit(self, data: bytes) -> bytes:
        self._offset += len(data)
        return data


# Bytes of JSON that a further chunk takes, at the least: two thirds are its digest.
_CHUNK_ENTRY: Final = 160


def header_block(name: bytes, size: int) -> bytes:
    """The header of a small file that a format adds: owned by root, without a time."""
    info = tarfile.TarInfo(name.decode("ascii"))
    info.size, info.mode = size, 0o444
    return info.tobuf(tarfile.USTAR_FORMAT)


def _find_holes(content: bytes) -> list[tuple[int, int, bool]]:
    """Cut content at blocks of zeros: start, end, and whether it is a hole."""
    if _ZEROS not in content:
        return [(0, len(content), False)]
    size = len(content)
    blocks = range(0, size, _HOLE)
    kinds = [content[start : start + _HOLE] == _ZEROS for start in blocks]
    changes = [i * _HOLE for i, (a, b) in enumerate(pairwise(kinds), 1) if a != b]
    borders = [0, *changes, size]
    return [(start, end, kinds[start // _HOLE]) for start, end in pairwise(borders)]


def _checked_chunk_size(size: int) -> int:
    if not limits.WRITTEN_CHUNK_MIN <= size <= limits.WRITTEN_CHUNK_MAX:
        raise InvalidArgument(
            "the size of chunks is out of range",
            hint=f"From {limits.WRITTEN_CHUNK_MIN // limits.KIB} KiB"
            f" to {limits.WRITTEN_CHUNK_MAX // limits.MIB} MiB.",
            chunk_size=size,
        )
    return size


def _checked_level(level: int, compression: Compression) -> int:
    if level and level not in LEVELS[compression]:
        offered = LEVELS[compression]
        raise InvalidArgument(
            "no such level of compression",
            hint=f"From {offered.start} to {offered.stop - 1}.",
            level=level,
        )
    return level or DEFAULT_LEVELS[compression]
