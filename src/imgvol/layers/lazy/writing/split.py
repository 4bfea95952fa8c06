"""Cuts a tar that arrives in pieces into what its members consist of: headers, content, padding.

Every byte of the archive comes out once, in order, in one of these parts. What a member is says the
TarParser; this module keeps the bytes apart that it passes over.
"""

from collections.abc import Iterator
from typing import NamedTuple

from imgvol import limits
from imgvol.errors import LimitExceeded
from imgvol.layers.header import BLOCK
from imgvol.layers.tar import TarMember, TarParser


class Head(NamedTuple):
    """A member begins.

    Attributes:
        member: What it is.
        raw: All of its headers.
    """

    member: TarMember
    raw: bytes


class Content(NamedTuple):
    """The next piece of the member's stored content; never empty."""

    data: bytes | memoryview
    is_last: bool


class Padding(NamedTuple):
    """What follows a member's content up to the next block; never empty, most often zeros."""

    data: bytes


class Rest(NamedTuple):
    """What comes after the last member: end blocks, and whatever is behind them."""

    data: bytes


Part = Head | Content | Padding | Rest


class TarSplitter:
    """Feeds a TarParser, and tells what passes.

        for part in splitter.feed(piece): ...
        for part in splitter.finish(): ...

    Raises what TarParser raises.
    """

    def __init__(self) -> None:
        self._parser = TarParser()
        self._pending = bytearray()  # padding, and headers of a member that is not complete
        self._padding = 0  # how much of the pending bytes is padding
        self._content = 0  # of the member's content that is to come

    def feed(self, data: bytes) -> Iterator[Part]:
        """Takes the next bytes. Exhaust the iterator before the next call."""
        start = self._parser.offset
        members = self._parser.feed(data)
        view = memoryview(data)
        position = 0
        for member in members:
            end = member.payload_offset - start
            yield from self._pass(view[position:end])
            self._check_headers()
            yield Head(member, bytes(self._pending))
            self._pending.clear()
            self._content = member.payload_size
            self._padding = -member.payload_size % BLOCK
            position = end
        yield from self._pass(view[position:])
        if self._parser.is_ended:
            yield from self._flush()
        else:
            self._check_headers()

    def finish(self) -> Iterator[Part]:
        """Says that the archive ends here."""
        self._parser.finish()
        yield from self._flush()

    def _pass(self, view: memoryview) -> Iterator[Part]:
        if self._content and view:
            content = view[: self._content]
            self._content -= len(content)
            yield Content(content, not self._content)
            view = view[len(content) :]
        self._pending += view
        if self._padding and len(self._pending) >= self._padding:
            yield Padding(bytes(self._pending[: self._padding]))
            del self._pending[: self._padding]
            self._padding = 0

    def _flush(self) -> Iterator[Part]:
        if self._padding and self._pending:  # cut off with the archive
            yield Padding(bytes(self._pending))
        elif self._pending:
            yield Rest(bytes(self._pending))
        self._pending.clear()

    def _check_headers(self) -> None:
        if len(self._pending) > limits.TAR_HEADERS_SIZE:
            raise LimitExceeded(
                "too many headers before one member of a tar",
                limit="TAR_HEADERS_SIZE",
                allowed=limits.TAR_HEADERS_SIZE,
            )
