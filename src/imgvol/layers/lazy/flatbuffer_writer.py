"""FlatBuffers, written front to back.

They are commonly built from their end; nothing asks for that. Offsets must lead forward, so what is
referred to comes after what refers to it: whoever writes reserves all tables and vectors first and
fills them in when it is known where everything is. Tables of one layout share a vtable, and text is
written once however often it occurs; readers cannot tell.

The package `flatbuffers` writes the same, but needs some 100 microseconds for a table of 14 fields.
Knows nothing of any schema: see `ztoc_writer` for that.
"""

import struct
from collections.abc import Sequence
from typing import Final

from imgvol.errors import LimitExceeded

OFFSET: Final = "O"
"""The format of a field that is an offset: it is given as where it leads."""

_U32: Final = struct.Struct("<I")
# Every number of a table lies at a multiple of its size, as C++ wants it.
_ALIGNMENT: Final = 8


class Layout:
    """Where tables of one kind have their fields.

    Args:
        slots: How many fields the schema has.
        fields: Slot and format (of `struct`, or OFFSET) of those that are there, in the order in
            which they are stored and given. The slots of others are absent.
    """

    __slots__ = ("offsets", "size", "structure", "vtable")

    def __init__(self, slots: int, *fields: tuple[int, str]) -> None:
        places = [0] * slots
        offsets: list[tuple[int, int]] = []
        at = _U32.size
        layout = "<i"
        for number, (slot, kind) in enumerate(fields):
            code = "I" if kind == OFFSET else kind
            size = struct.calcsize(f"<{code}")
            layout += "x" * (-at % size) + code
            at += -at % size
            places[slot] = at
            if kind == OFFSET:
                offsets.append((number, at))
            at += size
        self.structure = struct.Struct(layout)
        self.offsets = tuple(offsets)
        self.size = at
        self.vtable = struct.pack(f"<{2 + slots}H", 4 + 2 * slots, at, *places)


class FlatBufferWriter:
    """A FlatBuffer being written. Positions are from its beginning.

    Args:
        largest: Bytes that it may have.

    All methods raise LimitExceeded when it becomes larger.

    Attributes:
        data: What there is so far; the root table is the first that is reserved.
    """

    def __init__(self, *, largest: int) -> None:
        self.data = bytearray(_ALIGNMENT)
        self._largest = largest
        self._vtables: dict[Layout, int] = {}

    def reserve(self, layout: Layout) -> int:
        """Room for a table; returns where it is."""
        if layout not in self._vtables:
            self._vtables[layout] = self._append(layout.vtable, 2)
        at = self._append(bytes(layout.size), _ALIGNMENT)
        if len(self._vtables) == 1 and not any(self.data[: _U32.size]):
            _U32.pack_into(self.data, 0, at)
        return at

    def fill(self, layout: Layout, at: int, *values: int) -> None:
        """Fills in a table, with the values of its layout's fields."""
        stored = list(values)
        for number, place in layout.offsets:
            stored[number] -= at + place
        layout.structure.pack_into(self.data, at, at - self._vtables[layout], *stored)

    def reserve_vector(self, count: int) -> int:
        """Room for a vector of so many offsets; returns where it is."""
        return self._append(_U32.pack(count) + bytes(_U32.size * count), _U32.size)

    def fill_vector(self, at: int, targets: Sequence[int]) -> None:
        """Fills it in, with where its elements are."""
        first = at + _U32.size
        offsets = [target - first - 4 * number for number, target in enumerate(targets)]
        struct.pack_into(f"<{len(offsets)}I", self.data, first, *offsets)

    def add_bytes(self, data: bytes) -> int:
        """Writes a vector of bytes; returns where it is."""
        return self._append(_U32.pack(len(data)) + data, _U32.size)

    def begin_text(self) -> "Text":
        """Text, which comes last: nothing can be reserved from now on."""
        self._append(b"", _U32.size)
        return Text(len(self.data))

    def finish(self, text: "Text") -> bytes:
        """The whole."""
        self._append(text.data, _U32.size)
        return bytes(self.data)

    def _append(self, data: bytes | bytearray, alignment: int) -> int:
        self.data += bytes(-len(self.data) % alignment)
        at = len(self.data)
        self.data += data
        if len(self.data) > self._largest:
            raise LimitExceeded("too much for one FlatBuffer", allowed=self._largest)
        return at


class Text:
    """Strings, each of them once."""

    def __init__(self, base: int) -> None:
        self.data = bytearray()
        self._base = base
        self._known: dict[bytes, int] = {}

    def at(self, text: bytes) -> int:
        """Where a string will be."""
        at = self._known.get(text)
        if at is None:
            # A length, the bytes, and a NUL that is not counted.
            size = len(text)
            at = self._known[text] = self._base + len(self.data)
            self.data += _U32.pack(size) + text + bytes(4 - size % 4)
        return at
