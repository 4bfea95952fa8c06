"""FlatBuffers, read with every step checked.

FlatBuffers is a format to be used in place, by code that trusts it. Here it comes from outside, so
nothing is followed before it is known to lie inside: offsets in the format lead forward, except
that from a table to its vtable, which is checked by hand; `struct` refuses whatever begins inside
and ends outside; a slice must have the length that was asked for.

Offsets may lead to the same place many times, so a small buffer can describe a huge document. What
is taken out is counted, and ends at a bound that the caller sets.

The package `flatbuffers` reads the same (the tests write with it), but it checks nothing, takes a
negative offset for one from the end, and looks up each vtable anew: it needs about three times as
long. Knows nothing of any schema: see `ztoc` for that.
"""

import struct
from collections.abc import Iterator
from typing import Final

_U32: Final = struct.Struct("<I")
_I32: Final = struct.Struct("<i")
_VTABLE: Final = struct.Struct("<HH")  # its size, the table's size; then u16 per field

U8: Final = struct.Struct("<B")
U32: Final = _U32
I32: Final = _I32
I64: Final = struct.Struct("<q")

# What an element of a vector costs, beside the strings in it.
_ELEMENT_COST: Final = 16


class FlatBufferError(ValueError):
    """The buffer is not a FlatBuffer, or not one of this schema."""


class BudgetExceeded(Exception):
    """More was taken out than the bound allows."""


class FlatBuffer:
    """A buffer and what was learned about it.

    Args:
        data: The buffer.
        budget: Bytes that may be taken out of it, elements of vectors counting 16 each.
    """

    __slots__ = ("_budget", "_vtables", "data")

    def __init__(self, data: bytes, *, budget: int) -> None:
        self.data = data
        self._budget = budget
        self._vtables: dict[int, tuple[int, ...]] = {}

    def root(self) -> "Table":
        """The table that everything hangs on.

        Raises:
            FlatBufferError: There is none.
        """
        try:
            return Table(self, _U32.unpack_from(self.data, 0)[0])
        except struct.error as error:
            raise FlatBufferError("it ends too soon") from error

    def spend(self, count: int) -> None:
        """Count what is taken out.

        Raises:
            BudgetExceeded: It is too much.
        """
        self._budget -= count
        if self._budget < 0:
            raise BudgetExceeded

    def fields(self, table: int) -> tuple[int, ...]:
        """Where in a table each of its fields is; 0 for one that has its default."""
        at = table - _I32.unpack_from(self.data, table)[0]
        known = self._vtables.get(at)
        if known is not None:
            return known
        if at < 0:
            raise FlatBufferError("a vtable outside")
        size, _ = _VTABLE.unpack_from(self.data, at)
        if size < _VTABLE.size or size % 2:
            raise FlatBufferError("a vtable of an impossible size")
        count = (size - _VTABLE.size) // 2
        self.spend(size)
        fields = struct.unpack_from(f"<{count}H", self.data, at + _VTABLE.size)
        self._vtables[at] = fields
        return fields


class Table:
    """One table. Fields are named by their slot, their number in the schema.

    All methods raise FlatBufferError when what they should give is not whole inside the buffer, and
    BudgetExceeded when all methods together have given too much.
    """

    __slots__ = ("_buffer", "_fields", "_position")

    def __init__(self, buffer: FlatBuffer, position: int) -> None:
        self._buffer = buffer
        self._position = position
        try:
            self._fields = buffer.fields(position)
        except struct.error as error:
            raise FlatBufferError("a table outside") from error

    def integer(self, slot: int, kind: struct.Struct, default: int = 0) -> int:
        """A number."""
        at = self._find(slot)
        if not at:
            return default
        try:
            value: int = kind.unpack_from(self._buffer.data, at)[0]
        except struct.error as error:
            raise FlatBufferError("a number outside") from error
        return value

    def string(self, slot: int) -> bytes:
        """A string, or a vector of bytes; empty when absent."""
        at = self._find(slot)
        return self._string(at) if at else b""

    def strings(self, slot: int) -> Iterator[bytes]:
        """A vector of strings."""
        return map(self._string, self._elements(slot))

    def table(self, slot: int) -> "Table | None":
        """A table, None when absent."""
        at = self._find(slot)
        return Table(self._buffer, self._follow(at)) if at else None

    def tables(self, slot: int) -> Iterator["Table"]:
        """A vector of tables."""
        return (Table(self._buffer, self._follow(at)) for at in self._elements(slot))

    def _find(self, slot: int) -> int:
        """Where a field is in the buffer, 0 when it is absent."""
        fields = self._fields
        offset = fields[slot] if slot < len(fields) else 0
        return self._position + offset if offset else 0

    def _follow(self, at: int) -> int:
        try:
            return at + int(_U32.unpack_from(self._buffer.data, at)[0])
        except struct.error as error:
            raise FlatBufferError("an offset outside") from error

    def _string(self, at: int) -> bytes:
        start = self._follow(at)
        size = self._follow(start) - start
        start += _U32.size
        self._buffer.spend(size)
        value = self._buffer.data[start : start + size]
        if len(value) != size:
            raise FlatBufferError("a string outside")
        return value

    def _elements(self, slot: int) -> range:
        """Where the elements of a vector of offsets are."""
        at = self._find(slot)
        if not at:
            return range(0)
        start = self._follow(at)
        count = self._follow(start) - start
        start += _U32.size
        end = start + count * _U32.size
        if end > len(self._buffer.data):
            raise FlatBufferError("a vector outside")
        self._buffer.spend(count * _ELEMENT_COST)
        return range(start, end, _U32.size)
