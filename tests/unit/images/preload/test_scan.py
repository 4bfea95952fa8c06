"""What lies in the directory, and who writes it."""

import os
import time

import pytest

from imgvol import limits
from imgvol.images.preload.scan import (
    FileKind,
    is_within,
    kind_of,
    look,
    printable,
    read_bounded,
    scan,
)
from imgvol.images.preload.stamp import Stamp


@pytest.mark.parametrize(
    "name",
    [
        *("a.tar", "A.TAR", "a.tar.gz", "a.TGZ", "a.tar.zst", "a.tzst", "a.tar.bz2", "a.tbz"),
        *("a.tar.lz4", "a.b.Tar.Lz4"),
    ],
)
def test_archives_are_known_by_their_ends_in_any_case(name):
    """k3s never sees `.TAR`."""
    assert kind_of(f"/images/{name}") is FileKind.ARCHIVE


def test_lists_are_known_in_any_case_and_other_files_are_nothing():
    assert kind_of("/images/a.TXT") is FileKind.LIST
    for name in ("a", "a.gz", "tar", "a.tar.part", "a.txt~", ".a.tar", ".txt", ".cache.json"):
        assert kind_of(f"/images/{name}") is None, name


def test_everything_below_counts_but_what_is_hidden_or_behind_a_link(tmp_path):
    top = tmp_path / "images"
    for name in ("a.tar", "below/b.tar", ".hidden/c.tar", "below/.d.tar", "e.tar/f.tar", "note"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(b"x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "g.tar").write_bytes(b"x")
    (top / "link").symlink_to(tmp_path / "other")
    (top / "h.tar").symlink_to(tmp_path / "other" / "g.tar")
    os.mkfifo(top / "pipe.tar")
    listed = []
    found = scan(str(top), listed.append)
    assert sorted(found.files) == [
        str(top / n) for n in ("a.tar", "below/b.tar", "e.tar/f.tar", "h.tar")
    ]
    assert sorted(listed) == [str(top), str(top / "below"), str(top / "e.tar")]
    assert found.files[str(top / "a.tar")] == Stamp.of((top / "a.tar").stat())
    assert (found.problems, found.is_there) == ({}, True)


def test_what_is_not_there_is_empty(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "nothing", tmp_path / "file", tmp_path / "file" / "below"):
        found = scan(str(path))
        assert (found.is_there, found.files, found.problems) == (False, {}, {})


def test_what_cannot_be_looked_at_is_told_of_and_ends_nothing(tmp_path):
    (tmp_path / "loop.tar").symlink_to("loop.tar")
    (tmp_path / "gone.tar").symlink_to("nothing")
    (tmp_path / "good.tar").touch()
    with open(os.fsencode(tmp_path) + b"/\xff.tar", "wb"):
        pass
    found = scan(str(tmp_path))
    assert list(found.files) == [str(tmp_path / "good.tar")]
    reasons = {os.path.basename(path): why for path, why in found.problems.items()}
    assert reasons["\udcff.tar"] == "the name is not UTF-8"
    assert set(reasons) == {"\udcff.tar", "loop.tar", "gone.tar"}


def test_more_than_there_may_be_is_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "PRELOAD_FILES", 2)
    for name in ("a.tar", "b.tar", "c.tar"):
        (tmp_path / name).touch()
    assert "more than 2 files" in scan(str(tmp_path)).problems[str(tmp_path)]
    monkeypatch.setattr(limits, "PRELOAD_DIRECTORIES", 1)
    (tmp_path / "below").mkdir()
    monkeypatch.setattr(limits, "PRELOAD_FILES", 9)
    assert "more than 1 directories" in scan(str(tmp_path)).problems[str(tmp_path)]


def test_names_make_no_lines_of_a_log():
    assert printable("/x/a\n2024 ERROR b\udcff.tar") == "/x/a\\x0a2024 ERROR b\\xdcff.tar"


def test_a_neighbour_whose_name_begins_the_same_is_not_within():
    assert is_within("/x/images/a.tar", "/x/images")
    assert is_within("/x/images", "/x/images/")
    assert not is_within("/x/images-old/a.tar", "/x/images")
    assert is_within("/a", "/")


def test_who_has_a_file_open_for_writing_is_seen(tmp_path):
    path = tmp_path / "a.tar"
    with open(path, "wb") as file:
        file.write(b"12")
        file.flush()
        found = look(str(path))
        assert found.stamp.size == 2
        if found.is_open is None:
            pytest.skip("the file system of the temporary directory has no leases")
        assert found.is_open is True
    assert look(str(path)).is_open is False
    with open(path, "rb"):
        assert look(str(path)).is_open is False


def test_looking_keeps_no_writer_waiting(tmp_path):
    """The kernel gives a holder of a lease /proc/sys/fs/lease-break-time seconds: 45."""
    path = tmp_path / "a.tar"
    path.touch()
    look(str(path))
    began = time.monotonic()
    path.write_bytes(b"1")
    assert time.monotonic() - began < 5


def test_what_is_no_file_has_no_stamp(tmp_path):
    os.mkfifo(tmp_path / "pipe.tar")
    for path in (tmp_path / "nothing.tar", tmp_path / "pipe.tar", tmp_path):
        assert look(str(path)).stamp is None


def test_no_more_is_read_than_asked_for(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"12345")
    assert read_bounded(str(tmp_path / "a.txt"), 5) == (b"12345", False)
    assert read_bounded(str(tmp_path / "a.txt"), 4) == (b"1234", True)
