"""Directories that stay open for many binds: looked up once, anew when they have gone, not many."""

import os

import pytest

from imgvol import limits
from imgvol.volumes import syscalls
from imgvol.volumes.mounts import KeptPlaces


@pytest.fixture
def kept():
    places = KeptPlaces()
    yield places
    places.close()


@pytest.fixture
def looked_up(monkeypatch):
    """The paths that were looked up, one by one."""
    paths, look_up = [], syscalls.open_place

    def noted(path):
        paths.append(path)
        return look_up(path)

    monkeypatch.setattr(syscalls, "open_place", noted)
    return paths


def make(directory, name):
    path = directory / name
    path.mkdir()
    return os.fsencode(path)


def open_files():
    return len(os.listdir("/proc/self/fd"))


def test_a_view_is_looked_up_once(tmp_path, kept, looked_up):
    path = make(tmp_path, "view")
    for _ in range(3):
        with kept.open(path) as place:
            assert os.path.samestat(os.fstat(place), os.stat(path))
    assert looked_up == [path]


def test_what_has_gone_is_looked_up_anew(tmp_path, kept, looked_up):
    path = make(tmp_path, "view")
    with pytest.raises(FileNotFoundError), kept.open(path):
        raise FileNotFoundError
    with kept.open(path):
        pass
    assert looked_up == [path, path]


def test_few_stay_open_and_none_after_closing(tmp_path, kept, monkeypatch):
    monkeypatch.setattr(limits, "KEPT_VIEWS", 3)
    before = open_files()
    for number in range(10):
        with kept.open(make(tmp_path, str(number))):
            assert open_files() <= before + 3
    kept.close()
    assert open_files() == before
