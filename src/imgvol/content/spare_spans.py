"""Verified spans for which there is no room on disk, in memory while somebody waits for them."""

from collections.abc import Sequence
from enum import Enum

from imgvol.content.space import SpaceLedger
from imgvol.layers.lazy.spans import Region


class Spared(Enum):
    """What becomes of a verified span for which there is no room on disk."""

    KEPT = "kept"
    """Those who wait for it have it."""

    UNWANTED = "unwanted"
    """Nobody waits: whoever comes later asks for it again."""

    REFUSED = "refused"
    """There is no memory for it either."""


class SpareSpans:
    """Those of one layer. The lock of the layer's bookkeeping is held around every call but `in`.

    Args:
        ledger: Bounds what all layers have of them.
    """

    def __init__(self, ledger: SpaceLedger) -> None:
        self._ledger = ledger
        self._spans: dict[int, Sequence[Region]] = {}

    def __contains__(self, span: int) -> bool:
        return span in self._spans

    def __len__(self) -> int:
        return len(self._spans)

    def put(self, span: int, regions: Sequence[Region]) -> bool:
        """Keeps a span, if there is memory for it."""
        if span in self._spans:
            return True
        if not self._ledger.borrow_memory(_size(regions)):
            return False
        self._spans[span] = regions
        return True

    def drop(self, span: int) -> None:
        """Nobody waits for a span any more."""
        regions = self._spans.pop(span, None)
        if regions is not None:
            self._ledger.repay_memory(_size(regions))

    def fill(self, position: int, piece: memoryview, spans: Sequence[int]) -> None:
        """Puts what is here of some spans where it belongs in a piece of the data file.

        Args:
            position: Where the piece begins in the data file.
        """
        end = position + len(piece)
        for span in spans:
            for region in self._spans.get(span, ()):
                first, last = max(position, region.position), min(end, _end(region))
                if first < last:
                    part = region.data[first - region.position : last - region.position]
                    piece[first - position : last - position] = part


def _end(region: Region) -> int:
    return region.position + len(region.data)


def _size(regions: Sequence[Region]) -> int:
    return sum(len(region.data) for region in regions)
