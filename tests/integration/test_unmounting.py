"""Filesystems of nobody, dead or hanging, that are taken away by what they are and not by a path.

They are mounted here as the daemon's own, but nobody answers: a dead one's connection is closed.
"""

import contextlib
import os
import select
import subprocess
import sys
from dataclasses import replace

import pytest

from imgvol.cli import abort
from imgvol.config import Config
from imgvol.errors import Conflict, LocalError
from imgvol.offline import check
from imgvol.volumes import syscalls, unmounting
from imgvol.volumes.mountinfo import FILESYSTEM_TYPE, is_ours, read_mountinfo, source_of
from imgvol.volumes.mounts import Bound, bind, mounts_at
from imgvol.volumes.options import WHOLE_VIEW
from imgvol.volumes.subpaths import WHOLE
from support.detaching import detach
from support.programs import run
from support.swapping import swap, swapping
from support.users import NOBODY

pytestmark = pytest.mark.fuse

ROUNDS = 100
# What older kernels do not tell.
LACKING = {
    "new kernel": None,
    "before 6.14": "_STATMOUNT_SB_SOURCE",
    "before 6.8": "_STATX_MNT_ID_UNIQUE",
}
DEADLINE = 20
DETACH = """
import sys
from pathlib import Path
from imgvol.volumes import unmounting
unmounting.detach_dead_mounts(Path(sys.argv[1]), abort=sys.argv[2] == "abort")
"""


class House:
    """A directory with mounts, the daemon's name for its own, and what is open."""

    def __init__(self, base):
        self.base = base
        self.views = base / "views"
        self.open: list[int] = []

    def make(self, name):
        path = self.base / name
        # One that is there may be a dead mount, which cannot be looked at.
        with contextlib.suppress(FileExistsError):
            os.makedirs(path)
        return path

    def mount(self, name, *, dies=True, source=None, user=0, others=True) -> int:
        """Mounts a filesystem as the daemon does; returns the connection."""
        path = self.make(name)
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={fd},rootmode=40000,user_id={user},group_id=0"
        options += ",allow_other" if others else ""
        syscalls.mount_filesystem(
            source or source_of(self.views), bytes(path), FILESYSTEM_TYPE.encode(), options.encode()
        )
        if dies:
            os.close(fd)
        else:
            self.open.append(fd)
        return fd

    def bind(self, name) -> Bound:
        """Binds a dead filesystem as a volume."""
        source = bytes(self.base / "source")
        if not mounts_at(source):
            self.mount("source")
        bound = bind(source, WHOLE, bytes(self.make(name)), WHOLE_VIEW)
        # It is the filesystem's root, and no view in it.
        return replace(bound, root=b"/")

    def cover(self, name, source):
        path = self.make(name)
        run("mount", "-i", "-t", "tmpfs", source, str(path))

    def table(self) -> dict[str, list[str]]:
        """What is mounted at each place below: ours, or by its source. But not what is bound."""
        found: dict[str, list[str]] = {}
        for mount in read_mountinfo():
            if mount.mount_point.startswith(bytes(self.base) + b"/"):
                name = os.fsdecode(os.path.relpath(mount.mount_point, bytes(self.base)))
                what = "ours" if is_ours(mount, self.views) else os.fsdecode(mount.source)
                found.setdefault(name, []).append(what)
        found.pop("source", None)
        return found

    def at(self, name):
        return mounts_at(bytes(self.base / name))

    def swap(self):
        swap(self.base / "place", self.base / "other")

    def detach(self, name, there):
        unmounting.detach(bytes(self.base / name), self.views, there)

    def clear(self):
        for fd in self.open:
            os.close(fd)
        while mounts := [m for m in read_mountinfo() if m.mount_point.startswith(bytes(self.base))]:
            detach(mounts[-1].mount_point)


@pytest.fixture(params=LACKING.values(), ids=LACKING.keys())
def house(short_path, request, monkeypatch):
    if request.param is not None:
        monkeypatch.setattr(syscalls, request.param, 0)
    house = House(short_path)
    yield house
    house.clear()


def is_aborted(connection: int) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return any(events & select.POLLERR for _, events in poll.poll(0))


# --- directories that are moved ---------------------------------------------------------------


@pytest.mark.fault("F73")
def test_what_stands_where_ours_was_stays_and_ours_goes_from_where_it_is(house):
    house.mount("place/t")
    house.cover("other/t", "theirs")
    there = house.at("place/t")
    house.swap()
    house.detach("place/t", there)
    assert house.table() == {"place/t": ["theirs"]}


@pytest.mark.fault("F73")
def test_dead_mounts_go_from_where_they_are(house, monkeypatch):
    house.mount("place/t")
    house.mount("place/u")
    house.cover("other/t", "theirs")
    house.cover("other/u", "theirs, too")

    def read_and_swap():
        table = read_mountinfo()
        house.swap()
        return table

    monkeypatch.setattr(unmounting, "read_mountinfo", read_and_swap)
    assert unmounting.detach_dead_mounts(house.views) == 2
    assert house.table() == {"place/t": ["theirs"], "place/u": ["theirs, too"]}


@pytest.mark.fault("F73")
def test_another_connection_is_not_aborted_in_place_of_ours(house, monkeypatch):
    ours = house.mount("place/t", dies=False)
    theirs = house.mount("other/t", dies=False, source=b"theirs")
    table = read_mountinfo()
    house.swap()
    monkeypatch.setattr(unmounting, "read_mountinfo", lambda: table)
    unmounting.detach_dead_mounts(house.views, abort=True)
    assert is_aborted(ours)
    assert not is_aborted(theirs)
    assert house.table() == {"place/t": ["theirs"]}


@pytest.mark.fault("F73")
@pytest.mark.parametrize("by", ["detach", "detach_dead_mounts", "unbind"])
def test_an_exchange_in_the_last_moment_changes_nothing(house, monkeypatch, by):
    house.cover("other/t", "theirs")
    detach_tree = syscalls.detach_tree

    def swap_and_detach(place, *, abort=False):
        house.swap()
        detach_tree(place, abort=abort)

    if by == "unbind":
        bound = house.bind("place/t")
    else:
        house.mount("place/t")
    there = house.at("place/t")
    monkeypatch.setattr(syscalls, "detach_tree", swap_and_detach)
    if by == "unbind":
        unmounting.unbind(bound, house.views, lazily=True)
    elif by == "detach":
        house.detach("place/t", there)
    else:
        assert unmounting.detach_dead_mounts(house.views, abort=True) == 1
    assert house.table() == {"place/t": ["theirs"]}


@pytest.mark.fault("F73")
def test_abort_takes_away_what_it_has_listed(house):
    house.mount("place/t")
    house.cover("other/t", "theirs")
    connections = house.make("connections")
    table = house.at("place/t")
    house.swap()
    done = abort.abort_mounts(table, connections, abort._unmount)
    assert done.detached == [table[0].mount_point]
    assert house.table() == {"place/t": ["theirs"]}


@pytest.mark.fault("F73")
@pytest.mark.parametrize("lazily", [True, False], ids=["lazily", "if not in use"])
def test_whoever_swaps_a_directory_has_no_volume_mistaken(house, lazily):
    house.cover("other/t", "theirs")
    for _ in range(ROUNDS):
        bound = house.bind("place/t")
        with swapping(house.base / "place", house.base / "other"):
            unmounting.unbind(bound, house.views, lazily)
        left = house.table()
        assert ["theirs"] in left.values()
        # Without a number that lasts, a volume is looked for at its target alone.
        assert len(left) == 1 or bound.mount_id is None, left
        if left.get("place/t") == ["theirs"]:
            house.swap()
        unmounting.unbind(bound, house.views, lazily)
        assert house.table() == {"other/t": ["theirs"]}


@pytest.mark.fault("F73")
@pytest.mark.parametrize("by", ["detach", "detach_dead_mounts"])
def test_whoever_swaps_a_directory_has_nothing_else_unmounted(house, by):
    house.cover("other/t", "theirs")
    moved = 0
    for _ in range(ROUNDS):
        house.mount("place/t")
        there = house.at("place/t")
        with swapping(house.base / "place", house.base / "other"):
            if by == "detach":
                house.detach("place/t", there)
            else:
                assert unmounting.detach_dead_mounts(house.views) == 1
        left = house.table()
        assert list(left.values()) == [["theirs"]], left
        if "place/t" in left:
            moved += 1
            house.swap()
    assert moved, "nothing was swapped"


def test_another_mount_with_the_number_of_one_that_is_gone_stays(house):
    # Somebody else on the machine may be given a number first.
    for _ in range(ROUNDS):
        house.mount("t")
        there = house.at("t")
        detach(house.base / "t")
        house.mount("t", source=b"theirs")
        (theirs,) = house.at("t")
        if (theirs.mount_id, theirs.device) == (there[0].mount_id, there[0].device):
            break
        detach(house.base / "t")
    else:
        pytest.fail("the kernel does not give numbers again")
    house.detach("t", there)
    assert house.table() == {"t": ["theirs"]}


# --- mounts over each other, and in each other ------------------------------------------------


@pytest.mark.fault("F73")
@pytest.mark.parametrize("is_listed", [True, False], ids=["before the look", "after it"])
@pytest.mark.parametrize("name", ["place/t", "place"], ids=["over it", "on the way"])
def test_what_others_have_mounted_over_ours_is_told_and_stays(house, is_listed, name):
    house.mount("place/t")
    there = house.at("place/t")
    house.cover(name, "theirs")
    before = house.table()
    if is_listed:
        there = house.at("place/t")
    with pytest.raises(Conflict, match="something else is mounted over"):
        house.detach("place/t", there)
    assert house.table() == before
    run("umount", str(house.base / name))
    house.detach("place/t", house.at("place/t"))
    assert house.table() == {}


@pytest.mark.fault("F73")
@pytest.mark.expects_log("a dead mount stays: something else is mounted over")
def test_a_dead_mount_stays_below_what_others_have_mounted_over_it(house):
    for name in ("one", "covered", "two"):
        house.mount(name)
    house.cover("covered", "theirs")
    assert unmounting.detach_dead_mounts(house.views) == 2
    assert house.table() == {"covered": ["ours", "theirs"]}
    run("umount", "-i", str(house.base / "covered"))
    assert unmounting.detach_dead_mounts(house.views) == 1
    assert house.table() == {}


@pytest.mark.expects_log("a dead mount stays: something else is mounted over")
async def test_fsck_does_not_call_repaired_what_stays(house):
    config = Config(root=house.base / "store", run=house.base, is_system=True)
    config.root.mkdir(mode=0o700)
    house.mount("one")
    house.mount("covered")
    house.cover("covered", "theirs")
    report = await check(config, repair=True)
    repaired, wrong = (
        [finding.subject for finding in findings if finding.subject.startswith("mount")]
        for findings in (report.repaired, report.wrong)
    )
    assert repaired == [f"mount {house.base}/one"]
    assert wrong == [f"mount {house.base}/covered"]


@pytest.mark.parametrize("by", ["detach", "detach_dead_mounts"])
def test_ours_over_each_other_go_all(house, by):
    for _ in range(3):
        house.mount("t")
    if by == "detach":
        house.detach("t", house.at("t"))
    else:
        assert unmounting.detach_dead_mounts(house.views) == 3
    assert house.table() == {}


def test_one_that_only_another_dead_one_leads_to_goes_too(house):
    """It is listed as the later one, and so is tried first."""
    house.mount("dead")
    (house.base / "outer").mkdir()
    with (
        syscalls.open_place(bytes(house.base / "dead")) as source,
        syscalls.open_place(bytes(house.base / "outer")) as place,
        syscalls.clone_tree(source) as tree,
    ):
        house.mount("outer/inner")
        syscalls.attach(tree, place)
    with pytest.raises(LocalError, match="not connected"):
        house.detach("outer/inner", house.at("outer/inner"))
    assert unmounting.detach_dead_mounts(house.views) == 3
    assert house.table() == {}


# --- filesystems that do not answer -----------------------------------------------------------


@pytest.mark.parametrize("abort", [True, False], ids=["abort", "leave"])
def test_one_that_hangs_keeps_nobody_waiting(house, abort):
    connection = house.mount("t", dies=False)
    # A call that hangs there could not be ended from here.
    arguments = [str(house.views), "abort" if abort else "leave"]
    with syscalls.open_place(bytes(house.base / "t")):  # whoever uses it keeps the connection
        subprocess.run([sys.executable, "-c", DETACH, *arguments], check=True, timeout=DEADLINE)
        assert house.table() == {}
        assert is_aborted(connection) == abort


def test_root_may_take_away_what_only_a_user_may_look_at(house):
    house.mount("t", dies=False, user=NOBODY, others=False)
    (mount,) = house.at("t")
    unmounting.detach_listed(mount)
    assert house.table() == {}
