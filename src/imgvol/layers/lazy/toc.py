"""Tables of contents in the JSON that stargz invented, and eStargz and zstd:chunked write.

What an entry says becomes a TarMember, as if a tar had been read, so that the one IndexBuilder
decides what a layer's files are; its content becomes chunks of a ChunkTable. The dialects differ
little, and each difference has one meaning only, so one reader takes all of them:

- Chunks follow the file that they belong to; the first is part of the file's own entry. The name
  of a chunk is absent (eStargz) or the file's.
- A file that is one chunk may leave its chunk's fields out; then its `digest` is the chunk's.
- Chunks of zeros (zstd:chunked) are holes here, and never fetched.
- `endOffset` (zstd:chunked) is where the content of a file ends in the blob. eStargz has none: a
  chunk then ends before the next, at the latest.
- Hard links may stand before what they are links to (zstd:chunked promises no order).
- eStargz rounds times to seconds, so that a time may be half a second off what the tar says.
- Go's encoder puts U+FFFD in the place of what is not UTF-8. Such a name is lost, and the layer
  cannot be read this way.

The landmarks of eStargz are no files: they say how much of the blob to fetch first. In the tables
of others they are files like any, as in the layer that somebody makes anew out of an eStargz one.
"""

import re
from binascii import Error as Base64Error
from binascii import a2b_base64
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from imgvol import limits
from imgvol.errors import ContentError, InvalidDocument, InvalidLayer, LimitExceeded, Unsupported
from imgvol.layers.builder import IndexBuilder
from imgvol.layers.compression import Compression
from imgvol.layers.header import INT64_MAX
from imgvol.layers.lazy.chunks import ChunkTableBuilder
from imgvol.layers.lazy.entries import Entry, iter_entries
from imgvol.layers.lazy.links import LinkOrder
from imgvol.layers.lazy.rfc3339 import parse_rfc3339
from imgvol.layers.lazy.spans import LazyLayer
from imgvol.layers.paths import clean_path
from imgvol.layers.reserved import NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK
from imgvol.layers.tar import MemberType, TarMember
from imgvol.oci.json import field_names

_TYPES: Final = {
    "dir": MemberType.DIRECTORY,
    "reg": MemberType.FILE,
    "symlink": MemberType.SYMLINK,
    "hardlink": MemberType.HARDLINK,
    "char": MemberType.CHAR,
    "block": MemberType.BLOCK,
    "fifo": MemberType.FIFO,
}
_CHUNK: Final = "chunk"
_DATA: Final = ""
_ZEROS: Final = "zeros"
_LINKS: Final = frozenset({MemberType.SYMLINK, MemberType.HARDLINK})
_DEVICES: Final = frozenset({MemberType.CHAR, MemberType.BLOCK})

# All that peers know of; Go's decoder does not look at case, so other spellings are refused.
_FIELDS_BY_LOWER: Final = field_names(
    *("name", "type", "size", "modtime", "linkName", "mode", "uid", "gid", "userName", "groupName"),
    *("devMajor", "devMinor", "xattrs", "digest", "offset", "innerOffset", "endOffset"),
    *("chunkOffset", "chunkSize", "chunkDigest", "chunkType", "accesstime", "changetime"),
    "NumLink",
)
_FIELDS: Final = frozenset(_FIELDS_BY_LOWER.values())

_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{64})", re.ASCII)
_LOST: Final = "\N{REPLACEMENT CHARACTER}"


class _Chunk(NamedTuple):
    """A part of a file's content as its entry gives it; zeros stand for what it leaves out."""

    offset: int
    inner: int
    file_offset: int
    size: int
    end: int
    digest: str
    is_hole: bool


@dataclass(slots=True)
class _File:
    """A file whose chunks are arriving.

    Attributes:
        member: Its entry.
        digest: Of all its content; may be empty.
        position: Where its content starts in the data file.
        first: Its first chunk, until it is known whether there are more.
        offset: How far its chunks reach in the file.
        pieces: What of that is stored: offsets and sizes.
    """

    member: TarMember
    digest: str
    position: int
    first: _Chunk | None
    offset: int = 0
    pieces: list[tuple[int, int]] = field(default_factory=list)


def read_toc(
    data: bytes,
    *,
    compression: Compression,
    blob_size: int,
    data_end: int,
    may_lack_digests: bool = False,
) -> LazyLayer:
    """Make a lazy layer of a table of contents whose digest has been checked.

    Args:
        data: The JSON.
        compression: Of the blob's spans.
        blob_size: Bytes of the blob.
        data_end: Where in the blob content ends and the table of contents begins.
        may_lack_digests: Take content without a digest, too.

    Raises:
        InvalidDocument: It is no table of contents. Field `entry`: which entry, from 0.
        InvalidLayer: It makes no sense: chunks that overlap or do not make up their file, content
            outside of the blob, links in a circle.
        LimitExceeded: Something is too large.
        Unsupported: It leaves out digests, or says what we do not know.
    """
    table = ChunkTableBuilder(compression, blob_size=blob_size, data_end=data_end)
    reader = _Reader(table, may_lack_digests=may_lack_digests)
    number = 0
    try:
        for number, entry in enumerate(iter_entries(data)):  # noqa: B007 (for the error)
            reader.add(entry)
        return reader.finish()
    except ContentError as error:
        fields = {"entry": number, **error.fields}
        raise type(error)(error.message, hint=error.hint, **fields) from error


class _Reader:
    """Takes entries in order, and knows which file the next chunk belongs to."""

    def __init__(self, table: ChunkTableBuilder, *, may_lack_digests: bool) -> None:
        self._table = table
        self._may_lack_digests = may_lack_digests
        self._index = IndexBuilder(own_files=False)
        self._links = LinkOrder(self._index.add)
        self._file: _File | None = None
        self._prefetch_end = 0
        self._has_no_prefetch = False
        self._entries = 0

    def add(self, entry: Entry) -> None:
        self._entries += 1
        if self._entries > limits.TAR_ENTRIES:
            raise LimitExceeded(
                "too many entries in one layer", limit="TAR_ENTRIES", allowed=limits.TAR_ENTRIES
            )
        _check_spelling(entry)
        kind = entry.get("type")
        if kind == _CHUNK:
            self._add_chunk(entry)
            return
        self._complete_file()
        member = _member(entry, kind)
        if member.type is not MemberType.FILE:
            self._links.add(member)
        else:
            self._note_landmark(member, entry)
            position = self._table.begin_file(member.size)
            self._file = _File(member, _string(entry, "digest"), position, _chunk(entry))

    def finish(self) -> LazyLayer:
        self._complete_file()
        self._links.finish()
        prefetch_end = 0 if self._has_no_prefetch else self._prefetch_end
        table = self._table.finish(prefetch_end=prefetch_end)
        return LazyLayer(self._index.finish(), table)

    def _note_landmark(self, member: TarMember, entry: Entry) -> None:
        # Most files are told by their last letters.
        if member.name.endswith(b".landmark"):
            match clean_path(member.name):
                case [name] if name == PREFETCH_LANDMARK:
                    self._prefetch_end = _integer(entry, "offset")
                case [name] if name == NO_PREFETCH_LANDMARK:
                    self._has_no_prefetch = True

    def _add_chunk(self, entry: Entry) -> None:
        name = _text(entry, "name")
        if self._file is None or (name and name != self._file.member.name):
            raise InvalidLayer("a chunk that belongs to no file", path=name)
        self._place_first(self._file)
        self._place(self._file, _chunk(entry))

    def _complete_file(self) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        member = file.member
        if member.size or (file.first is not None and file.first.size):
            self._place_first(file)
        if file.offset != member.size:
            raise InvalidLayer("chunks that do not make up their file", path=member.name)
        stored = self._table.data_size - file.position
        sparse = None if stored == member.size else tuple(file.pieces)
        self._links.add(
            member._replace(payload_offset=file.position, payload_size=stored, sparse=sparse)
        )

    def _place_first(self, file: _File) -> None:
        first, file.first = file.first, None
        if first is not None:
            self._place(file, first)

    def _place(self, file: _File, chunk: _Chunk) -> None:
        """Give the next chunk of a file its place in the data file."""
        member = file.member
        size = chunk.size or member.size - chunk.file_offset
        if chunk.file_offset != file.offset or not 0 < size <= member.size - file.offset:
            raise InvalidLayer("chunks that do not make up their file", path=member.name)
        if not chunk.is_hole:
            try:
                self._add_to_table(file, chunk, size)
                _append_piece(file.pieces, file.offset, size)
            except (InvalidLayer, LimitExceeded, Unsupported) as error:
                fields = {**error.fields, "path": member.name}
                raise type(error)(error.message, hint=error.hint, **fields) from None
        file.offset += size

    def _add_to_table(self, file: _File, chunk: _Chunk, size: int) -> None:
        is_whole = size == file.member.size
        digest = chunk.digest or (file.digest if is_whole else "")
        if not digest and not self._may_lack_digests:
            raise Unsupported(
                "a table of contents without digests",
                hint="The layer can be pulled as a whole, which its own digest covers.",
            )
        if is_whole and file.digest and file.digest != digest:
            raise InvalidLayer("a file with two digests")
        self._table.add(
            offset=chunk.offset,
            inner=chunk.inner,
            size=size,
            digest=_parse_digest(digest) if digest else None,
            # For a file of several chunks it is not said which chunk's end this is.
            end=chunk.end if is_whole and chunk.end else None,
        )


def _append_piece(pieces: list[tuple[int, int]], offset: int, size: int) -> None:
    if pieces and sum(pieces[-1]) == offset:
        offset, size = pieces[-1][0], pieces.pop()[1] + size
    pieces.append((offset, size))
    if len(pieces) > limits.TAR_SPARSE_PIECES:
        raise LimitExceeded(
            "a file with too many holes",
            limit="TAR_SPARSE_PIECES",
            allowed=limits.TAR_SPARSE_PIECES,
        )


# --- entries: what they say, checked for type and range ------------------------------------------


def _member(entry: Entry, kind: object) -> TarMember:
    type_ = _TYPES.get(kind) if isinstance(kind, str) else None
    if type_ is None:
        raise Unsupported("an entry of an unknown type", type=str(kind)[:64])
    is_device = type_ in _DEVICES
    return TarMember(
        _text(entry, "name"),
        type_,
        _integer(entry, "mode") & 0o7777,  # podman adds the bits of the file type
        _integer(entry, "uid"),
        _integer(entry, "gid"),
        _integer(entry, "size") if type_ is MemberType.FILE else 0,
        _time(entry),
        _text(entry, "linkName") if type_ in _LINKS else b"",
        _integer(entry, "devMajor") if is_device else 0,
        _integer(entry, "devMinor") if is_device else 0,
        _xattrs(entry),
    )


def _chunk(entry: Entry) -> _Chunk:
    kind = _string(entry, "chunkType")
    if kind not in (_DATA, _ZEROS):
        raise Unsupported("a chunk of an unknown type", type=kind[:64])
    return _Chunk(
        _integer(entry, "offset"),
        _integer(entry, "innerOffset"),
        _integer(entry, "chunkOffset"),
        _integer(entry, "chunkSize"),
        _integer(entry, "endOffset"),
        _string(entry, "chunkDigest"),
        kind == _ZEROS,
    )


def _check_spelling(entry: Entry) -> None:
    if entry.keys() <= _FIELDS:
        return
    for key in entry:
        field = _FIELDS_BY_LOWER.get(key.lower(), key)
        if field != key:
            raise _malformed(f"ambiguous: the field is spelt {field}")


def _integer(entry: Entry, key: str) -> int:
    value = entry.get(key)
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value <= INT64_MAX:
        raise _malformed(f"{key} is no possible number")
    return value


def _string(entry: Entry, key: str) -> str:
    value = entry.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _malformed(f"{key} is no string")
    return value


def _text(entry: Entry, key: str) -> bytes:
    value = _string(entry, key)
    if _LOST in value:
        raise Unsupported("a name that the table of contents has lost: it is not UTF-8", path=value)
    return value.encode("utf-8")


def _xattrs(entry: Entry) -> tuple[tuple[bytes, bytes], ...]:
    values = entry.get("xattrs")
    if not values:
        return ()
    if not isinstance(values, dict):
        raise _malformed("xattrs is no object")
    pairs = []
    for name in values:
        if _LOST in name:
            raise Unsupported("an extended attribute whose name is lost: it is not UTF-8")
        try:
            value = a2b_base64(_string(values, name), strict_mode=True)
        except (Base64Error, ValueError) as error:
            raise _malformed("an extended attribute that is not base64") from error
        if value:  # a tar cannot have an empty one: see `pax`
            pairs.append((name.encode("utf-8"), value))
    return tuple(sorted(pairs))


def _parse_digest(text: str) -> bytes:
    match = _DIGEST.fullmatch(text)
    if match is None:
        raise Unsupported("a digest that is no SHA-256", digest=text[:96])
    return bytes.fromhex(match[1])


def _time(entry: Entry) -> int:
    time = parse_rfc3339(_string(entry, "modtime").encode("utf-8"))
    if time is None:
        raise _malformed("modtime is no time")
    return time


def _malformed(problem: str) -> InvalidDocument:
    return InvalidDocument(f"malformed table of contents: {problem}")
