"""What is told of a directory: with the real kernel."""

import os

import pytest
import trio
import trio.testing

from imgvol.images.preload.watch import NoticeKind, open_watch


@pytest.fixture
def images(tmp_path):
    directory = tmp_path / "images"
    directory.mkdir()
    return directory


async def next_of(watch, seconds=5.0):
    with trio.fail_after(seconds):
        return await watch.wait()


async def nothing_comes(watch, seconds=0.1):
    with trio.move_on_after(seconds) as scope:
        await watch.wait()
    return scope.cancelled_caught


def kinds(told):
    return [(notice.kind, os.path.basename(notice.path)) for notice in told.files]


async def test_writing_closing_moving_and_removing_are_told_apart(images):
    async with open_watch(str(images)) as watch:
        watch.scan()
        with open(images / "a.tar", "wb") as file:
            file.write(b"1")
            file.flush()
            assert kinds(await next_of(watch)) == [(NoticeKind.CHANGED, "a.tar")]
        assert kinds(await next_of(watch)) == [(NoticeKind.CLOSED, "a.tar")]
        os.rename(images / "a.tar", images / "b.tar")
        assert kinds(await next_of(watch)) == [
            (NoticeKind.GONE, "a.tar"),
            (NoticeKind.ARRIVED, "b.tar"),
        ]
        os.link(images / "b.tar", images / "c.tar")
        told = kinds(await next_of(watch))
        assert (NoticeKind.CHANGED, "c.tar") in told
        (images / "b.tar").unlink()
        told = kinds(await next_of(watch))
        assert (NoticeKind.GONE, "b.tar") in told


async def test_reading_tells_nothing(images):
    (images / "a.tar").write_bytes(b"1")
    async with open_watch(str(images)) as watch:
        watch.scan()
        (images / "a.tar").read_bytes()
        assert await nothing_comes(watch)


async def test_a_directory_that_comes_later_is_watched_when_it_has_come(tmp_path):
    top = tmp_path / "var" / "lib" / "images"
    async with open_watch(str(top)) as watch:
        found = watch.scan()
        assert (found.is_there, found.unwatched, found.files) == (False, {}, {})
        (tmp_path / "unrelated").mkdir()
        assert await nothing_comes(watch)
        (tmp_path / "var").mkdir()
        assert (await next_of(watch)).is_stale
        assert not (watch.scan()).is_there
        top.mkdir(parents=True)
        assert (await next_of(watch)).is_stale
        (top / "a.tar").write_bytes(b"1")
        assert list((watch.scan()).files) == [str(top / "a.tar")]


async def test_a_neighbour_whose_name_begins_the_same_is_nothing_to_it(images):
    images.rmdir()
    async with open_watch(str(images)) as watch:
        watch.scan()
        (images.parent / "images-old").mkdir()
        assert await nothing_comes(watch)
        images.mkdir()
        assert (await next_of(watch)).is_stale
        watch.scan()
        (images.parent / "images-old" / "a.tar").write_bytes(b"1")
        assert await nothing_comes(watch)


async def test_directories_below_are_watched_however_they_come(images, tmp_path):
    moved = tmp_path / "moved"
    (moved / "deep").mkdir(parents=True)
    async with open_watch(str(images)) as watch:
        watch.scan()
        os.rename(moved, images / "moved")
        assert (await next_of(watch)).is_stale
        watch.scan()
        (images / "moved" / "deep" / "a.tar").write_bytes(b"1")
        paths = {notice.path for notice in (await next_of(watch)).files}
        assert paths == {str(images / "moved" / "deep" / "a.tar")}


async def test_a_directory_that_is_removed_and_made_again_is_watched_again(images):
    async with open_watch(str(images)) as watch:
        watch.scan()
        images.rmdir()
        assert (await next_of(watch)).is_stale
        assert not (watch.scan()).is_there
        images.mkdir()
        assert (await next_of(watch)).is_stale
        assert (watch.scan()).is_there
        (images / "a.tar").write_bytes(b"1")
        assert (await next_of(watch)).files


async def test_a_file_in_the_directorys_place_is_waited_out(images):
    images.rmdir()
    images.write_bytes(b"")
    async with open_watch(str(images)) as watch:
        assert not (watch.scan()).is_there
        images.unlink()
        images.mkdir()
        assert (await next_of(watch)).is_stale
        assert (watch.scan()).is_there


async def test_a_directory_that_is_moved_out_is_not_ours_any_more(images, tmp_path):
    (images / "below").mkdir()
    async with open_watch(str(images)) as watch:
        watch.scan()
        os.rename(images / "below", tmp_path / "elsewhere")
        assert (await next_of(watch)).is_stale
        watch.scan()
        (tmp_path / "elsewhere" / "a.tar").write_bytes(b"1")
        assert await nothing_comes(watch)


async def test_what_the_kernel_has_dropped_is_looked_at_again(images):
    """The queue really overflows: nobody reads while more happens than it holds."""
    with open("/proc/sys/fs/inotify/max_queued_events") as file:
        most = int(file.read())
    one, other = images / "a.tar", images / "b.tar"
    for path in (one, other):
        path.write_bytes(b"1")
    async with open_watch(str(images)) as watch:
        watch.scan()
        for _ in range(most // 2 + 1):
            # One after the other: the kernel drops an event that is like the one before.
            os.utime(one)
            os.utime(other)
        (images / "late.tar").write_bytes(b"1")
        told = []
        while not (told and told[-1].has_overflown):
            told.append(await next_of(watch))
        assert told[-1].is_stale
        assert not any("late.tar" in notice.path for each in told for notice in each.files)
        assert str(images / "late.tar") in (watch.scan()).files


async def test_leaving_ends_a_wait(images):
    async def wait(watch):
        with pytest.raises(trio.ClosedResourceError):
            await watch.wait()

    async with trio.open_nursery() as nursery, open_watch(str(images)) as watch:
        watch.scan()
        nursery.start_soon(wait, watch)
        await trio.testing.wait_all_tasks_blocked()
