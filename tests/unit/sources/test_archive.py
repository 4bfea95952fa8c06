import gzip
import io
import os
import tarfile
import threading
from contextlib import closing, suppress

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from imgvol import limits
from imgvol.errors import (
    ContentError,
    InvalidArgument,
    InvalidDocument,
    LimitExceeded,
    NotFound,
    RegistryUnavailable,
)
from imgvol.sources.archive import open_archive
from imgvol.sources.files import read_whole

HUGE = b"0123456789abcdef" * 20_000


def tar_of(*members, form=tarfile.PAX_FORMAT) -> bytes:
    """Members are (name, bytes) for files, (name, "s:" or "h:" and the target) for links."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
                continue
            kind, _, info.linkname = content.partition(":")
            info.type = {"s": tarfile.SYMTYPE, "h": tarfile.LNKTYPE, "d": tarfile.DIRTYPE}[kind]
            archive.addfile(info)
    return buffer.getvalue()


@pytest.fixture
def open_bytes(tmp_path):
    """Opens an archive of these bytes, and closes it after the test."""
    opened = []

    def open_them(data: bytes):
        path = tmp_path / f"{len(opened)}.tar"
        path.write_bytes(data)
        files = open_archive(str(path), stop=threading.Event(), spool_directory=str(tmp_path))
        opened.append(files)
        return files

    yield open_them
    for files in opened:
        files.close()


def content(files, path: str) -> bytes | None:
    opened = files.open(path)
    if opened is None:
        return None
    with opened:
        return read_whole(opened, what="file", max_size=1 << 30)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_members_of_all_sizes_are_found(open_bytes, form):
    members = [
        (f"directory/{'n' * (90 if form == tarfile.USTAR_FORMAT else 200)}{size}", HUGE[:size])
        for size in (0, 1, 511, 512, 513, 16_384, 100_000, len(HUGE), 5)
    ]
    files = open_bytes(tar_of(*members, form=form))
    assert {name: content(files, name) for name, _ in members} == dict(members)
    assert files.open("directory") is None
    assert files.open("none") is None


@pytest.mark.parametrize(
    "pack",
    [
        lambda data: gzip.compress(data, 1),
        lambda data: zstandard.ZstdCompressor().compress(data),
        lambda data: gzip.compress(data[:700], 1) + gzip.compress(data[700:], 1),
    ],
    ids=["gzip", "zstd", "gzip of two members"],
)
def test_compressed_archive_is_read_too_and_leaves_nothing(open_bytes, tmp_path, pack):
    files = open_bytes(pack(tar_of(("a", b"1"), ("b", HUGE))))
    assert content(files, "b") == HUGE
    assert os.listdir(tmp_path) == ["0.tar"]


def test_names_are_cleaned_and_the_last_of_equal_ones_counts(open_bytes):
    files = open_bytes(
        tar_of(
            ("./a/./b", b"old"), ("a//b", b"new"), ("/c", b"c"), ("../../d", b"d"), ("x/../e", b"e")
        )
    )
    assert content(files, "a/b") == b"new"
    assert [content(files, name) for name in ("c", "d", "e")] == [b"c", b"d", b"e"]
    assert content(files, "../../../a/b") == b"new"
    assert content(files, "../etc/passwd") is None


def test_links_lead_to_other_members_only(open_bytes):
    files = open_bytes(
        tar_of(
            ("x/layer.tar", b"layer"),
            ("y/layer.tar", "s:../x/layer.tar"),
            ("z/layer.tar", "h:x/layer.tar"),
            ("w", "s:y/layer.tar"),
            ("absolute", "s:/x/layer.tar"),
            ("outside", "s:../../../etc/passwd"),
            ("root", "s:/etc/passwd"),
            ("dangling", "h:none"),
        )
    )
    for name in ("y/layer.tar", "z/layer.tar", "w", "absolute"):
        assert content(files, name) == b"layer"
    for name in ("outside", "root", "dangling"):
        assert content(files, name) is None


@pytest.mark.parametrize(
    "members",
    [
        [("a", "s:a")],
        [("a", "h:a")],
        [("a", "s:b"), ("b", "h:a")],
        [("a", "s:0"), *[(str(n), f"s:{n + 1}") for n in range(50)], ("50", b"far")],
    ],
    ids=["itself", "hard", "circle", "chain"],
)
def test_links_are_followed_only_so_often(open_bytes, members):
    with pytest.raises(InvalidDocument, match="too many links"):
        open_bytes(tar_of(*members)).open("a")


@pytest.mark.fault("F96")
@pytest.mark.parametrize("size", [1, 100, 511, 512 + 100, 512 + 50_000])
def test_truncated_archive_is_refused(open_bytes, size):
    whole = tar_of(("a", HUGE), ("b", b"b"))
    with pytest.raises(InvalidDocument, match="the archive is damaged"):
        open_bytes(whole[:size])


@pytest.mark.parametrize("cut", [1, 10, 1000])
def test_truncated_compressed_archive_is_refused(open_bytes, cut):
    with pytest.raises(InvalidDocument, match="the archive is damaged"):
        open_bytes(gzip.compress(tar_of(("a", os.urandom(2000))))[:-cut])


def test_end_blocks_may_be_missing_and_what_follows_them_is_not_looked_at(open_bytes):
    whole = tar_of(("a", b"1"))
    assert content(open_bytes(whole[:1024]), "a") == b"1"
    assert content(open_bytes(whole + b"no header" * 1000), "a") == b"1"


@pytest.mark.parametrize("data", [b"x" * 1024, b"\xff" * 3000, b"{}"], ids=["x", "ff", "json"])
def test_no_archive(open_bytes, data):
    with pytest.raises(InvalidDocument):
        open_bytes(data)


def test_sparse_members_are_not_files(open_bytes):
    header = tarfile.TarInfo("GNUSparseFile.0/a")
    header.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "a",
        "GNU.sparse.realsize": "4096",
    }
    stored = b"1\n0\n4\n".ljust(512, b"\0") + b"data"
    header.size = len(stored)
    data = header.tobuf(tarfile.PAX_FORMAT) + stored.ljust(1024, b"\0") + bytes(1024)
    assert open_bytes(data).open("a") is None


@pytest.mark.fault("F96")
def test_limits(open_bytes, monkeypatch):
    monkeypatch.setattr(limits, "ARCHIVE_ENTRIES", 3)
    open_bytes(tar_of(*[(str(n), b"") for n in range(3)]))
    with pytest.raises(LimitExceeded, match="too many members"):
        open_bytes(tar_of(*[(str(n), b"") for n in range(4)]))
    monkeypatch.setattr(limits, "INDEX_STRINGS_SIZE", 100)
    with pytest.raises(LimitExceeded, match="names"):
        open_bytes(tar_of(("n" * 101, b"")))
    monkeypatch.setattr(limits, "ARCHIVE_SPOOL_SIZE", 10_000)
    with pytest.raises(LimitExceeded) as caught:
        open_bytes(gzip.compress(tar_of(("a", HUGE))))
    assert caught.value.fields["limit"] == "ARCHIVE_SPOOL_SIZE"


def test_it_can_be_stopped(tmp_path):
    stop = threading.Event()
    stop.set()
    for number, data in enumerate([tar_of(("a", b"1")), gzip.compress(tar_of(("a", b"1")))]):
        path = tmp_path / str(number)
        path.write_bytes(data)
        with pytest.raises(RegistryUnavailable):
            open_archive(str(path), stop=stop)


def test_files_that_are_no_files(tmp_path):
    with pytest.raises(NotFound):
        open_archive(str(tmp_path / "none"), stop=threading.Event())
    with pytest.raises(InvalidArgument):
        open_archive(str(tmp_path), stop=threading.Event())


def test_ranges_outlive_the_archive(open_bytes):
    files = open_bytes(tar_of(("a", HUGE)))
    opened = files.open("a")
    files.close()
    with opened:
        assert opened.read(0, len(HUGE)) == HUGE


def test_only_headers_are_read(tmp_path):
    path = tmp_path / "sparse.tar"
    size = 64 * limits.GIB
    header = tarfile.TarInfo("big")
    header.size = size
    with open(path, "wb") as archive:
        archive.write(header.tobuf(tarfile.GNU_FORMAT))
        archive.seek(size, os.SEEK_CUR)
        archive.write(tar_of(("after", b"found")))
    with closing(open_archive(str(path), stop=threading.Event())) as files:
        assert content(files, "after") == b"found"


@settings(max_examples=40)
@given(st.data())
def test_no_other_exception_on_a_damaged_archive(tmp_path_factory, data):
    whole = bytearray(tar_of(("a", b"x" * 600), ("b", "s:a"), ("c" * 120, b"1")))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "x.tar"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    with suppress(ContentError):
        open_archive(str(path), stop=threading.Event()).close()
