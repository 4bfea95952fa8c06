"""Fixtures of the layer formats' tests."""

import contextlib
import tracemalloc
from dataclasses import dataclass

import pytest

from imgvol import limits


@dataclass
class Peak:
    bytes: int = 0


@pytest.fixture
def peak_memory():
    """A context manager: the most memory that Python objects took within, above what was there."""

    @contextlib.contextmanager
    def measure():
        peak = Peak()
        tracemalloc.start()
        try:
            yield peak
        finally:
            peak.bytes = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()

    return measure


@pytest.fixture
def small_allowance(monkeypatch):
    """Bombs are recognised after 64 MiB, so that tests are quick."""
    monkeypatch.setattr(limits, "DECOMPRESSION_FREE", 64 * limits.MIB)
