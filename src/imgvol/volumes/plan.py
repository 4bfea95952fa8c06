"""What has to be done so that a sandbox gets its volumes: pure, from what is asked and what is.

`check_request` refuses requests for reasons that lie in themselves. `plan_mounts` compares the
volumes that are wanted with those that are recorded and with what the kernel says is mounted:

| record | at the target | step |
|---|---|---|
| none | nothing, or our own leftovers | Create |
| yes, open | its view, live | none: it is shared |
| yes, open | nothing, or our own leftovers | BindAgain |
| yes, lost | nothing, or our own leftovers | Restore |
| any | somebody else's mount on top | Conflict |

A directory that exists says nothing: only the kernel's table tells what is mounted.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from imgvol.content.records import ImageRecord
from imgvol.errors import Conflict, InvalidArgument
from imgvol.volumes.mountinfo import MountInfo, is_filesystem, is_ours
from imgvol.volumes.options import WHOLE_VIEW, BindOptions, Escapes, IDMapping, Propagation
from imgvol.volumes.volume import HeldVolume


@dataclass(frozen=True, slots=True, kw_only=True)
class MountRequest:
    """One mount of a container, as the CRI describes it (message Mount, v1).

    Attributes:
        container_path: Where it will be in the container; of no meaning here.
        image: A reference or an ID; None: the mount of something else, which is left alone.
        host_path: What the runtime binds. Empty in a request for an image, filled in in the answer.
        image_sub_path: Of the image, what is wanted; text with surrogate escapes.
        propagation: As the CRI names it, in lower case.
        mount_options: For the runtime, when it binds the host path.
    """

    container_path: str
    image: str | None = None
    host_path: str = ""
    readonly: bool = False
    image_sub_path: str = ""
    propagation: str = "private"
    selinux_relabel: bool = False
    recursive_read_only: bool = False
    uid_mappings: tuple[IDMapping, ...] = ()
    gid_mappings: tuple[IDMapping, ...] = ()
    mount_options: tuple[str, ...] = ()


def check_request(request: MountRequest) -> None:
    """Refuses a request for an image that contradicts itself. The texts are what kubelets know.

    Raises:
        InvalidArgument: It names a host path, is not read-only, names no image, or contradicts
            itself in how it is to be mounted.
    """
    where = request.container_path
    if request.host_path:
        raise InvalidArgument(
            "hostpath must be empty while mount image",
            container_path=where,
            host_path=request.host_path,
        )
    if not request.readonly:
        raise InvalidArgument("readonly must be true while mount image", container_path=where)
    if not request.image:
        raise InvalidArgument("image not specified", container_path=where)
    volume_options(request)
    sub_path_options(request)


def volume_options(request: MountRequest) -> BindOptions:
    """How the volume that a request needs is bound. All of the image: it is shared.

    Raises:
        InvalidArgument: The mappings make no sense, or a container could mount on the host.
    """
    return BindOptions(
        uid_mappings=request.uid_mappings,
        gid_mappings=request.gid_mappings,
        propagation=Propagation.parse(request.propagation),
        selinux_relabel=request.selinux_relabel,
    )


def sub_path_options(request: MountRequest, *, dirs_only: bool = False) -> BindOptions:
    """Which part of the volume a request is for, with a kubelet's rules.

    Raises:
        InvalidArgument: It is no path.
    """
    return BindOptions(
        sub_path=os.fsencode(request.image_sub_path), escapes=Escapes.REFUSE, dirs_only=dirs_only
    )


def answer(request: MountRequest, host_path: str) -> MountRequest:
    """A request with what the runtime has to bind.

    The mappings are cleared: the runtime must not map a second time.
    """
    return replace(request, host_path=host_path, uid_mappings=(), gid_mappings=())


@dataclass(frozen=True, slots=True)
class Wanted:
    """A volume that a sandbox shall have: an image, as it was named, at a target, and how."""

    name: str
    image: ImageRecord
    target: str
    options: BindOptions = WHOLE_VIEW


@dataclass(frozen=True, slots=True)
class Create:
    """A new volume; `leftovers` are our own mounts at its target, to be detached first."""

    wanted: Wanted
    leftovers: tuple[MountInfo, ...]


@dataclass(frozen=True, slots=True)
class BindAgain:
    """A volume whose view is open, but not mounted at its target any more."""

    held: HeldVolume
    leftovers: tuple[MountInfo, ...]


@dataclass(frozen=True, slots=True)
class Restore:
    """A volume that was lost, and is recorded."""

    held: HeldVolume
    image: ImageRecord
    leftovers: tuple[MountInfo, ...]


Step = Create | BindAgain | Restore


def plan_mounts(
    wanted: Sequence[Wanted],
    held: Mapping[str, HeldVolume],
    mounts: Sequence[MountInfo],
    views_directory: Path,
) -> tuple[Step, ...]:
    """The steps that give a sandbox its volumes, in order; none for what is there already.

    Args:
        wanted: What it shall have; the same target twice is one volume.
        held: Its volumes, by target.
        mounts: The kernel's table, in its order.
        views_directory: Of our filesystem.

    Raises:
        Conflict: Something else is mounted at a target, or containers of the sandbox want an
            image with different ID mappings.
    """
    by_target: dict[str, Wanted] = {}
    for volume in wanted:
        shared = by_target.setdefault(volume.target, volume)
        _check_mappings(shared.options, volume)
    live = _device(mounts, views_directory)
    steps: list[Step] = []
    for target, volume in by_target.items():
        there = tuple(mount for mount in mounts if mount.mount_point == os.fsencode(target))
        known = held.get(target)
        if known is not None:
            _check_mappings(known.options, volume)
        if known is not None and known.view is not None:
            if there and _shows(there[-1], views_directory, known.view.name, live):
                continue
            step: Step = BindAgain(known, there)
        elif known is not None:
            step = Restore(known, volume.image, there)
        else:
            step = Create(volume, there)
        if not all(is_ours(mount, views_directory) for mount in there):
            raise Conflict("something else is mounted there", target=target)
        steps.append(step)
    return tuple(steps)


def _check_mappings(shared: BindOptions, wanted: Wanted) -> None:
    """One mount has one mapping, and a sandbox one mount of an image."""
    ours = (shared.uid_mappings, shared.gid_mappings)
    if ours != (wanted.options.uid_mappings, wanted.options.gid_mappings):
        raise Conflict("the sandbox has the image with other ID mappings", target=wanted.target)


def _device(mounts: Sequence[MountInfo], views_directory: Path) -> tuple[int, int] | None:
    """Which of our filesystems is the one that serves: a dead one has another number."""
    for mount in reversed(mounts):
        if is_filesystem(mount, views_directory):
            return mount.major, mount.minor
    return None


def _shows(
    mount: MountInfo, views_directory: Path, view_name: bytes, live: tuple[int, int] | None
) -> bool:
    is_live = is_ours(mount, views_directory) and (mount.major, mount.minor) == live
    return is_live and mount.root == b"/" + view_name
