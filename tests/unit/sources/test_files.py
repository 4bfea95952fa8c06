import errno
import os
import threading

import pytest

from imgvol import limits
from imgvol.errors import (
    InvalidArgument,
    InvalidDocument,
    LimitExceeded,
    LocalError,
    NotFound,
    PermissionDenied,
    RegistryUnavailable,
    StoreFull,
)
from imgvol.sources.files import (
    DirectoryFiles,
    FileRange,
    RangeReader,
    local_errors,
    open_file,
    read_whole,
)


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs/x").write_bytes(b"content")
    files = DirectoryFiles(str(tmp_path))
    yield files
    files.close()


def test_files_of_a_directory(directory):
    with directory.open("blobs/x") as opened:
        assert opened.size == 7
        assert read_whole(opened, what="file", max_size=7) == b"content"
        assert opened.read(3, 100) == b"tent"
        assert opened.read(7, 1) == opened.read(100, 1) == b""


@pytest.mark.parametrize("path", ["x", "blobs/y", "other/x"])
def test_missing_files_are_none(directory, path):
    assert directory.open(path) is None


@pytest.mark.parametrize(
    "link", ["blobs/link", "blobs/outside", "linked/x"], ids=["file", "outside", "directory"]
)
def test_symbolic_links_are_not_followed(directory, tmp_path, link):
    (tmp_path / "blobs/link").symlink_to("x")
    (tmp_path / "blobs/outside").symlink_to("/etc/passwd")
    (tmp_path / "linked").symlink_to("blobs")
    with pytest.raises(InvalidDocument, match="symbolic links") as caught:
        directory.open(link)
    assert "cp -rL" in caught.value.hint


def test_only_regular_files(directory, tmp_path):
    os.mkfifo(tmp_path / "blobs/fifo")
    (tmp_path / "blobs/directory").mkdir()
    for name in ("blobs/fifo", "blobs/directory"):
        with pytest.raises(InvalidDocument, match="regular"):
            directory.open(name)
        with pytest.raises(InvalidArgument, match="regular"):
            open_file(str(tmp_path / name))


def test_no_such_directory(tmp_path):
    with pytest.raises(NotFound):
        DirectoryFiles(str(tmp_path / "none"))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotFound):
        DirectoryFiles(str(tmp_path / "file"))


def test_large_file_is_no_document(directory):
    with directory.open("blobs/x") as opened, pytest.raises(LimitExceeded):
        read_whole(opened, what="file", max_size=6)


def test_closing_twice_is_fine(directory):
    opened = directory.open("blobs/x")
    opened.close()
    opened.close()
    directory.close()
    directory.close()


def test_file_that_shrinks_is_noticed(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    with open_file(str(path)) as opened:
        path.write_bytes(b"12")
        with pytest.raises(InvalidDocument, match="shorter"):
            opened.read(0, 5)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, NotFound),
        (errno.ENOTDIR, NotFound),
        (errno.EACCES, PermissionDenied),
        (errno.ENOSPC, StoreFull),
        (errno.EDQUOT, StoreFull),
        (errno.ELOOP, InvalidDocument),
        (errno.EIO, LocalError),
    ],
)
def test_what_the_system_refuses_is_translated(number, kind):
    with pytest.raises(kind) as caught, local_errors("/x"):
        raise OSError(number, os.strerror(number))
    assert caught.value.fields["path"] == "/x"


# --- readers ------------------------------------------------------------------------------------


@pytest.fixture
def opened(tmp_path):
    path = tmp_path / "blob"
    path.write_bytes(bytes(range(256)) * 2048)
    with open_file(str(path)) as whole:
        yield whole


@pytest.mark.parametrize("offset", [0, 1, limits.BODY_PIECE, 256 * 2048 - 1, 256 * 2048])
def test_reader_gives_the_bytes_from_its_offset(opened, offset):
    with RangeReader(opened, offset=offset) as reader:
        pieces = list(reader.iter_pieces())
    assert b"".join(pieces) == (bytes(range(256)) * 2048)[offset:]
    assert all(0 < len(piece) <= limits.BODY_PIECE for piece in pieces)


def test_range_ends_where_it_says(opened):
    part = FileRange(os.dup(opened.detach()), 10, 5)
    with RangeReader(part) as reader:
        assert b"".join(reader.iter_pieces()) == bytes(range(10, 15))


def test_cancelled_reader_raises(opened):
    with RangeReader(opened) as reader:
        pieces = reader.iter_pieces()
        next(pieces)
        thread = threading.Thread(target=reader.cancel)
        thread.start()
        thread.join()
        with pytest.raises(RegistryUnavailable):
            next(pieces)


def test_reader_cancelled_before_it_began_raises(opened):
    with RangeReader(opened) as reader:
        reader.cancel()
        with pytest.raises(RegistryUnavailable):
            next(reader.iter_pieces())
