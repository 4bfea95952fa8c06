"""What the kernel asks of the filesystem, counted; and what happens when a handler has a defect.

The filesystem runs in this process, so that its handlers can be counted and broken; another process
looks at the mount.
"""

import errno
import logging
from collections import Counter
from contextlib import asynccontextmanager

import pytest
import trio

from imgvol.content.store import open_store
from imgvol.errors import StoreDamaged
from imgvol.images.pull import Puller, PullProgress
from imgvol.images.resolve import resolve_image, wanted_platform
from imgvol.images.views import Views
from support import images
from support.programs import require_fuse
from support.sources import MemorySource

pytestmark = pytest.mark.fuse

MIB = 1 << 20
SHARED = images.Layer(
    [images.file("large", bytes(range(256)) * (16 * MIB // 256)), images.file("small", b"s")],
    "none",
)
ONE = images.Image([SHARED, images.Layer([images.file("one", b"1")], "none")])
TWO = images.Image([SHARED, images.Layer([images.file("two", b"2")], "none")])


class Filesystem:
    """A mounted filesystem with two images that share a layer."""

    def __init__(self, mount_point, views, opened, agent, counts):
        self.counts = counts
        self.views = views
        self.opened = opened
        self._agent = agent
        self.first, self.second = (f"{mount_point}/{view.name.decode()}" for view in opened)

    def let_go(self):
        while self.opened:
            view = self.opened.pop()
            self.views.withdraw(view)
            self.views.release(view)

    async def ask(self, command, **arguments):
        return await trio.to_thread.run_sync(lambda: self._agent.ask(command, **arguments))


@pytest.fixture
def counts(monkeypatch):
    """Counts every call of a handler, and runs a test's own failure instead if there is one."""
    require_fuse()
    from imgvol.fs import guard, operations

    calls: Counter[str] = Counter()
    failures: dict[str, Exception] = {}

    def counted(name):
        inner = getattr(operations.Operations, name).__wrapped__

        async def handler(self, *args):
            calls[name] += 1
            if name in failures:
                raise failures[name]
            return await inner(self, *args)

        handler.__name__ = name
        return guard.guarded(handler)

    for name in ("lookup", "getattr", "open", "read", "opendir", "readdir", "readlink", "statfs"):
        monkeypatch.setattr(operations.Operations, name, counted(name))
    calls.failures = failures
    return calls


@asynccontextmanager
async def mounted(root, agent, counts):
    from imgvol.fs.session import open_session

    async with open_store(root / "root") as store:
        puller = Puller(store)
        views = Views(store)
        mount_point = root / "views"
        mount_point.mkdir()
        async with open_session(views, mount_point, is_system=True, on_lost=lambda: None):
            opened = []
            for name, image in (("one", ONE), ("two", TWO)):
                source = MemorySource(image, piece=131072)
                resolved = await resolve_image(source, wanted_platform("linux/amd64"))
                record = await puller.pull(source, resolved, name, PullProgress())
                opened.append(await views.acquire(record))
                views.publish(opened[-1])
            filesystem = Filesystem(mount_point, views, opened, agent, counts)
            yield filesystem
            filesystem.let_go()


async def test_images_that_share_a_layer_share_its_pages(short_path, agent, counts):
    async with mounted(short_path, agent, counts) as filesystem:
        size = await filesystem.ask("digest", path=f"{filesystem.first}/large")
        first = counts["read"]
        assert first >= 16, "16 MiB take 16 requests of 1 MiB"
        again = await filesystem.ask("digest", path=f"{filesystem.second}/large")
        assert again == size
        assert counts["read"] == first, "the second image's read asked nothing"


async def test_names_and_attributes_are_asked_once_the_absent_ones_too(short_path, agent, counts):
    async with mounted(short_path, agent, counts) as filesystem:
        for _ in range(5):
            await filesystem.ask("stat", path=f"{filesystem.first}/small")
            with pytest.raises(FileNotFoundError):
                await filesystem.ask("stat", path=f"{filesystem.first}/absent")
        # Two names in the root's directory, each time, because views come and go there.
        assert counts["lookup"] <= 10 + 2
        assert counts["getattr"] <= 2


@pytest.mark.fault("F11", "F12")
@pytest.mark.parametrize(
    "defect",
    [ValueError("boom"), AssertionError(), RecursionError(), MemoryError(), KeyError("x")],
    ids=lambda defect: type(defect).__name__,
)
@pytest.mark.expects_log("a defect of imgvol")
async def test_a_defect_in_a_handler_is_an_error_of_that_call_alone(
    short_path, agent, counts, defect
):
    async with mounted(short_path, agent, counts) as filesystem:
        path = f"{filesystem.first}/large"
        counts.failures["read"] = defect
        with pytest.raises(OSError) as caught:
            await filesystem.ask("digest", path=path)
        assert caught.value.errno == errno.EIO
        counts.failures["lookup"] = defect
        with pytest.raises(OSError) as caught:
            await filesystem.ask("stat", path=f"{filesystem.first}/small")
        assert caught.value.errno == errno.EIO
        counts.failures.clear()
        assert await filesystem.ask("digest", path=path)


async def test_damage_in_the_store_is_eio_and_one_line_in_the_log(
    short_path, agent, counts, caplog
):
    async with mounted(short_path, agent, counts) as filesystem:
        counts.failures["read"] = StoreDamaged("a stored layer cannot be read")
        with pytest.raises(OSError) as caught:
            await filesystem.ask("digest", path=f"{filesystem.first}/small")
        assert caught.value.errno == errno.EIO
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert errors
    assert all(record.exc_info is None for record in errors)


@pytest.mark.expects_log("no answer within")
async def test_a_handler_that_hangs_ends_in_eio_at_its_deadline(
    short_path, agent, counts, monkeypatch
):
    from imgvol import limits
    from imgvol.content.layer_store import LayerStore

    monkeypatch.setattr(limits, "HANDLER_DEADLINE", 0.5)

    async def hang(*_):
        await trio.sleep_forever()

    async with mounted(short_path, agent, counts) as filesystem:
        monkeypatch.setattr(LayerStore, "read", hang)
        started = trio.current_time()
        with pytest.raises(OSError) as caught:
            await filesystem.ask("digest", path=f"{filesystem.first}/small")
        assert caught.value.errno == errno.EIO
        assert 0.4 < trio.current_time() - started < 10


async def test_a_view_closes_when_its_last_user_has_gone(short_path, agent, counts, monkeypatch):
    from imgvol.fs import session

    monkeypatch.setattr(session, "LINGERING_CHECK", 0.2)
    async with mounted(short_path, agent, counts) as filesystem:
        views = filesystem.views
        slots = [view.slot for view in views.published()]
        handle = await filesystem.ask("open", path=f"{filesystem.first}/large")
        await filesystem.ask("digest", path=f"{filesystem.second}/small")
        filesystem.let_go()
        with trio.fail_after(5):
            while views.by_slot(slots[1]):
                await trio.sleep(0.01)
        assert views.by_slot(slots[0]), "a file of it is open"
        assert await filesystem.ask("pread", fd=handle, size=10, offset=15 * MIB)
        await filesystem.ask("close", fd=handle)
        with trio.fail_after(5):
            while views.by_slot(slots[0]):
                await trio.sleep(0.01)
        assert views.store.pins.snapshot() == {}
