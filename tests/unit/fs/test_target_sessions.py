"""Sessions of targets over a transport without a kernel: who lives, who holds what."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import trio

from imgvol.errors import MachineLacks, PermissionDenied
from imgvol.fs.targets import sessions as module
from imgvol.fs.targets.sessions import open_target_sessions
from imgvol.tallies import RequestTallies
from imgvol.volumes.mounts import Bound
from imgvol.volumes.options import WHOLE_VIEW
from imgvol.volumes.subpaths import SubPath
from support.members import directory, file, view_of

TREE = view_of([directory(b"etc"), file(b"etc/motd")])


@dataclass(eq=False)
class Mounting:
    target: bytes
    bound: Bound | None = None
    is_handed_over: bool = False

    def hand_over(self):
        self.is_handed_over = True


@dataclass(eq=False)
class Transport:
    mounting: Mounting
    root: int
    failure: Exception | None = None
    ended: trio.Event = field(default_factory=trio.Event)
    close_failure: Exception | None = None
    is_closed: bool = False

    def mount(self):
        if self.mounting.target == b"/forbidden":
            raise PermissionDenied("you may not mount there")
        self.mounting.bound = Bound(target=self.mounting.target, root=b"/", mount_id=1)

    async def serve(self):
        await self.ended.wait()
        if self.failure is not None:
            raise self.failure

    def recheck(self):
        pass

    def close(self):
        self.is_closed = True
        if self.close_failure is not None:
            raise self.close_failure


@dataclass
class Views:
    on_condemned: list = field(default_factory=list)
    on_failed: list = field(default_factory=list)
    on_recorded: list = field(default_factory=list)

    def share(self, view):
        view.holders += 1

    def release(self, view):
        view.holders -= 1


@pytest.fixture
def made(monkeypatch) -> dict[bytes, Transport]:
    made = {}

    def make(_operations, mounting, _settings, *, root):
        made[mounting.target] = Transport(mounting, root)
        return made[mounting.target]

    monkeypatch.setattr(module, "KernelTransport", make)
    monkeypatch.setattr(module, "TargetMounting", lambda target, *_, **__: Mounting(target))
    return made


@pytest.fixture
def view():
    return SimpleNamespace(tree=TREE, holders=1)


def opened(views, tmp_path):
    return open_target_sessions(views, tmp_path, RequestTallies())


async def test_each_has_the_root_that_it_shows_and_holds_its_view(made, view, tmp_path):
    views = Views()
    async with opened(views, tmp_path) as sessions:
        whole = await sessions.open(view, SubPath(), b"/a", WHOLE_VIEW)
        await sessions.open(view, SubPath(path=b"etc/motd"), b"/b", WHOLE_VIEW)
        motd = TREE.lookup(TREE.lookup(TREE.root, b"etc"), b"motd")
        roots = [TREE.inode(TREE.root), TREE.inode(motd)]
        assert [transport.root for transport in made.values()] == roots
        assert (view.holders, sessions.count, sessions.is_alive(whole)) == (3, 2, True)
        assert len(views.on_condemned) == 2
    assert view.holders == 1
    assert views.on_condemned == []
    assert all(transport.is_closed for transport in made.values())


async def test_one_that_is_unmounted_ends_alone(made, view, tmp_path):
    async with opened(Views(), tmp_path) as sessions:
        first = await sessions.open(view, SubPath(), b"/a", WHOLE_VIEW)
        second = await sessions.open(view, SubPath(), b"/b", WHOLE_VIEW)
        made[b"/a"].ended.set()
        with trio.fail_after(5):
            while sessions.is_alive(first) or view.holders != 2:
                await trio.lowlevel.checkpoint()
        assert made[b"/a"].is_closed
        assert sessions.is_alive(second)
        assert not made[b"/b"].is_closed


@pytest.mark.expects_log("the session at /a has failed|cannot unmount /a: no fusermount3")
@pytest.mark.parametrize("place", ["failure", "close_failure"])
async def test_what_fails_in_one_is_not_the_end_of_others(made, view, tmp_path, place):
    async with opened(Views(), tmp_path) as sessions:
        await sessions.open(view, SubPath(), b"/a", WHOLE_VIEW)
        second = await sessions.open(view, SubPath(), b"/b", WHOLE_VIEW)
        failures = {
            "failure": RuntimeError("a defect"),
            "close_failure": MachineLacks("no fusermount3"),
        }
        setattr(made[b"/a"], place, failures[place])
        made[b"/a"].ended.set()
        with trio.fail_after(5):
            while view.holders != 2:
                await trio.lowlevel.checkpoint()
        assert made[b"/a"].is_closed
        assert sessions.is_alive(second)


async def test_one_that_cannot_be_mounted_leaves_nothing(made, view, tmp_path):
    async with opened(Views(), tmp_path) as sessions:
        with pytest.raises(PermissionDenied):
            await sessions.open(view, SubPath(), b"/forbidden", WHOLE_VIEW)
        assert (view.holders, sessions.count) == (1, 0)
        assert not made[b"/forbidden"].mounting.is_handed_over
        await sessions.open(view, SubPath(), b"/a", WHOLE_VIEW)


async def test_a_caller_that_goes_away_meanwhile_has_it_closed(made, view, tmp_path):
    async with opened(Views(), tmp_path) as sessions:
        with trio.CancelScope() as scope:
            scope.cancel()
            await sessions.open(view, SubPath(), b"/a", WHOLE_VIEW)
        assert (view.holders, sessions.count) == (1, 0)
        assert not made[b"/a"].mounting.is_handed_over
        # What it has mounted it unmounts, as nobody else has it.
        assert made[b"/a"].mounting.bound is None or made[b"/a"].is_closed
