"""The volume manager over images and views that exist in memory: rollback, locking, recovery."""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import trio

from imgvol import limits
from imgvol.content.records import ImageRecord, VolumeRecord
from imgvol.errors import (
    Conflict,
    InvalidArgument,
    LocalError,
    MachineLacks,
    NotFound,
    PermissionDenied,
    RemoteError,
    StoreFull,
)
from imgvol.images.pull import PullProgress
from imgvol.images.readiness import Readiness
from imgvol.images.service import PullOptions
from imgvol.oci.digest import Digest
from imgvol.view.chain import ChainView
from imgvol.volumes import fusermount, manager, mounts, recovery, unmounting
from imgvol.volumes.homes import Homes
from imgvol.volumes.manager import VolumeManager
from imgvol.volumes.options import BindOptions, IDMapping, Propagation
from support.members import directory, file, view_of
from support.records import image_record, layer_record

NAME = "example.com/app:1"
IMAGE = replace(image_record([layer_record("a")]), names=(NAME,))
LAZY = replace(
    image_record([replace(layer_record("a"), is_complete=False)]), names=(NAME, "example.com/b:2")
)


TREE = view_of([directory(b"etc"), file(b"etc/motd")])
MAPPING = IDMapping(container_id=0, host_id=1000, length=1)


class Images:
    """Knows one image, by name and by ID."""

    def __init__(self, image: ImageRecord | None = IMAGE):
        self.image = image
        self.pulled: list[str] = []

    async def is_current(self, _image, _record):
        return True

    async def find(self, image: str, *, platform=None) -> ImageRecord:
        await trio.lowlevel.checkpoint()
        known = self.image and (*self.image.names, self.image.id.encoded[:12])
        if not known or image not in known:
            raise NotFound("image is not in the store")
        return self.image

    async def find_by_id(self, image: str) -> ImageRecord | None:
        await trio.lowlevel.checkpoint()
        return self.image if self.image and self.image.id.encoded.startswith(image) else None

    async def pull(self, image, *, platform, options, progress, readiness) -> ImageRecord:
        await trio.lowlevel.checkpoint()
        self.pulled.append(image)
        self.readiness = readiness
        return IMAGE


@dataclass(eq=False)
class View:
    id: Digest
    name: bytes
    layers: tuple = ()
    tree: ChainView = TREE
    holders: int = 0
    patience: list[float] = field(default_factory=list)
    trace: object = None

    def layer_statuses(self):
        return self.layers


class Views:
    def __init__(self):
        self.open: dict[Digest, View] = {}
        self.mounted: list[Digest] = []
        self.failure: Exception | None = None

    async def acquire(self, image, view_id) -> View:
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure
        view = self.open.setdefault(view_id, View(view_id, view_id.hex.encode(), image.layers))
        view.holders += 1
        return view

    def release(self, view):
        view.holders -= 1

    def on_mounted(self, view, image):
        self.mounted.append(view.id)

    def publish(self, view, patience):
        view.patience.append(patience)

    def withdraw(self, view, patience):
        view.patience.remove(patience)

    @property
    def uses(self) -> list[int]:
        return [n for v in self.open.values() for n in (v.holders, len(v.patience))]


class Records:
    def __init__(self):
        self.rows: dict[str, VolumeRecord] = {}
        self.known = {IMAGE.manifest: IMAGE}
        self.fail_add: BaseException | None = None
        self.fail_remove: BaseException | None = None

    async def volumes(self):
        return list(self.rows.values())

    async def images(self):
        return list(self.known.values())

    async def add_volume(self, volume):
        await trio.lowlevel.checkpoint()
        if self.fail_add is not None:
            raise self.fail_add
        self.rows[volume.id] = volume

    async def remove_volume(self, volume_id):
        await trio.lowlevel.checkpoint()
        if self.fail_remove is not None:
            raise self.fail_remove
        self.rows.pop(volume_id, None)


@dataclass
class Kernel:
    """What is mounted where; takes the place of those modules that mount and unmount."""

    mounted: dict[bytes, bytes] = field(default_factory=dict)
    foreign: set[bytes] = field(default_factory=set)
    busy: set[bytes] = field(default_factory=set)
    missing: set[bytes] = field(default_factory=set)
    fail_bind: Exception | None = None

    def check_target(self, target, may_be_file=False):
        if target in self.missing:
            raise NotFound("target does not exist")
        if target in self.mounted or target in self.foreign:
            raise Conflict("something is mounted there already")

    def mounts_at(self, target):
        return []

    def detach(self, target, views_directory, there):
        self.mounted.pop(target, None)

    def bind(self, view, part, target, options, open_view):
        if self.fail_bind is not None:
            raise self.fail_bind
        self.mounted[target] = view
        return mounts.Bound(target=target, root=view, mount_id=len(self.mounted))

    def unbind(self, bound, views_directory, lazily):
        if bound.target in self.busy and not lazily:
            raise Conflict("volume is in use")
        self.mounted.pop(bound.target, None)


@pytest.fixture
def kernel(monkeypatch) -> Kernel:
    kernel = Kernel()
    for name in ("check_target", "mounts_at", "bind"):
        monkeypatch.setattr(mounts, name, getattr(kernel, name))
    for name in ("detach", "unbind"):
        monkeypatch.setattr(unmounting, name, getattr(kernel, name))
    return kernel


@dataclass
class House:
    manager: VolumeManager
    images: Images
    views: Views
    records: Records
    kernel: Kernel
    homes: Homes

    async def recover(self):
        await recovery.recover(
            self.manager, records=self.records, homes=self.homes, views_directory=Path("/views")
        )

    async def mount(self, target: str | None = "/mnt", image: str = NAME, **options):
        return await self.manager.mount(
            image, target, options=PullOptions(), progress=PullProgress(), **options
        )

    def assert_empty(self) -> None:
        assert set(self.views.uses) <= {0}
        assert self.kernel.mounted == {}
        assert self.records.rows == {}
        assert len(self.manager.table) == 0


@pytest.fixture
def house(kernel, tmp_path) -> House:
    images, views, records, homes = Images(), Views(), Records(), Homes(tmp_path / "volumes")
    volumes = VolumeManager(
        images=images,
        views=views,
        records=records,
        views_directory=tmp_path,
        homes=homes,
        obstacle=None,
        may_bind=True,
    )
    return House(volumes, images, views, records, kernel, homes)


def row(house: House, target: str | None = "/mnt", **changes) -> VolumeRecord:
    record = VolumeRecord(
        id="v1",
        sandbox="cli",
        image=NAME,
        manifest=IMAGE.manifest,
        target=target,
        options="{}",
        patience=0.0,
        view_id=IMAGE.view_id,
        created_at=1.0,
        boot_id=manager.BOOT_ID.read_text().strip(),
    )
    record = replace(record, **changes)
    house.records.rows[record.id] = record
    return record


# --- mount and unmount ---------------------------------------------------------------------------


async def test_what_is_mounted_is_recorded_and_unmounting_leaves_nothing(house):
    volume = await house.mount()
    assert house.kernel.mounted.keys() == {b"/mnt"}
    assert house.records.rows.keys() == {volume.id}
    await house.manager.unmount("/mnt")
    house.assert_empty()


@pytest.mark.parametrize("where", ["view", "bind", "record", "target"])
async def test_a_mount_that_fails_leaves_nothing(house, where):
    failure = StoreFull("no room")
    if where == "view":
        house.views.failure = failure
    elif where == "bind":
        house.kernel.fail_bind = LocalError("the kernel refuses")
    elif where == "record":
        house.records.fail_add = failure
    else:
        house.kernel.missing.add(b"/mnt")
    with pytest.raises((LocalError, NotFound)):
        await house.mount()
    house.assert_empty()
    # Nothing is reserved any more, either.
    house.views.failure = house.kernel.fail_bind = house.records.fail_add = None
    house.kernel.missing.clear()
    await house.mount()


@pytest.mark.fault("F90")
async def test_a_mount_that_is_cancelled_before_it_is_recorded_leaves_nothing(house):
    class Slow(Records):
        async def add_volume(self, volume):
            scope.cancel()
            await trio.sleep_forever()

    house.manager._records = Slow()
    with trio.CancelScope() as scope:
        await house.mount()
    assert scope.cancelled_caught
    house.assert_empty()


@pytest.mark.fault("F91")
async def test_one_operation_at_a_time_for_one_target(house):
    outcomes = []

    async def mount():
        try:
            outcomes.append(await house.mount())
        except Conflict as exc:
            outcomes.append(exc)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(mount)
        nursery.start_soon(mount)
    assert [isinstance(o, Conflict) for o in outcomes].count(True) == 1
    assert len(house.manager.table) == 1


async def test_a_volume_in_use_stays_until_it_is_detached(house):
    await house.mount()
    house.kernel.busy.add(b"/mnt")
    with pytest.raises(Conflict):
        await house.manager.unmount("/mnt")
    assert len(house.manager.table) == 1
    assert len(house.records.rows) == 1
    await house.manager.unmount("/mnt", detach=True)
    house.assert_empty()


@pytest.mark.fault("F90")
async def test_a_client_that_goes_away_does_not_leave_half_an_unmount(house, monkeypatch):
    """The mount is gone, so the record must go: the next start would mount it again."""
    await house.mount()
    unbind = house.kernel.unbind

    def cancelled_meanwhile(*arguments):
        unbind(*arguments)
        trio.from_thread.run_sync(scope.cancel)

    monkeypatch.setattr(unmounting, "unbind", cancelled_meanwhile)
    with trio.CancelScope() as scope:
        await house.manager.unmount("/mnt")
    house.assert_empty()


async def test_never_pulling_holds_for_what_is_not_here_as_a_whole(house):
    house.images.image = LAZY
    with pytest.raises(NotFound):
        await house.mount(pull="never", readiness=Readiness.STORED)
    assert house.images.pulled == []
    await house.mount(pull="never")


async def test_completing_an_image_that_was_named_by_its_id_pulls_it_by_name(house):
    """Twelve hex digits are a repository's name, too."""
    house.images.image = LAZY
    await house.mount(image=LAZY.id.encoded[:12], readiness=Readiness.STORED)
    assert house.images.pulled == [NAME]


async def test_an_id_is_not_looked_for_in_a_registry(house):
    """It would be taken for the name of somebody's repository."""
    with pytest.raises(InvalidArgument) as refused:
        await house.mount(image=IMAGE.id.encoded[:12], pull="always")
    assert NAME in refused.value.hint
    assert house.images.pulled == []
    house.assert_empty()
    await house.mount(image=NAME, pull="always")
    assert house.images.pulled == [NAME]


IN_PLACE = replace(image_record([replace(layer_record("a"), format="in place")]), names=(NAME,))


@pytest.mark.parametrize(
    ("image", "readiness", "is_pulled"),
    [
        (LAZY, Readiness.LAZY, False),
        (LAZY, Readiness.VERIFIED, True),
        (LAZY, Readiness.STORED, True),
        (IN_PLACE, Readiness.LAZY, False),
        (IN_PLACE, Readiness.VERIFIED, False),
        (IN_PLACE, Readiness.STORED, True),
        (IMAGE, Readiness.VERIFIED, False),
        (IMAGE, Readiness.STORED, False),
    ],
)
async def test_what_is_here_is_mounted_if_it_is_as_ready_as_was_asked(
    house, image, readiness, is_pulled
):
    house.images.image = image
    await house.mount(readiness=readiness)
    assert house.images.pulled == [NAME] * is_pulled
    if is_pulled:
        assert house.images.readiness is readiness


async def test_completing_an_image_pulls_the_name_that_was_given(house):
    house.images.image = LAZY
    await house.mount(image="example.com/b:2", readiness=Readiness.STORED)
    assert house.images.pulled == ["example.com/b:2"]


# --- the daemon's end, and its next start --------------------------------------------------------


@pytest.mark.expects_log("cannot forget the volume")
async def test_at_the_end_one_volume_that_cannot_be_forgotten_does_not_keep_the_others(house):
    await house.mount("/one")
    await house.mount("/two")
    house.records.fail_remove = StoreFull("no room")
    await house.manager.detach_all(forget=True)
    assert house.kernel.mounted == {}
    assert set(house.views.uses) == {0}


async def test_whoever_follows_traces_is_told_of_mounts(house):
    await house.mount("/mnt", follows_trace=False)
    assert house.views.mounted == []
    await house.mount("/other")
    assert house.views.mounted == [IMAGE.view_id]


async def test_the_next_start_mounts_again(house):
    record = row(house)
    await house.recover()
    assert house.views.mounted == [], "it was brought before"
    assert house.kernel.mounted.keys() == {b"/mnt"}
    assert house.records.rows == {record.id: record}
    assert len(house.manager.table) == 1


@pytest.mark.expects_log("cannot mount .* again")
@pytest.mark.parametrize("why", ["target", "taken", "image", "view"])
async def test_what_cannot_be_mounted_again_is_told_and_forgotten(house, why, caplog):
    row(house)
    if why == "target":
        house.kernel.missing.add(b"/mnt")
    elif why == "taken":
        house.kernel.foreign.add(b"/mnt")  # somebody's own mount, made while there was no daemon
    elif why == "image":
        house.records.known.clear()
    else:
        house.views.failure = RemoteError("x")
    await house.recover()
    house.assert_empty()
    assert [r.levelno for r in caplog.records] == [logging.ERROR]


@pytest.mark.expects_log("cannot mount .* again at (/gone|/never|/odd|/taken)")
@pytest.mark.parametrize("at_once", [1, 2, 100])
async def test_each_is_mounted_again_whatever_becomes_of_the_others(house, monkeypatch, at_once):
    monkeypatch.setattr(limits, "RECOVERED_AT_ONCE", at_once)
    row(house, "/gone", id="a", manifest=Digest.parse("sha256:" + "9" * 64))
    row(house, "/one", id="b")
    row(house, None, id="c")
    row(house, "/taken", id="d")
    row(house, "/another", id="e", boot_id="another")
    row(house, "/never", id="f")
    row(house, "/odd", id="g", options='{"unknown": 1}')
    row(house, "/two", id="h")
    house.kernel.foreign.add(b"/taken")
    house.kernel.missing.add(b"/never")
    await house.recover()
    assert house.kernel.mounted.keys() == {b"/one", b"/two"}
    assert house.records.rows.keys() == {"b", "c", "h"}
    bound = {held.record.id: held.bound and held.bound.target for held in house.manager.table}
    assert bound == {"b": b"/one", "c": None, "h": b"/two"}
    assert house.views.uses == [3, 3]


async def test_volumes_of_another_boot_are_forgotten_in_silence(house):
    row(house, boot_id="another")
    await house.recover()
    house.assert_empty()


# --- targets of a daemon that may not bind --------------------------------------------------------


class Sessions:
    """In the place of `fs.targets.sessions`."""

    def __init__(self, kernel: Kernel):
        self.kernel = kernel
        self.alive: list[mounts.Bound] = []
        self.failure: Exception | None = None

    async def open(self, view, part, target, options):
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure
        bound = self.kernel.bind(view.name, part, target, options, None)
        self.alive.append(bound)
        return bound

    def is_alive(self, bound):
        return bound in self.alive


def users_manager(house: House, sessions: Sessions | None) -> VolumeManager:
    return VolumeManager(
        images=house.images,
        views=house.views,
        records=house.records,
        views_directory=Path("/views"),
        homes=house.homes,
        obstacle=None,
        may_bind=False,
        sessions=sessions,
    )


@pytest.fixture
def sessions(house, monkeypatch) -> Sessions:
    """The house's manager is a user's from now on."""
    monkeypatch.setattr(mounts, "check_kind", lambda _target, _part: None)
    monkeypatch.setattr(fusermount, "check_target", lambda _target: None)
    sessions = Sessions(house.kernel)
    house.manager = users_manager(house, sessions)
    return sessions


async def test_where_nothing_may_be_bound_a_target_has_a_session(house, sessions):
    volume = await house.mount("/home/me/mnt")
    assert (volume.state, volume.path) == ("mounted", "/home/me/mnt")
    assert len(sessions.alive) == 1
    await house.manager.unmount("/home/me/mnt")
    house.assert_empty()


async def test_a_session_that_cannot_be_had_leaves_nothing(house, sessions):
    sessions.failure = PermissionDenied("you may not mount there")
    with pytest.raises(PermissionDenied):
        await house.mount("/home/me/mnt")
    house.assert_empty()


async def test_a_session_whose_record_fails_is_unmounted(house, sessions):
    house.records.fail_add = LocalError("the disk is full")
    with pytest.raises(LocalError):
        await house.mount("/home/me/mnt")
    house.assert_empty()


@pytest.mark.parametrize(
    "options",
    [
        BindOptions(nosymfollow=True),
        BindOptions(propagation=Propagation.HOST_TO_CONTAINER),
        BindOptions(
            uid_mappings=(MAPPING,),
            gid_mappings=(MAPPING,),
        ),
    ],
)
async def test_what_takes_root_is_refused_before_anything_is_done(house, sessions, options):
    with pytest.raises(MachineLacks, match="takes root"):
        await house.mount("/home/me/mnt", bind=options)
    house.assert_empty()


async def test_over_libfuse_users_have_views_alone(house):
    house.manager = users_manager(house, None)
    with pytest.raises(MachineLacks, match="libfuse has one session"):
        await house.mount("/home/me/mnt")
    volume = await house.mount(None)
    assert volume.target is None
