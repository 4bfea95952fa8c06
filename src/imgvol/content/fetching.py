"""What a lazy layer asks for of whoever brings its spans, and what is counted of that."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Protocol

from imgvol.errors import ImgvolError
from imgvol.tallies import WaitTally


@dataclass(slots=True)
class FetchStatistics:
    """What has been fetched for one layer since it was opened.

    Attributes:
        fetched: Bytes, whatever for.
        needed: Bytes of spans that readers wanted and that were not here before.
        requests: Ranges asked for.
    """

    fetched: int = 0
    needed: int = 0
    requests: int = 0


class Fetcher(Protocol):
    """Brings spans of one layer.

    Attributes:
        statistics: What it has done.
        failure: Why it cannot, if the latest try failed.
        patience: Seconds that `ensure` goes on trying while the registry fails.
    """

    statistics: FetchStatistics
    failure: ImgvolError | None
    patience: float

    @property
    def is_slow(self) -> bool:
        """Whether the line is too slow to bring more than what is asked for, or not known."""

    def note_wanted(self, spans: Collection[int]) -> None:
        """Readers want these spans: those that were not here from the start count as needed."""

    async def ensure(self, spans: Collection[int]) -> None:
        """Returns when all of these spans are present, or raises why one cannot be had."""

    def read_ahead(self, spans: Collection[int]) -> None:
        """Readers will soon want these spans: begins to bring them."""


@dataclass(slots=True)
class DemandTally:
    """Reads that had to wait until something was fetched.

    Attributes:
        waits: How many, and for how long.
        bytes: Bytes that they returned.
    """

    waits: WaitTally = field(default_factory=WaitTally)
    bytes: int = 0
