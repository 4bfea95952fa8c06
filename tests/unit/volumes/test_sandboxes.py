"""Sandboxes over volumes that exist in memory: all or nothing, in which order, one at a time."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import trio

from imgvol.api.problems import error_document, http_status
from imgvol.content.records import VolumeRecord
from imgvol.content.turns import Turns
from imgvol.errors import (
    Conflict,
    ImageVolumeMountFailed,
    InvalidArgument,
    LocalError,
    MachineLacks,
    NotFound,
    StoreFull,
)
from imgvol.images.leases import Leases
from imgvol.view.chain import ChainView
from imgvol.volumes import sandboxes as module
from imgvol.volumes.homes import Homes
from imgvol.volumes.mountinfo import FILESYSTEM_TYPE, MountInfo, source_of
from imgvol.volumes.options import WHOLE_VIEW, BindOptions, IDMapping
from imgvol.volumes.plan import MountRequest
from imgvol.volumes.sandboxes import Sandboxes
from imgvol.volumes.volume import HeldVolume
from support.members import directory, file, symlink, view_of
from support.records import image_record, layer_record

VIEWS = Path("/views")
TREE = view_of([directory(b"etc"), file(b"etc/motd"), symlink(b"link", b"etc/motd")])
IMAGES = {name: image_record([layer_record(name)], name) for name in "abc"}


@dataclass(frozen=True)
class View:
    name: bytes
    tree: ChainView = TREE


class Images:
    async def find(self, image, *, platform=None):
        await trio.lowlevel.checkpoint()
        self.platform = platform
        if image not in IMAGES:
            raise NotFound("image is not in the store", hint="Pull it first.", image=image)
        return IMAGES[image]


class Records:
    """Leases only."""

    def __init__(self, volumes):
        self.rows = {}
        self.volumes = volumes

    async def ensure_lease(self, lease, *, images=()):
        await trio.lowlevel.checkpoint()
        return self.rows.setdefault(lease.id, lease)

    async def leases(self):
        return list(self.rows.values())

    async def lease(self, lease_id):
        return self.rows.get(lease_id)

    async def remove_lease(self, lease_id):
        if self.volumes.table.of_sandbox(lease_id):
            return False
        self.rows.pop(lease_id, None)
        return True


@dataclass
class Volumes:
    """A volume manager that notes what it is asked for.

    Attributes:
        failing: Targets whose next mount fails, with what.
        busy: Targets that cannot be unmounted, with why; True: only while they are in use.
    """

    held: dict[str, HeldVolume] = field(default_factory=dict)
    mounted: list[str] = field(default_factory=list)
    log: list[tuple[str, str]] = field(default_factory=list)
    failing: dict[str, Exception] = field(default_factory=dict)
    busy: dict[str, Exception] = field(default_factory=dict)
    obstacle: MachineLacks | None = None
    turns: Turns[str] = field(default_factory=Turns)
    at_work: int = 0

    def require_bind(self):
        if self.obstacle:
            raise self.obstacle

    @property
    def table(self):
        return self

    def of_sandbox(self, sandbox):
        return [held for held in self.held.values() if held.record.sandbox == sandbox]

    def new_record(self, image, name, sandbox, target, *, bind=WHOLE_VIEW):
        return VolumeRecord(
            id=f"{sandbox}/{image.manifest}",
            sandbox=sandbox,
            image=name,
            manifest=image.manifest,
            target=target,
            options=bind.to_json(),
            patience=0.0,
            view_id=image.view_id,
            created_at=1.0,
            boot_id="b",
        )

    async def in_thread(self, work, *arguments):
        await trio.lowlevel.checkpoint()
        return work(*arguments)

    async def add(self, record, image, leftovers=()):
        return await self._mount("add", record, image)

    async def restore(self, record, image, leftovers):
        return await self._mount("restore", record, image)

    async def bind_again(self, held, leftovers):
        await self._mount("bind", held.record, held.image)

    async def unbind(self, held):
        self.log.append(("unbind", held.record.target))
        self.mounted.remove(held.record.target)

    async def lose(self, record, image, reason):
        self.log.append(("lose", record.target))
        self.mounted.remove(record.target)
        self.held[record.id] = HeldVolume(record=record, image=image, view=None, loss=reason)

    async def remove(self, held, *, lazily):
        await trio.lowlevel.checkpoint()
        target = held.record.target
        failure = self.busy.get(target)
        if failure is not None and not (lazily and type(failure) is Conflict):
            raise failure
        self.log.append(("remove", target))
        del self.held[held.record.id]
        self.mounted.remove(target)

    async def _mount(self, what, record, image):
        self.at_work += 1
        assert self.at_work == 1, "one at a time for one sandbox"
        await trio.lowlevel.checkpoint()
        self.at_work -= 1
        self.log.append((what, record.target))
        if record.target in self.failing:
            raise self.failing.pop(record.target)
        self.mounted.append(record.target)
        view = View(image.view_id.hex.encode())
        options = BindOptions.from_json(record.options)
        held = HeldVolume(record=record, image=image, view=view, options=options)
        self.held[record.id] = held
        return held


@dataclass
class House:
    sandboxes: Sandboxes
    volumes: Volumes
    leases: Leases
    records: Records
    homes: Homes
    images: Images

    def target(self, name, sandbox="pod"):
        return self.homes.target(sandbox, IMAGES[name].manifest)

    async def mount(self, *names, sandbox="pod"):
        requests = [MountRequest(container_path="/d", image=n, readonly=True) for n in names]
        return [done.host_path for done in await self.sandboxes.mount(sandbox, requests)]


@pytest.fixture
def house(tmp_path, monkeypatch):
    volumes = Volumes()
    records = Records(volumes)
    leases, homes, images = Leases(records), Homes(tmp_path), Images()
    sandboxes = Sandboxes(
        images=images, leases=leases, volumes=volumes, homes=homes, views_directory=VIEWS
    )

    def mounts_at(targets):
        return [
            _mount(target, b"/" + held.view.name)
            for held in volumes.held.values()
            if held.view and (target := held.record.target) in volumes.mounted
        ] + [_mount(str(VIEWS), b"/")]

    monkeypatch.setattr(module, "mounts_at", mounts_at)
    return House(sandboxes, volumes, leases, records, homes, images)


def _mount(target, root):
    return MountInfo(
        mount_id=1,
        parent_id=1,
        major=0,
        minor=9,
        root=root,
        mount_point=target.encode(),
        options=frozenset(),
        fstype=FILESYSTEM_TYPE,
        source=source_of(VIEWS),
        super_options=frozenset({f"user_id={os.geteuid()}"}),
    )


# --- mounting ------------------------------------------------------------------------------------


async def test_an_image_is_mounted_once_for_all_containers(house):
    first = await house.mount("a", "b", "a")
    assert first == [house.target("a"), house.target("b"), house.target("a")]
    assert await house.mount("b", "c") == [house.target("b"), house.target("c")]
    assert house.volumes.log == [("add", house.target(name)) for name in "abc"]
    assert list(house.records.rows) == ["pod"]


async def test_another_sandbox_gets_its_own(house):
    await house.mount("a")
    assert await house.mount("a", sandbox="other") == [house.target("a", "other")]
    assert len(house.volumes.mounted) == 2


async def test_what_fails_is_undone_backwards_and_nothing_else(house):
    await house.mount("a")
    house.volumes.log.clear()
    house.volumes.failing[house.target("c")] = StoreFull("no room")
    lost = await _lose(house, "b")
    with pytest.raises(ImageVolumeMountFailed) as failed:
        # Shared, restored, and what fails.
        await house.mount("a", "b", "c")
    b, c = house.target("b"), house.target("c")
    assert house.volumes.log == [("restore", b), ("add", c), ("lose", b)]
    assert house.volumes.mounted == [house.target("a")]
    assert house.volumes.held[lost.record.id].loss == "gone"
    assert isinstance(failed.value.__cause__, StoreFull)


async def test_three_new_ones_are_undone_in_reverse(house):
    targets = [house.target(name) for name in "abc"]
    house.volumes.failing[targets[2]] = LocalError("the kernel refuses")
    with pytest.raises(ImageVolumeMountFailed):
        await house.mount("a", "b", "c")
    adds = [("add", target) for target in targets]
    assert house.volumes.log == [*adds, ("remove", targets[1]), ("remove", targets[0])]
    assert house.volumes.mounted == []


@pytest.mark.expects_log("cannot be undone")
async def test_one_that_cannot_be_undone_does_not_keep_the_others(house):
    house.volumes.failing[house.target("c")] = LocalError("x")
    house.volumes.busy[house.target("b")] = LocalError("stuck")
    with pytest.raises(ImageVolumeMountFailed):
        await house.mount("a", "b", "c")
    assert house.volumes.mounted == [house.target("b")]


async def test_a_caller_who_goes_away_leaves_nothing(house):
    class Slow(Volumes):
        async def add(self, record, image, leftovers=()):
            if record.target == house.target("b"):
                scope.cancel()
                await trio.sleep_forever()
            return await super().add(record, image)

    house.sandboxes._volumes = volumes = Slow()
    with trio.CancelScope() as scope:
        await house.mount("a", "b")
    assert scope.cancelled_caught
    assert volumes.mounted == []


async def test_what_is_not_mounted_any_more_is_bound_again(house):
    await house.mount("a")
    house.volumes.mounted.clear()
    await house.mount("a")
    assert [what for what, _ in house.volumes.log] == ["add", "bind"]
    house.volumes.mounted.clear()
    house.volumes.failing[house.target("b")] = LocalError("x")
    with pytest.raises(ImageVolumeMountFailed):
        await house.mount("a", "b")
    assert house.volumes.mounted == []
    assert len(house.volumes.held) == 1, "as it was before"


async def test_mounts_of_something_else_pass_untouched_and_need_nothing(house):
    house.volumes.obstacle = MachineLacks("no /dev/fuse")
    ordinary = MountRequest(container_path="/x", host_path="/srv", uid_mappings=(_range(),))
    assert await house.sandboxes.mount("../..", [ordinary]) == [ordinary]
    assert house.records.rows == {}


@pytest.mark.parametrize(
    ("change", "cause", "text"),
    [
        ({"host_path": "/x"}, InvalidArgument, "hostpath must be empty while mount image"),
        ({"readonly": False}, InvalidArgument, "readonly must be true while mount image"),
        ({"image": ""}, InvalidArgument, "image not specified"),
        ({"image": "nothing"}, NotFound, 'failed to resolve image "nothing"'),
        ({"image_sub_path": "a\0b"}, InvalidArgument, "sub path is no path"),
        ({"propagation": "bidirectional"}, InvalidArgument, "a volume cannot have bidirectional"),
        ({"uid_mappings": "range"}, InvalidArgument, "user and group mappings come together"),
    ],
)
async def test_a_refusal_is_the_error_that_kubelets_know_with_its_causes_status(
    house, change, cause, text
):
    if "uid_mappings" in change:
        change = {"uid_mappings": (_range(),)}
    good = MountRequest(container_path="/d", image="a", readonly=True)
    with pytest.raises(ImageVolumeMountFailed) as failed:
        await house.sandboxes.mount("pod", [good, replace(good, **change)])
    assert str(failed.value).startswith(f"ImageVolumeMountFailed: {text}")
    assert type(failed.value.__cause__) is cause
    assert http_status(failed.value) == cause.http_status
    assert error_document(failed.value)["error"]["code"] == "image-volume-mount-failed"
    assert house.volumes.log == []


async def test_a_part_of_an_image_is_below_the_volume_that_all_share(house):
    request = MountRequest(container_path="/d", image="a", readonly=True, image_sub_path="link")
    done = await house.sandboxes.mount("pod", [request, replace(request, image_sub_path="etc/")])
    target = house.target("a")
    assert [one.host_path for one in done] == [f"{target}/etc/motd", f"{target}/etc"]
    assert house.volumes.mounted == [target]


async def test_a_part_that_is_not_there_undoes_what_was_mounted(house):
    request = MountRequest(container_path="/d", image="a", readonly=True)
    with pytest.raises(ImageVolumeMountFailed, match="no such file or directory"):
        await house.sandboxes.mount("pod", [request, replace(request, image_sub_path="nothing")])
    with pytest.raises(ImageVolumeMountFailed, match="only directory subpath is supported"):
        await house.sandboxes.mount(
            "pod", [replace(request, image_sub_path="etc/motd")], dirs_only=True
        )
    assert house.volumes.held == {}
    assert house.volumes.mounted == []


async def test_containers_of_a_sandbox_have_one_mapping_of_an_image(house):
    ranges = (_range(),)
    plain = MountRequest(container_path="/d", image="a", readonly=True)
    mapped = replace(plain, uid_mappings=ranges, gid_mappings=ranges)
    with pytest.raises(ImageVolumeMountFailed, match="other ID mappings"):
        await house.sandboxes.mount("pod", [plain, mapped])
    assert house.volumes.held == {}
    (done,) = await house.sandboxes.mount("pod", [mapped])
    assert done.uid_mappings == done.gid_mappings == ()
    await house.sandboxes.mount("pod", [mapped])
    with pytest.raises(ImageVolumeMountFailed, match="other ID mappings"):
        await house.sandboxes.mount("pod", [plain])


async def test_the_platform_is_the_sandboxs(house):
    request = MountRequest(container_path="/d", image="a", readonly=True)
    await house.sandboxes.mount("pod", [request], platform="linux/arm64")
    assert house.images.platform == "linux/arm64"


@pytest.mark.parametrize("sandbox", ["..", "a/b", "", ".hidden", "a" * 129, "a\n", "é", "a:b"])
async def test_hostile_ids_never_become_paths(house, sandbox):
    with pytest.raises(ImageVolumeMountFailed):
        await house.mount("a", sandbox=sandbox)
    with pytest.raises(InvalidArgument):
        await house.sandboxes.create_lease(sandbox, labels={}, duration=None)
    assert house.records.rows == {}


async def test_many_at_once_take_turns(house):
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(house.mount, "a", "b", "c")
    assert len(house.volumes.log) == 3


# --- deleting ------------------------------------------------------------------------------------


async def test_deleting_unmounts_everything_of_the_sandbox_and_forgets_the_lease(house):
    await house.mount("a", "b")
    await house.mount("a", sandbox="other")
    deletion = await house.sandboxes.delete_lease("pod")
    assert deletion.unmounted == (house.target("a"), house.target("b"))
    assert (deletion.existed, deletion.detached) == (True, ())
    assert house.volumes.mounted == [house.target("a", "other")]
    assert list(house.records.rows) == ["other"]
    assert not (await house.sandboxes.delete_lease("pod")).existed, "none is fine"


async def test_deleting_goes_on_over_failures_and_tells_of_all_at_once(house, autojump_clock):
    await house.mount("a", "b", "c")
    house.volumes.busy[house.target("a")] = Conflict("volume is in use")
    house.volumes.busy[house.target("b")] = LocalError("stuck")
    with pytest.raises(LocalError) as failed:
        await house.sandboxes.delete_lease("pod", drain=1.0, detach=False)
    assert failed.value.fields["volumes"] == 2
    for name in "ab":
        assert house.target(name) in failed.value.fields["reasons"]
    assert house.volumes.mounted == [house.target("a"), house.target("b")]
    assert list(house.records.rows) == ["pod"], "until it can be deleted"


async def test_busy_volumes_have_their_time_and_are_detached_only_if_asked(house, autojump_clock):
    await house.mount("a", "b")
    house.volumes.busy[house.target("b")] = Conflict("volume is in use")
    began = trio.current_time()
    with pytest.raises(Conflict):
        await house.sandboxes.delete_lease("pod", drain=30.0)
    assert 30.0 <= trio.current_time() - began < 31.0
    deletion = await house.sandboxes.delete_lease("pod", drain=5.0, detach=True)
    assert deletion.detached == (house.target("b"),)
    assert trio.current_time() - began >= 35.0
    assert house.volumes.mounted == []


async def test_users_who_leave_in_time_are_waited_for(house, autojump_clock):
    await house.mount("a")
    house.volumes.busy[house.target("a")] = Conflict("volume is in use")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_free_after, house, 3.0)
        deletion = await house.sandboxes.delete_lease("pod", drain=10.0)
    assert deletion.detached == ()
    assert trio.current_time() < 4.0


async def test_a_lease_that_was_renewed_meanwhile_does_not_end(house, mock_clock):
    await house.sandboxes.create_lease("pod", labels={}, duration=None)
    house.leases._deadlines["pod"] = trio.current_time() + 5
    await house.sandboxes.end_lease("pod")
    assert list(house.records.rows) == ["pod"]
    mock_clock.jump(5)
    await house.sandboxes.end_lease("pod")
    assert house.records.rows == {}


async def _free_after(house, seconds):
    await trio.sleep(seconds)
    house.volumes.busy.clear()


async def _lose(house, name):
    record = house.volumes.new_record(IMAGES[name], name, "pod", house.target(name))
    lost = HeldVolume(record=record, image=IMAGES[name], view=None, loss="gone")
    house.volumes.held[record.id] = lost
    return lost


def _range():
    return IDMapping(host_id=1000, container_id=0, length=1)
