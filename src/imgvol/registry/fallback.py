"""Blobs from the first place that delivers, and the rest of them from the next.

Every place is asked for the same bytes, and their digest is checked by whoever takes them: when a
server goes away in the middle of a blob, the next goes on at the byte where it stopped. Who has
gone is asked last for a while, so that a reader of many ranges finds out once.
"""

import logging
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TypeAlias

import httpx

from imgvol.errors import ContentError, ImgvolError, NotFound, RemoteError
from imgvol.registry.body import BlobReader, RemoteBlobReader
from imgvol.registry.hosts import Capability
from imgvol.registry.redaction import redact_url
from imgvol.registry.stations import Failures, Station, Stations

log = logging.getLogger(__name__)

# A reader from a byte on; whether there is somebody else to ask.
OpenAtStation: TypeAlias = Callable[[Station, int, bool], RemoteBlobReader]
OpenAt: TypeAlias = Callable[[int], RemoteBlobReader]


class FallbackReader(BlobReader):
    """A BlobReader of several places.

    Args:
        stations: The registry's endpoints.
        at_station: Reads from one of them.
        others: URLs, and what reads the same bytes from there; asked in turn if the registry does
            not have it.
        start: The first byte wanted.
    """

    def __init__(
        self,
        stations: Stations,
        at_station: OpenAtStation,
        others: Sequence[tuple[httpx.URL, OpenAt]],
        *,
        start: int,
    ) -> None:
        self._stations = stations
        self._at_station = at_station
        self._others = others
        self._position = start
        self._lock = threading.Lock()
        self._reader: RemoteBlobReader | None = None
        self._is_cancelled = False
        self._pieces = self._generate()

    def iter_pieces(self) -> Iterator[bytes]:
        """See BlobReader."""
        return self._pieces

    def cancel(self) -> None:
        """See BlobReader."""
        with self._lock:
            self._is_cancelled = True
            reader = self._reader
        if reader is not None:
            reader.cancel()

    def close(self) -> None:
        """See BlobReader."""
        self._pieces.close()

    def _generate(self) -> Generator[bytes, None, None]:
        missing = yield from self._read_from_stations()
        if missing is None:
            return
        for url, open_at in self._others:
            log.info("%s: asking %s", missing.message, redact_url(url))
            try:
                yield from self._read(open_at(self._position))
            except (ContentError, NotFound, RemoteError) as error:
                if self._has_been_cancelled():
                    raise
                missing = error
            else:
                return
        raise missing

    def _read_from_stations(self) -> Generator[bytes, None, ImgvolError | None]:
        """None when all has been read; or why it has to be looked for elsewhere."""
        able = self._stations.able(Capability.PULL)
        failures = Failures()
        for position, station in enumerate(able, 1):
            try:
                yield from self._read(
                    self._at_station(station, self._position, position < len(able))
                )
            except ImgvolError as error:
                if self._has_been_cancelled():
                    raise
                self._stations.note_failure(station, error)
                failures.add(station.endpoint, error)
                if position < len(able):
                    shown = redact_url(station.endpoint.base)
                    log.info("%s, from byte %d on: %s", shown, self._position, error.message)
            else:
                self._stations.health.note_answer(station.endpoint)
                return None
        failure = failures.error()
        # A registry that fails in any other way may have it all the same.
        if self._others and isinstance(failure, NotFound):
            return failure
        raise failure

    def _has_been_cancelled(self) -> bool:
        return self._is_cancelled or (self._reader is not None and self._reader.is_cancelled)

    def _read(self, reader: RemoteBlobReader) -> Generator[bytes, None, None]:
        with self._lock:
            self._reader = reader
            is_cancelled = self._is_cancelled
        if is_cancelled:
            reader.cancel()
        with reader:
            for piece in reader.iter_pieces():
                self._position += len(piece)
                yield piece
