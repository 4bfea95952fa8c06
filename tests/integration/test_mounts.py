"""Binds of plain directories, for what cannot be timed from outside a daemon."""

import os

import pytest

from imgvol.errors import Conflict, LocalError
from imgvol.volumes import mounts, syscalls
from imgvol.volumes.mountinfo import read_mountinfo
from imgvol.volumes.options import WHOLE_VIEW
from imgvol.volumes.subpaths import WHOLE
from support.programs import require_root

pytestmark = pytest.mark.root


@pytest.fixture
def places(short_path):
    """A source, a target, and where somebody moves the directory that the target is in."""
    require_root()
    for name in ("source", "place/target"):
        (short_path / name).mkdir(parents=True)
    return [bytes(short_path / name) for name in ("source", "place/target", "moved")]


def mounted_below(directory: bytes) -> list[bytes]:
    return [m.mount_point for m in read_mountinfo() if m.mount_point.startswith(directory)]


def test_a_target_that_is_replaced_while_it_is_mounted_has_nothing(places, monkeypatch):
    source, target, moved = places
    attach = syscalls.attach

    def attach_and_replace(tree, place):
        attach(tree, place)
        os.rename(os.path.dirname(target), moved)
        os.makedirs(target)

    monkeypatch.setattr(syscalls, "attach", attach_and_replace)
    with pytest.raises(Conflict, match="replaced while"):
        mounts.bind(source, WHOLE, target, WHOLE_VIEW)
    assert mounted_below(os.path.dirname(source)) == []


def test_a_mount_that_cannot_be_finished_is_taken_away(places, monkeypatch):
    source, target, _ = places

    def fail(_tree):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(syscalls, "make_private", fail)
    with pytest.raises(LocalError, match="not permitted"):
        mounts.bind(source, WHOLE, target, WHOLE_VIEW)
    assert mounted_below(os.path.dirname(source)) == []
