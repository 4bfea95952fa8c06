"""What `imgvol events` prints of an event."""

import time

import pytest

from imgvol.cli.events import event_line

AT = 1_700_000_000.0
WHEN = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(AT))


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        ({}, ""),
        ({"stage": "pulling", "received": 5, "unpacked": 0}, " stage=pulling received=5"),
        ({"repo_tags": ["a:1", "b:2"], "repo_digests": []}, " repo_tags=a:1,b:2"),
        ({"is_pinned": True}, " is_pinned=yes"),
        ({"is_pinned": False}, ""),
        ({"reason": "bell \x07"}, " reason=bell \\a"),
    ],
)
def test_a_line_tells_what_there_is_to_tell(data, shown):
    event = {
        "event": "k",
        "at": AT,
        "image": "a:1",
        "id": f"sha256:{'0123456789ab' * 5}",
        "data": data,
    }
    assert event_line(event) == f"{WHEN} k a:1 0123456789ab{shown}"


def test_an_image_without_an_id_has_none():
    event = {"event": "pull.failed", "at": AT, "image": "a:1", "id": None, "data": {"code": "x"}}
    assert event_line(event) == f"{WHEN} pull.failed a:1 code=x"
