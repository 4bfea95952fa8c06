"""The preload directory, with a real store, a real kernel and archives made here."""

import json
import logging
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio

from imgvol import limits
from imgvol.content.records import ImageRecord
from imgvol.content.store import open_store
from imgvol.errors import NotFound, RegistryUnavailable
from imgvol.images.leases import Leases
from imgvol.images.preload.archives import ArchiveImport
from imgvol.images.preload.cache_file import CACHE_NAME
from imgvol.images.preload.loading import OWNER, PreloadSettings
from imgvol.images.preload.preloader import Preloader
from imgvol.images.preload.retag import parse_registries
from imgvol.images.preload.scan import look
from imgvol.images.preload.status import FileState
from imgvol.images.pull import Puller, PullProgress
from imgvol.images.resolve import resolve_image, wanted_platform
from imgvol.images.service import ImageService
from imgvol.images.views import Views
from support.bundles import Bundle
from support.images import Image, Layer, file
from support.sources import MemorySource


def image_of(text):
    return Image([Layer([file("name", text.encode())], "gzip")])


def archive(*names):
    """An archive of one image, that has these names."""
    bundle = Bundle()
    bundle.list(bundle.manifest(image_of(names[0])), names[0])
    for name in names[1:]:
        bundle.list(bundle.manifest(image_of(names[0])), name)
    return bundle.tar()


@dataclass
class Home:
    """A store and a directory; `pulled` is what registries were asked for."""

    store: object
    images: ImageService
    directory: object
    pulled: list
    preloader: Preloader | None = None

    def put(self, name, data):
        """Puts a file there as one should."""
        path = self.directory / name
        beside = self.directory.parent / "part"
        beside.write_bytes(data)
        os.rename(beside, path)
        return path

    def states(self):
        files = self.preloader.status().files
        return {os.path.basename(each.path): each.state.value for each in files}

    def file(self, name):
        (found,) = [
            each for each in self.preloader.status().files if os.path.basename(each.path) == name
        ]
        return found

    def names(self):
        return sorted({name for image in self.store.images for name in image.names})

    def pinned_by(self, name):
        (record,) = self.images.catalog.search(name, is_listed=False).images
        return [owner.rpartition("/")[2] for owner in record.pinned_by]

    async def until(self, condition):
        """Waits for something that the preloader does."""
        with trio.fail_after(20):
            while not condition():
                await trio.sleep(0.01)

    async def settled(self, **expected):
        """Waits until files are as they are expected, by their names without the end."""
        await self.until(
            lambda: {n.partition(".")[0]: s for n, s in self.states().items()} == expected
        )

    @asynccontextmanager
    async def running(self, *, registries=(), keeps_pins=False, links=False):
        settings = PreloadSettings(
            directory=str(self.directory),
            registries=parse_registries(registries),
            keeps_pins=keeps_pins,
        )
        imported = ArchiveImport(self.images.importer, links=links)
        self.preloader = Preloader(settings, self.images, imported)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.preloader.run)
            with trio.fail_after(20):
                await self.preloader.ready.wait()
            yield self.preloader
            nursery.cancel_scope.cancel()


@pytest.fixture
async def home(tmp_path):
    async with open_store(tmp_path / "store") as store:
        images = ImageService(store, Views(store), leases=Leases(store.records))
        (tmp_path / "images").mkdir()
        pulled = []

        async def pull(name, *, options, progress):
            pulled.append(name)
            if "down." in name:
                raise RegistryUnavailable("cannot connect")
            if "nobody" in name:
                raise NotFound("no such image")
            source = MemorySource(image_of(name))
            resolved = await resolve_image(source, wanted_platform("linux/amd64"))
            return await Puller(store).pull(source, resolved, name, PullProgress())

        images.pull = pull
        yield Home(store, images, tmp_path / "images", pulled)


A, B = "docker.io/library/a:1", "quay.io/b:2"


async def test_what_is_there_is_imported_named_and_pinned_before_it_is_ready(home):
    home.put("a.tar", archive(A))
    (home.directory / "below").mkdir()
    home.put("below/b.TAR", archive(B))
    async with home.running(registries=["one.example/", "two.example/mirror"]):
        assert home.states() == {"a.tar": "imported", "b.TAR": "imported"}
        assert home.names() == [
            A,
            "one.example/b:2",
            "one.example/library/a:1",
            B,
            "two.example/mirror/b:2",
            "two.example/mirror/library/a:1",
        ]
        assert home.pinned_by(A) == ["a.tar"]
        assert all(image.is_pinned for image in home.images.catalog.images())
        status = home.preloader.status()
        assert (status.imported, status.failed, status.is_watched) == (2, 0, True)


async def test_what_comes_later_is_imported_and_unpinned_when_it_goes(home):
    async with home.running():
        path = home.put("a.tar", archive(A))
        await home.settled(a="imported")
        os.unlink(path)
        await home.until(lambda: not home.states())
        await home.until(lambda: home.pinned_by(A) == [])
        assert home.names() == [A], "it stays until somebody collects or removes it"


async def test_pins_of_others_stay(home):
    async with home.running():
        path = home.put("a.tar", archive(A))
        home.put("b.tar", archive(A))
        await home.settled(a="imported", b="imported")
        await home.images.pin(A)
        assert home.pinned_by(A) == ["a.tar", "b.tar", "user"]
        os.unlink(path)
        await home.until(lambda: home.pinned_by(A) == ["b.tar", "user"])


async def test_pins_are_kept_until_the_next_start_if_asked_for(home):
    async with home.running(keeps_pins=True):
        path = home.put("a.tar", archive(A))
        await home.settled(a="imported")
        os.unlink(path)
        await home.until(lambda: not home.states())
        assert home.pinned_by(A) == ["a.tar"]
    async with home.running(keeps_pins=True):
        assert home.pinned_by(A) == []


async def test_at_the_start_only_pins_of_files_that_have_gone_end(home):
    async with home.running():
        gone = home.put("a.tar", archive(A))
        home.put("b.tar", archive(B))
        await home.settled(a="imported", b="imported")
    await home.images.pin(A)
    os.unlink(gone)
    async with home.running():
        assert home.pinned_by(A) == ["user"]
        assert home.pinned_by(B) == ["b.tar"]


@pytest.mark.expects_log("bad")
async def test_a_bad_file_stops_no_other_and_is_told_of_once(home, caplog):
    good = archive(A)
    home.put("1-bad.tar", good[:2000])
    home.put("2-bad.tar", b"not a tar at all")
    home.put("3-good.tar", good)
    async with home.running():
        assert home.states() == {
            "1-bad.tar": "failed",
            "2-bad.tar": "failed",
            "3-good.tar": "imported",
        }
        # Something else happens to them: nothing that makes them another file.
        os.chmod(home.directory / "1-bad.tar", 0o600)
        home.put("4-good.tar", archive(B))
        await home.until(lambda: home.states().get("4-good.tar") == "imported")
        warnings = [r for r in caplog.records if r.levelno >= logging.WARNING]
        assert len(warnings) == 2
        assert "1-bad.tar" in warnings[0].getMessage()
        # Repaired, it comes in.
        home.put("1-bad.tar", archive("docker.io/library/c:3"))
        await home.until(lambda: home.states()["1-bad.tar"] == "imported")
        assert home.preloader.status().failed == 2


@pytest.mark.expects_log("a.tar")
async def test_a_file_that_has_become_bad_keeps_what_it_has_brought(home):
    async with home.running():
        home.put("a.tar", archive(A))
        await home.settled(a="imported")
        home.put("a.tar", b"damaged")
        await home.settled(a="failed")
        assert home.pinned_by(A) == ["a.tar"]
        assert home.file("a.tar").images == (A,)


async def test_a_file_is_imported_again_when_its_size_or_its_time_changes(home):
    """k3s wants both: what was replaced by something as large was never read."""
    path = home.put("a.tar", archive(A))
    async with home.running():
        other = archive("docker.io/library/x:1")
        assert len(other) == path.stat().st_size
        home.put("a.tar", other)
        await home.until(lambda: "docker.io/library/x:1" in home.names())
        await home.until(lambda: home.pinned_by(A) == [])
        os.utime(path, (1, 1))
        await home.until(lambda: home.preloader.status().imported == 3)


async def test_a_slow_writer_is_waited_for(home, monkeypatch):
    # Longer than it rests: where the kernel does not tell who writes, that has to do.
    monkeypatch.setattr(limits, "PRELOAD_SETTLE", 0.5)
    data = archive(A)
    async with home.running():
        with open(home.directory / "a.tar", "wb") as writer:
            for start in range(0, len(data), 4096):
                writer.write(data[start : start + 4096])
                writer.flush()
                await trio.sleep(0.2)
                assert home.states() in ({}, {"a.tar": "waiting"})
        await home.settled(a="imported")
        assert home.preloader.status().imported == 1


async def test_a_file_that_is_being_written_at_the_start_holds_up_nothing(home, monkeypatch):
    monkeypatch.setattr(limits, "PRELOAD_SETTLE", 0.05)
    data = archive(A)
    with open(home.directory / "a.tar", "wb") as writer:
        writer.write(data[:2000])
        writer.flush()
        os.utime(home.directory / "a.tar", (1, 1))
        if look(str(home.directory / "a.tar")).is_open is None:
            pytest.skip("the file system of the temporary directory has no leases")
        async with home.running():
            assert home.states() == {"a.tar": "waiting"}
            writer.write(data[2000:])
            writer.close()
            await home.settled(a="imported")


async def test_links_to_files_and_hard_links_count(home, tmp_path):
    (tmp_path / "elsewhere").write_bytes(archive(A))
    os.utime(tmp_path / "elsewhere", (1, 1))
    async with home.running():
        os.link(tmp_path / "elsewhere", home.directory / "hard.tar")
        await home.settled(hard="imported")
        os.symlink(tmp_path / "elsewhere", home.directory / "soft.tar")
        await home.settled(hard="imported", soft="imported")


async def test_the_directory_may_come_late_go_and_come_again(home):
    home.directory.rmdir()
    async with home.running():
        home.directory.mkdir()
        home.put("a.tar", archive(A))
        await home.settled(a="imported")
        os.rename(home.directory, home.directory.parent / "images-old")
        await home.until(lambda: not home.states())
        await home.until(lambda: home.pinned_by(A) == [])
        home.directory.mkdir()
        home.put("b.tar", archive(B))
        await home.settled(b="imported")
        (home.directory.parent / "images-old" / "c.tar").write_bytes(b"nothing to us")
        home.put("d.tar", archive(A))
        await home.settled(b="imported", d="imported")


@pytest.mark.expects_log("preload directory")
async def test_what_cannot_be_looked_at_has_not_gone(home, monkeypatch):
    (home.directory / "below").mkdir()
    async with home.running():
        home.put("below/a.tar", archive(A))
        await home.settled(a="imported")
        scandir = os.scandir

        def refuse(path):
            if str(path).endswith("below"):
                raise OSError(5, "Input/output error")
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)
        (home.directory / "more").mkdir()
        await home.until(lambda: home.preloader.status().problems)
        assert home.states() == {"a.tar": "imported"}
        assert home.pinned_by(A) == ["a.tar"]


# --- the cache file ------------------------------------------------------------------------------


@pytest.mark.expects_log("nameless")
async def test_with_a_cache_file_a_restart_imports_nothing_and_pins_and_names_all(home):
    (home.directory / CACHE_NAME).touch()
    bundle = Bundle()
    bundle.list(bundle.manifest(image_of("nameless")))
    home.put("a.tar", archive(A))
    home.put("nameless.tar", bundle.tar())
    async with home.running():
        assert home.preloader.status().imported == 2
    for owner in await home.images.pin_owners(OWNER):
        await home.images.pin_only((), owner)
    async with home.running(registries=["one.example"]):
        status = home.preloader.status()
        assert (status.imported, status.unchanged) == (0, 2)
        assert home.pinned_by(A) == ["a.tar"]
        assert "one.example/library/a:1" in home.names()
        assert all(image.is_pinned for image in home.images.catalog.images())
        assert "it has no name" in home.file("nameless.tar").problems[0]


async def test_without_a_cache_file_a_restart_imports_everything(home):
    home.put("a.tar", archive(A))
    for _ in range(2):
        async with home.running():
            assert home.preloader.status().imported == 1
    assert not (home.directory / CACHE_NAME).exists()


async def test_what_the_cache_speaks_of_and_is_not_here_is_imported(home):
    (home.directory / CACHE_NAME).touch()
    home.put("a.tar", archive(A))
    async with home.running():
        pass
    await home.images.remove(A)
    async with home.running():
        assert home.preloader.status().imported == 1


async def test_a_changed_file_is_imported_whatever_the_cache_says(home):
    (home.directory / CACHE_NAME).touch()
    path = home.put("a.tar", archive(A))
    async with home.running():
        pass
    before = path.stat()
    home.put("a.tar", archive("docker.io/library/x:1"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    async with home.running():
        assert home.preloader.status().imported == 1


@pytest.mark.expects_log("bad.tar")
async def test_only_what_was_imported_is_in_the_cache_and_what_has_gone_leaves_it(home):
    (home.directory / CACHE_NAME).write_text(
        json.dumps({"/elsewhere/x.tar": {"size": 1, "modTime": "2024-05-01T10:00:00Z"}})
    )
    home.put("bad.tar", b"bad")
    home.put("a.txt", b"")
    gone = home.put("a.tar", archive(A))

    def cached():
        return set(json.loads((home.directory / CACHE_NAME).read_text()))

    async with home.running():
        assert cached() == {str(gone)}
        os.unlink(gone)
        await home.until(lambda: cached() == set())


@pytest.mark.expects_log("cache.json is passed over")
async def test_a_damaged_cache_file_is_passed_over(home):
    (home.directory / CACHE_NAME).write_bytes(b"{")
    home.put("a.tar", archive(A))
    async with home.running():
        assert home.states() == {"a.tar": "imported"}


# --- lists ---------------------------------------------------------------------------------------


@pytest.mark.expects_log("partial")
async def test_a_list_is_pulled_and_what_works_is_pinned_whatever_does_not(home):
    lines = [A, "Bad Line", "down.example/x:1", "# nothing", "", B, "nobody:1"]
    home.put("a.TXT", "\n".join(lines).encode())
    async with home.running(registries=["one.example"]):
        found = home.file("a.TXT")
        assert found.state is FileState.PARTIAL
        assert found.images == (A, B)
        assert [problem.partition(":")[0] for problem in found.problems] == [
            "line 2",
            "line 3",
            "line 7",
        ]
        assert (home.pinned_by(A), home.pinned_by(B)) == (["a.TXT"], ["a.TXT"])
        assert {"one.example/library/a:1", "one.example/b:2"} < set(home.names())


async def test_what_is_here_is_not_pulled_again_not_even_latest(home):
    home.put("a.tar", archive("docker.io/library/a:latest"))
    async with home.running():
        home.put("a.txt", b"a\n")
        await home.until(lambda: home.states().get("a.txt") == "imported")
        assert home.pulled == []
        assert home.pinned_by("a") == ["a.tar", "a.txt"]


async def test_what_is_here_only_in_part_is_pulled(home, monkeypatch):
    async with home.running():
        home.put("a.txt", f"{A}\n".encode())
        await home.settled(a="imported")
        monkeypatch.setattr(ImageRecord, "is_complete", False)
        os.utime(home.directory / "a.txt", (1, 1))
        await home.until(lambda: home.pulled == [A, A])


@pytest.mark.expects_log("cannot read the list")
async def test_a_list_that_cannot_be_read_is_told_of(home, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("imgvol.images.preload.loading.read_bounded", fail)
    home.put("a.txt", f"{A}\n".encode())
    async with home.running():
        assert home.states() == {"a.txt": "failed"}
        assert "Input/output error" in home.file("a.txt").problems[0]


async def test_images_that_leave_a_list_are_not_pinned_any_more(home):
    async with home.running():
        home.put("a.txt", f"{A}\n{B}\n".encode())
        await home.settled(a="imported")
        home.put("a.txt", f"{B}\n".encode())
        await home.until(lambda: home.pinned_by(A) == [])
        assert home.pinned_by(B) == ["a.txt"]
        assert sorted(home.pulled) == [A, B]


async def test_a_registry_that_does_not_answer_holds_up_no_archive(home):
    async def hang(name, **_):
        await trio.sleep_forever()

    home.images.pull = hang
    async with home.running():
        home.put("a.txt", b"a\n")
        await home.settled(a="working")
        home.put("b.tar", archive(B))
        await home.settled(a="working", b="imported")


# --- what happens to us --------------------------------------------------------------------------


@pytest.mark.expects_log("while loading|failed")
async def test_a_defect_in_loading_one_file_leaves_the_others_their_turn(home):
    importer = home.images.importer
    whole = importer.import_archive

    async def defective(path, **options):
        if "1-" in path:
            raise ZeroDivisionError
        return await whole(path, **options)

    importer.import_archive = defective
    home.put("1-a.tar", archive(A))
    home.put("2-b.tar", archive(B))
    async with home.running():
        assert home.states() == {"1-a.tar": "failed", "2-b.tar": "imported"}


async def test_when_the_kernel_drops_what_has_happened_everything_is_looked_at(home, caplog):
    """The queue really overflows: we do not read while more happens than it holds."""
    caplog.set_level(logging.INFO)
    with open("/proc/sys/fs/inotify/max_queued_events") as queue:
        most = int(queue.read())
    one, other = home.put("a.tar", archive(A)), home.put("b.tar", archive(B))
    async with home.running():
        for number in range(most // 2 + 1):
            # One after the other: the kernel drops an event that is like the one before.
            os.utime(one, (number, number))
            os.utime(other, (number, number))
        home.put("late.tar", archive("docker.io/library/late:1"))
        await home.settled(a="imported", b="imported", late="imported")
        assert "more has happened" in caplog.text


@pytest.mark.expects_log("not UTF-8")
async def test_a_name_that_cannot_be_told_is_a_problem_and_no_more(home):
    async with home.running():
        with open(os.fsencode(home.directory) + b"/\xff.tar", "wb"):
            pass
        home.put("a.tar", archive(A))
        await home.settled(a="imported")
        (home.directory / "below").mkdir()
        await home.until(lambda: home.preloader.status().problems)
        assert "not UTF-8" in home.preloader.status().problems[0]


@pytest.mark.expects_log("looked for now and then")
async def test_without_a_watch_files_are_found_all_the_same(home, monkeypatch):
    monkeypatch.setattr(limits, "PRELOAD_RETRY", 0.1)

    def refuse(**_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("imgvol.images.preload.watch.INotify", refuse)
    async with home.running():
        assert not home.preloader.status().is_watched
        home.put("a.tar", archive(A))
        await home.settled(a="imported")


async def test_archives_are_read_where_they_lie_if_asked_for(home):
    bundle = Bundle()
    bundle.save(Image([Layer([file("big", b"x" * 300_000)], "none")]), A)
    home.put("a.tar", bundle.tar())
    home.put("b.tar", archive(B))
    async with home.running(links=True):
        assert home.states() == {"a.tar": "imported", "b.tar": "imported"}
        (record,) = home.images.catalog.search(A, is_listed=True).images
        assert record.is_complete
        assert not record.is_stored
