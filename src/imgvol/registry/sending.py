"""The bytes of a blob on their way out: read in the thread that sends them, and verified there.

A registry checks the digest of what it gets, but only at the end, and some do not; a file that has
changed since it was described is found here, before its last byte leaves. The last piece is held
back until all that was read, it included, hashes to the blob's digest.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO, Self, TypeAlias

from imgvol import limits
from imgvol.errors import DigestMismatch, LocalError, RegistryUnavailable
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.registry.body import RateGuard
from imgvol.registry.bounds import Bounds
from imgvol.registry.operation import Operation

OpenBody: TypeAlias = Callable[[], BinaryIO]
# Bytes of a blob that have been sent so far; called in a worker thread, and must not block.
SentBytes: TypeAlias = Callable[[int], None]


class OutgoingBlob:
    """Reads a blob to be sent, from any position on. For one thread.

    Args:
        descriptor: The blob.
        open_body: Opens its bytes at the beginning; called again to read something again.
        operation: Of the thread; its deadline is lifted while bytes are taken.
        bounds: How slowly they may be taken, and how long the answer may take after them.
        sent: Told how many have been taken.
    """

    def __init__(
        self,
        descriptor: Descriptor,
        open_body: OpenBody,
        *,
        operation: Operation,
        bounds: Bounds,
        sent: SentBytes,
    ) -> None:
        self._descriptor = descriptor
        self._open_body = open_body
        self._operation = operation
        self._bounds = bounds
        self._sent = sent
        self._file: BinaryIO | None = None
        self._position = 0
        self._hasher = descriptor.digest.hasher()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def iter_pieces(self, start: int, end: int) -> Iterator[bytes]:
        """The bytes from `start` to `end`, as fast as the network takes them.

        Raises:
            DigestMismatch: The file is not, or no longer, what its descriptor says.
            LocalError: It cannot be read.
            RegistryUnavailable: The network takes them too slowly.
        """
        # What may take long has guards of its own.
        self._operation.allow_within(math.inf)
        try:
            self._seek(start)
            yield from self._paced(end)
        finally:
            self._operation.allow_within(self._bounds.push_answer)

    def _paced(self, end: int) -> Iterator[bytes]:
        guard = RateGuard(rate=self._bounds.minimum_rate, window=self._bounds.rate_window)
        while self._position < end:
            piece = self._read(min(limits.BODY_PIECE, end - self._position))
            if self._position == self._descriptor.size:
                self._verify()
            begun = time.monotonic()
            yield piece
            if not guard.note(len(piece), time.monotonic() - begun):
                raise RegistryUnavailable(
                    f"the registry takes blob {self._descriptor.digest} too slowly",
                    minimum_rate=self._bounds.minimum_rate,
                )
            self._sent(self._position)
        if not self._descriptor.size:
            self._verify()

    def _seek(self, position: int) -> None:
        if position < self._position:
            self._close()
        while self._position < position:
            self._operation.remaining()
            self._read(min(limits.BODY_PIECE, position - self._position))

    def _read(self, size: int) -> bytes:
        """Exactly so many bytes, hashed."""
        try:
            if self._file is None:
                self._file = self._open_body()
            pieces = []
            while size and (piece := self._file.read(size)):
                pieces.append(piece)
                size -= len(piece)
        except OSError as error:
            raise self._unreadable(error) from error
        if size:
            raise DigestMismatch(
                "a blob to push is shorter than it is said to be",
                digest=self._descriptor.digest,
                expected=self._descriptor.size,
            )
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._position += len(data)
        self._hasher.update(data)
        return data

    def _verify(self) -> None:
        actual = Digest.from_hasher(self._hasher)
        if actual != self._descriptor.digest:
            raise DigestMismatch(
                "a blob to push is not what its digest names: it has changed",
                expected=self._descriptor.digest,
                actual=actual,
            )
        try:
            if self._file is not None and self._file.read(1):
                raise DigestMismatch(
                    "a blob to push is longer than it is said to be",
                    digest=self._descriptor.digest,
                    expected=self._descriptor.size,
                )
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> LocalError:
        reason = os.strerror(error.errno).lower() if error.errno else "not readable"
        return LocalError(
            f"a blob to push cannot be read: {reason}", digest=self._descriptor.digest
        )

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None
        self._position = 0
        self._hasher = self._descriptor.digest.hasher()


@dataclass(frozen=True, slots=True)
class OutgoingPiece:
    """The bytes of a blob from `start` to `end`, each time that it is iterated over.

    Whoever stops in the middle ends the iterator with it, so that deadlines count again.
    """

    blob: OutgoingBlob
    start: int
    end: int

    def __iter__(self) -> Iterator[bytes]:
        return self.blob.iter_pieces(self.start, self.end)
