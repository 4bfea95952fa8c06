"""Where blobs were found."""

import httpx

from imgvol import limits
from imgvol.registry.locations import Locations

BLOB = httpx.URL("https://example.com/v2/a/blobs/sha256:1")
OLD, NEW = httpx.URL("https://store.test/old"), httpx.URL("https://store.test/new")


def test_the_latest_place_counts():
    locations = Locations()
    assert locations.get(BLOB) is None
    locations.note(BLOB, OLD)
    locations.note(BLOB, NEW)
    assert locations.get(BLOB) == NEW


def test_who_finds_a_place_gone_does_not_take_away_a_newer_one():
    locations = Locations()
    locations.note(BLOB, NEW)
    locations.forget(BLOB, OLD)
    assert locations.get(BLOB) == NEW
    locations.forget(BLOB, NEW)
    locations.forget(BLOB, NEW)
    assert locations.get(BLOB) is None


def test_few_are_remembered_the_latest_ones(monkeypatch):
    monkeypatch.setattr(limits, "LOCATIONS", 3)
    locations = Locations()
    blobs = [httpx.URL(f"https://example.com/{number}") for number in range(5)]
    for blob in blobs:
        locations.note(blob, OLD)
    assert [locations.get(blob) for blob in blobs] == [None, None, OLD, OLD, OLD]
