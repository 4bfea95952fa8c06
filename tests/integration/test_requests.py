"""What the kernel asks of the filesystem, counted; and what happens when a handler has a defect.

The filesystem runs in this process, so that its handlers can be counted and broken; another process
looks at the mount.
"""

import contextlib
import errno
import hashlib
import logging
import os
import threading
from collections import Counter
from contextlib import asynccontextmanager

import pytest
import trio

from imgvol import limits
from imgvol.config import TransportChoice
from imgvol.content.layer_store import LayerStore
from imgvol.content.store import open_store
from imgvol.errors import StoreDamaged
from imgvol.fs import guard, operations, session
from imgvol.fs.choice import make_transport
from imgvol.fs.kernel import negotiation, replies, requests
from imgvol.fs.kernel.backing import BackingFiles
from imgvol.fs.kernel.connection import Connection
from imgvol.fs.kernel.mounting import SystemMounting
from imgvol.fs.kernel.opens import Opens
from imgvol.fs.kernel.protocol import InitFlag
from imgvol.fs.kernel.reads import Reads
from imgvol.fs.kernel.transport import KernelTransport, Settings
from imgvol.fs.replies import ROOT_INODE
from imgvol.images.pull import Puller, PullProgress
from imgvol.images.resolve import resolve_image, wanted_platform
from imgvol.images.views import Views
from support import images, transports
from support.programs import require_fuse
from support.sources import MemorySource

pytestmark = pytest.mark.fuse

MIB = 1 << 20
LARGE = bytes(range(256)) * (16 * MIB // 256)
SHARED = images.Layer([images.file("large", LARGE), images.file("small", b"s")], "none")
ONE = images.Image([SHARED, images.Layer([images.file("one", b"1")], "none")])
MANY = [f"many/{number}" for number in range(100)]
TWO = images.Image(
    [
        SHARED,
        images.Layer(
            [
                images.file("two", b"2"),
                images.directory("many"),
                *(images.file(name, name.encode()) for name in MANY),
                images.symlink("many/link", "0"),
            ],
            "none",
        ),
    ]
)


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

    async def begin_recording(self):
        """What whoever records the first image has the session do before."""
        (forget,) = self.views.on_recorded
        await forget(self.opened[0])

    async def ask(self, command, **arguments):
        return await trio.to_thread.run_sync(lambda: self._agent.ask(command, **arguments))


@pytest.fixture
def counts(monkeypatch, transport):
    """Counts every answer of a handler, and runs a test's own failure instead if there is one."""
    require_fuse()
    calls: Counter[str] = Counter()
    failures: dict[str, Exception] = {}

    def begin(name):
        calls[name] += 1
        if name in failures:
            raise failures[name]

    def counted(name):
        inner = getattr(operations.Operations, name).__wrapped__

        def handler(self, *args, **options):
            begin(name)
            return inner(self, *args, **options)

        handler.__name__ = name
        return guard.guarded(handler)

    for name in ("lookup", "getattr", "open", "readdir", "readlink", "statfs"):
        monkeypatch.setattr(operations.Operations, name, counted(name))
    read, read_now = (getattr(operations.Operations, n).__wrapped__ for n in ("read", "read_now"))

    @guard.guarded_for(lambda *_: limits.HANDLER_DEADLINE)
    async def counted_read(self, *args):
        begin("read")
        return await read(self, *args)

    @guard.guarded_attempt("read")
    def counted_read_now(self, *args):
        answer = None if "read" in failures else read_now(self, *args)
        if answer is not None:
            begin("read")
        return answer

    monkeypatch.setattr(operations.Operations, "read", counted_read)
    monkeypatch.setattr(operations.Operations, "read_now", counted_read_now)
    calls.failures = failures
    calls.transport = TransportChoice(transport)
    return calls


@asynccontextmanager
async def mounted(root, agent, counts, settings=None):
    async with open_store(root / "root") as store:
        puller = Puller(store)
        views = Views(store)
        mount_point = root / "views"
        mount_point.mkdir()
        mounting = SystemMounting(mount_point)
        handlers = operations.Operations(views)
        if settings is None:
            # What is passed through is not asked for, and could not be counted.
            transport = make_transport(
                counts.transport, handlers, mounting, is_system=True, passthrough=False
            )
        else:
            transport = KernelTransport(handlers, mounting, settings)
        async with session.open_session(views, mount_point, transport, on_lost=lambda: None):
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


@transports.each
async def test_images_that_share_a_layer_share_its_pages(short_path, agent, counts):
    async with mounted(short_path, agent, counts) as filesystem:
        size = await filesystem.ask("digest", path=f"{filesystem.first}/large")
        first = counts["read"]
        assert first >= 16, "16 MiB take 16 requests of 1 MiB"
        again = await filesystem.ask("digest", path=f"{filesystem.second}/large")
        assert again == size
        assert counts["read"] == first, "the second image's read asked nothing"


@transports.each
async def test_names_and_attributes_are_asked_once_the_absent_ones_too(short_path, agent, counts):
    async with mounted(short_path, agent, counts) as filesystem:
        for _ in range(5):
            await filesystem.ask("stat", path=f"{filesystem.first}/small")
            with pytest.raises(FileNotFoundError):
                await filesystem.ask("stat", path=f"{filesystem.first}/absent")
        # Two names in the root's directory, each time, because views come and go there.
        assert counts["lookup"] <= 10 + 2
        assert counts["getattr"] <= 2


@transports.each
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


@transports.each
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


@transports.each
@pytest.mark.expects_log("no answer within")
async def test_a_handler_that_hangs_ends_in_eio_at_its_deadline(
    short_path, agent, counts, monkeypatch
):
    monkeypatch.setattr(limits, "HANDLER_DEADLINE", 0.5)

    async def hang(*_):
        await trio.sleep_forever()

    async with mounted(short_path, agent, counts) as filesystem:
        monkeypatch.setattr(LayerStore, "read", hang)
        monkeypatch.setattr(LayerStore, "read_now", lambda *_: None)
        started = trio.current_time()
        with pytest.raises(OSError) as caught:
            await filesystem.ask("digest", path=f"{filesystem.first}/small")
        assert caught.value.errno == errno.EIO
        assert 0.4 < trio.current_time() - started < 10


@transports.each
async def test_a_view_closes_when_its_last_user_has_gone(short_path, agent, counts, monkeypatch):
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


@transports.each
async def test_when_a_recording_begins_the_kernel_has_nothing_of_the_view(
    short_path, agent, counts
):
    async with mounted(short_path, agent, counts) as filesystem:
        handle = await filesystem.ask("open", path=f"{filesystem.first}/small")
        for _ in range(2):
            assert await filesystem.ask("pread", fd=handle, size=1, offset=0)
        assert counts["read"] == 1
        await filesystem.begin_recording()
        assert await filesystem.ask("pread", fd=handle, size=1, offset=0)
        assert counts["read"] == 2, "of what is open, too"
        await filesystem.ask("close", fd=handle)


# --- what only the kernel's own transport can ----------------------------------------------------

only_kernel = pytest.mark.parametrize("transport", ["kernel"], scope="module")


each_mode = pytest.mark.parametrize(
    "passthrough",
    [
        pytest.param(True, marks=pytest.mark.skipif(not transports.passes_through(), reason="6.9")),
        False,
    ],
)


@pytest.fixture
def asked(monkeypatch):
    """What the kernel sends in views, by kind: round trips, and RELEASEs."""
    kinds: Counter[str] = Counter()
    decode = requests.decode

    def counted(data):
        request = decode(data)
        # Whoever comes by a path asks for a name in the root each time.
        if request.nodeid != ROOT_INODE and not isinstance(request.body, requests.Forget):
            kinds[type(request.body).__name__] += 1
        return request

    monkeypatch.setattr(requests, "decode", counted)
    return kinds


async def output(command, where):
    # Not by `cwd`: to start a process is to wait until it has changed there, for ourselves.
    script = f'cd "$0" && exec {command}'
    with trio.fail_after(30):
        done = await trio.run_process(["sh", "-c", script, where], capture_stdout=True)
    return done.stdout


FIND = "find . -printf '%p %s %m %l\\n'"
CAT = " ".join(["cat", *MANY])


@only_kernel
@each_mode
async def test_a_second_find_asks_for_nothing_at_all(short_path, agent, counts, asked, passthrough):
    async with mounted(short_path, agent, counts, Settings(passthrough=passthrough)) as filesystem:
        first = await output(FIND, filesystem.second)
        assert len(first.splitlines()) == len(MANY) + 6
        assert asked["Readdir"] >= 2
        assert asked["Opendir"] <= 1, "the answer to the first counts for all"
        assert asked["Readlink"] == 1
        asked.clear()
        assert await output(FIND, filesystem.second) == first
        assert not asked


@only_kernel
@each_mode
async def test_small_files_are_opened_by_the_kernel_unless_files_are_passed_through(
    short_path, agent, counts, asked, passthrough
):
    async with mounted(short_path, agent, counts, Settings(passthrough=passthrough)) as filesystem:
        content = "".join(MANY).encode()
        assert await output(CAT, filesystem.second) == content
        assert asked["Read"] == len(MANY)
        assert asked["Open"] == (len(MANY) if passthrough else 1)
        assert asked["Other"] <= 1, "FLUSH is refused for good"
        # The kernel waits for no answer to RELEASE, and so neither do callers.
        with trio.fail_after(5):
            while passthrough and asked["Release"] < len(MANY):
                await trio.sleep(0.01)
        asked.clear()
        assert await output(CAT, filesystem.second) == content
        assert asked.keys() <= ({"Open", "Release"} if passthrough else set())


@only_kernel
async def test_opens_end_where_nothing_turns_out_to_be_passed_through(
    short_path, agent, counts, asked, monkeypatch
):
    refused = []

    def refuse(*_):
        refused.append(True)
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Connection, "open_backing", refuse)
    async with mounted(short_path, agent, counts, Settings()) as filesystem:
        for _ in range(2):
            found = await filesystem.ask("digest", path=f"{filesystem.first}/large")
            assert found == hashlib.sha256(LARGE).hexdigest()
        assert await output(CAT, filesystem.second) == "".join(MANY).encode()
        assert len(refused) == 1
        assert asked["Open"] <= 2, "the one that was refused a file, and one that was told so"


@only_kernel
@each_mode
async def test_the_root_is_listed_anew_when_its_names_have_changed(
    short_path, agent, counts, passthrough
):
    async with mounted(short_path, agent, counts, Settings(passthrough=passthrough)) as filesystem:
        root = os.path.dirname(filesystem.first)

        async def shown():
            return {name.encode() for name, _ in await filesystem.ask("list", path=root)}

        # Once a directory was opened, the kernel opens all of them by itself.
        await filesystem.ask("list", path=filesystem.first)
        one, two = filesystem.opened
        views = filesystem.views
        for _ in range(3):
            assert await shown() == await shown() == {one.name, two.name}
            views.withdraw(two)
            assert await shown() == {one.name}
            views.withdraw(one)
            assert await shown() == await shown() == set()
            views.publish(two)
            assert await shown() == {two.name}
            views.publish(one)
        listed = counts["readdir"]
        assert await shown() == await shown() == {one.name, two.name}
        assert counts["readdir"] <= listed + 2, "kept as long as it does not change"


@only_kernel
@pytest.mark.parametrize("off", [InitFlag(0), *InitFlag], ids=lambda flag: flag.name or "none")
async def test_it_works_without_what_a_kernel_may_lack(short_path, agent, counts, off):
    settings = Settings(wanted=negotiation.WANTED & ~off)
    async with mounted(short_path, agent, counts, settings) as filesystem:
        names = [name for name, _ in await filesystem.ask("list", path=filesystem.first)]
        assert names == ["large", "one", "small"]
        found = await filesystem.ask("digest", path=f"{filesystem.first}/large")
        assert found == hashlib.sha256(LARGE).hexdigest()


@only_kernel
async def test_a_recording_does_not_wait_for_ever_for_pages_that_are_being_read(
    short_path, agent, counts, monkeypatch
):
    monkeypatch.setattr(limits, "TRACE_FORGETTING", 0.1)
    go = threading.Event()
    async with mounted(short_path, agent, counts) as filesystem:
        with monkeypatch.context() as patched:
            patched.setattr(KernelTransport, "invalidate_inode", lambda *_, **__: go.wait(30))
            try:
                with trio.fail_after(10):
                    await filesystem.begin_recording()
            finally:
                go.set()


@only_kernel
async def test_a_process_has_any_number_of_filesystems(short_path, agent, counts):
    places = [short_path / name for name in ("a", "b")]
    for place in places:
        place.mkdir()
    async with (
        mounted(places[0], agent, counts) as one,
        mounted(places[1], agent, counts) as other,
    ):
        for filesystem in (one, other):
            path = f"{filesystem.first}/large"
            assert await filesystem.ask("digest", path=path) == hashlib.sha256(LARGE).hexdigest()


@only_kernel
async def test_no_descriptor_is_left(short_path, agent, counts):
    before = len(_descriptors())
    async with mounted(short_path, agent, counts) as filesystem:
        await filesystem.ask("digest", path=f"{filesystem.first}/large")
        assert "/dev/fuse" in _descriptors()
    # The views that this test has acquired, and not let go, have files of layers open.
    left = [name for name in _descriptors() if not name.startswith(f"{short_path}/")]
    assert "/dev/fuse" not in left
    assert len(left) <= before + 1, "but for what the event loop keeps"


def _descriptors():
    """What the descriptors of this process lead to."""
    names = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one of the listing itself
            names.append(os.readlink(f"/proc/self/fd/{number}"))
    return names


@only_kernel
@pytest.mark.expects_log("the kernel refuses a reply")
async def test_a_reply_that_the_kernel_refuses_is_an_error_of_that_call_alone(
    short_path, agent, counts, monkeypatch
):
    async with mounted(short_path, agent, counts) as filesystem:
        with monkeypatch.context() as broken:
            broken.setattr(replies, "entry_out", lambda _: b"nonsense")
            with pytest.raises(OSError) as caught:
                await filesystem.ask("stat", path=f"{filesystem.first}/small")
            assert caught.value.errno == errno.EIO
        assert await filesystem.ask("content", path=f"{filesystem.first}/small")


@only_kernel
@pytest.mark.fault("F12")
@pytest.mark.parametrize("place", [(Reads, "take"), (Opens, "take")], ids=["read", "open"])
@pytest.mark.expects_log("(Read|Open): a defect of imgvol")
async def test_a_defect_of_the_transport_itself_is_an_error_of_that_call_alone(
    short_path, agent, counts, monkeypatch, place
):
    # Who passes files through is told of opens; where they are not, each read comes to us.
    settings = Settings(passthrough=place[0] is Opens)
    async with mounted(short_path, agent, counts, settings) as filesystem:
        with monkeypatch.context() as broken:
            broken.setattr(*place, raise_a_defect)
            with pytest.raises(OSError) as caught:
                await filesystem.ask("content", path=f"{filesystem.first}/small")
            assert caught.value.errno == errno.EIO
        assert await filesystem.ask("content", path=f"{filesystem.first}/small")


@only_kernel
@pytest.mark.skipif(not transports.passes_through(), reason="6.9")
@pytest.mark.fault("F12")
@pytest.mark.expects_log("Release: a defect of imgvol")
async def test_a_defect_after_the_reply_is_nobodys_error(
    short_path, agent, counts, monkeypatch, caplog
):
    async with mounted(short_path, agent, counts, Settings()) as filesystem:
        path = f"{filesystem.first}/large"
        with monkeypatch.context() as broken:
            broken.setattr(BackingFiles, "release", raise_a_defect)
            handle = await filesystem.ask("open", path=path)
            await filesystem.ask("close", fd=handle)
            with trio.fail_after(5):
                while "Release: a defect" not in caplog.text:
                    await trio.sleep(0.01)
        assert await filesystem.ask("digest", path=path) == hashlib.sha256(LARGE).hexdigest()


def raise_a_defect(*_, **__):
    raise KeyError("outside of every guard")
