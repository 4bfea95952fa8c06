"""Sandboxes: their leases, and the volumes that they keep.

A sandbox is a pod, a container, a session: whatever owns volumes. Its lease has its ID and is made
with its first volume, or before. A runtime asks for all volumes of a container at once (`mount`);
containers of a sandbox share the volume of an image. When the sandbox goes, `delete` takes its
volumes away and lets go of their content.

One task at a time works on a sandbox: the others wait for their turn, and then find what has been
done.
"""

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from imgvol import limits
from imgvol.content.records import LeaseRecord
from imgvol.errors import (
    Conflict,
    ImageVolumeMountFailed,
    ImgvolError,
    LocalError,
    NotFound,
)
from imgvol.images.leases import Leases
from imgvol.images.service import ImageService
from imgvol.volumes import mounts
from imgvol.volumes.homes import Homes, check_lease_id
from imgvol.volumes.manager import VolumeManager
from imgvol.volumes.mountinfo import mounts_at
from imgvol.volumes.plan import (
    BindAgain,
    Create,
    MountRequest,
    Restore,
    Step,
    Wanted,
    answer,
    check_request,
    plan_mounts,
    sub_path_options,
    volume_options,
)
from imgvol.volumes.subpaths import resolve_sub_path
from imgvol.volumes.volume import HeldVolume

log = logging.getLogger(__name__)

Undo = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseDeletion:
    """What became of a lease that was deleted.

    Attributes:
        existed: False: there was none, nor a volume of it.
        unmounted: Targets (or views) of the volumes that are gone.
        detached: Those of them that were in use, and still are, out of sight.
    """

    lease: str
    existed: bool
    unmounted: tuple[str, ...] = ()
    detached: tuple[str, ...] = ()


class Sandboxes:
    """Leases and volumes by sandbox. One per daemon."""

    def __init__(
        self,
        *,
        images: ImageService,
        leases: Leases,
        volumes: VolumeManager,
        homes: Homes,
        views_directory: Path,
    ) -> None:
        self._images = images
        self._leases = leases
        self._volumes = volumes
        self._homes = homes
        self._views_directory = views_directory

    async def create_lease(
        self,
        lease_id: str,
        *,
        labels: Mapping[str, str],
        duration: float | None,
        images: Collection[str] = (),
    ) -> LeaseRecord:
        """Makes a lease, or returns the one that has this ID as it is, keeping these images, too.

        Raises:
            InvalidArgument: No lease can have this ID.
            NotFound: An image is not here.
        """
        check_lease_id(lease_id)
        manifests = [(await self._images.find(image)).manifest for image in images]
        async with self._volumes.turns.turn(lease_id):
            return await self._leases.ensure(
                lease_id, labels=labels, duration=duration, images=manifests
            )

    async def renew_lease(self, lease_id: str, duration: float | None) -> LeaseRecord:
        """Lets a lease last for so many seconds from now on; None: as it was to last before.

        Raises:
            NotFound: There is none.
        """
        async with self._volumes.turns.turn(lease_id):
            return await self._leases.renew(lease_id, duration)

    async def list_leases(self, label: str | None = None) -> list[LeaseRecord]:
        """The leases, the oldest first; only those with a label (`key` or `key=value`) if given."""
        return await self._leases.list(label)

    async def mount(
        self,
        sandbox: str,
        requests: Sequence[MountRequest],
        *,
        platform: str | None = None,
        dirs_only: bool = False,
    ) -> list[MountRequest]:
        """Gives a sandbox the volumes of one of its containers: all of them, or none.

        Images are never pulled. An image that the sandbox has a volume of already is shared.

        Args:
            sandbox: Its ID.
            requests: Every mount of the container; those of something else than images are
                returned as they are.
            platform: Of the sandbox; None: this machine's.
            dirs_only: Refuse sub paths that are no directories.

        Returns:
            The same mounts, with the paths that the runtime has to bind.

        Raises:
            ImageVolumeMountFailed: One cannot be had, for the reason that is its cause.
        """
        if all(request.image is None for request in requests):
            return list(requests)
        try:
            check_lease_id(sandbox)
            for request in requests:
                if request.image is not None:
                    check_request(request)
                    mounts.refuse_impossible(volume_options(request))
            self._volumes.require_bind()
            async with self._volumes.turns.turn(sandbox):
                targets = await self._mount(sandbox, requests, platform, dirs_only)
        except ImgvolError as exc:
            raise ImageVolumeMountFailed(
                f"ImageVolumeMountFailed: {exc.message}", hint=exc.hint, **exc.fields
            ) from exc
        return [
            request if target is None else answer(request, target)
            for request, target in zip(requests, targets, strict=True)
        ]

    async def _mount(
        self,
        sandbox: str,
        requests: Sequence[MountRequest],
        platform: str | None,
        dirs_only: bool,
    ) -> list[str | None]:
        """The host path of each request."""
        wanted = [await self._find(sandbox, request, platform) for request in requests]
        await self._leases.ensure(sandbox)
        volumes = [volume for volume in wanted if volume is not None]
        targets = {os.fsencode(volume.target) for volume in volumes}
        known = self._volumes.table.of_sandbox(sandbox)
        steps = plan_mounts(
            volumes,
            {v.record.target: v for v in known if v.record.target},
            await self._volumes.in_thread(mounts_at, targets),
            self._views_directory,
        )
        async with self._taken(sandbox, steps):
            held = {v.record.target: v for v in self._volumes.table.of_sandbox(sandbox)}
            return [
                None if volume is None else _host_path(held[volume.target], request, dirs_only)
                for request, volume in zip(requests, wanted, strict=True)
            ]

    async def _find(
        self, sandbox: str, request: MountRequest, platform: str | None
    ) -> Wanted | None:
        image = request.image
        if image is None:
            return None
        try:
            found = await self._images.find(image, platform=platform)
        except NotFound as exc:
            raise NotFound(
                f'failed to resolve image "{image}"', hint=exc.hint, **exc.fields
            ) from exc
        target = self._homes.target(sandbox, found.manifest)
        return Wanted(image, found, target, volume_options(request))

    @asynccontextmanager
    async def _taken(self, sandbox: str, steps: Sequence[Step]) -> AsyncIterator[None]:
        """Takes steps for the block; undoes them, the last one first, when anything fails."""
        async with AsyncExitStack() as undo:
            for step in steps:
                undo.push_async_callback(self._take_back, await self._take_one(sandbox, step))
            yield
            undo.pop_all()

    async def _take_back(self, undo: Undo) -> None:
        with trio.CancelScope(shield=True):
            try:
                await undo()
            except (ImgvolError, OSError) as exc:
                log.error("a mount that was made for a sandbox cannot be undone: %s", exc)

    async def _take_one(self, sandbox: str, step: Step) -> Undo:
        """Takes one step; returns what undoes it."""
        volumes = self._volumes
        match step:
            case Create(wanted, leftovers):
                record = volumes.new_record(
                    wanted.image, wanted.name, sandbox, wanted.target, bind=wanted.options
                )
                held = await volumes.add(record, wanted.image, leftovers)
                return partial(volumes.remove, held, lazily=True)
            case BindAgain(held, leftovers):
                await volumes.bind_again(held, leftovers)
                return partial(volumes.unbind, held)
            case Restore(held, image, leftovers):
                await volumes.restore(held.record, image, leftovers)
                return partial(volumes.lose, held.record, held.image, held.loss)

    async def delete_lease(
        self, lease_id: str, *, drain: float = limits.DRAIN_DEFAULT, detach: bool = False
    ) -> LeaseDeletion:
        """Unmounts the volumes of a lease and lets go of what it keeps; none is fine, too.

        Args:
            lease_id: Of a sandbox, or another one.
            drain: Seconds that users of volumes have to leave.
            detach: Whether volumes that are in use even then are taken out of sight: their users
                keep what they have open. Otherwise they stay, and the lease with them.

        Raises:
            Conflict: Volumes are still in use. Those that were not are gone.
            LocalError: Volumes could not be unmounted for other reasons as well.
        """
        async with self._volumes.turns.turn(lease_id):
            return await self._delete(lease_id, drain=drain, detach=detach)

    async def end_lease(self, lease_id: str) -> None:
        """Deletes a lease that has run out, unless it was renewed meanwhile.

        Raises:
            ImgvolError: Volumes are still in use, or cannot be unmounted.
        """
        async with self._volumes.turns.turn(lease_id):
            if self._leases.has_ended(lease_id):
                await self._delete(lease_id, drain=0, detach=False)
                log.info("lease %s has run out", lease_id)

    async def _delete(self, lease_id: str, *, drain: float, detach: bool) -> LeaseDeletion:
        existed = await self._leases.exists(lease_id)
        volumes = self._volumes.table.of_sandbox(lease_id)
        failures = await self._drain(volumes, drain)
        busy = [volume for volume in volumes if volume.record.id in failures]
        if detach:
            failures = await self._remove(busy, lazily=True)
        if failures:
            raise _together(lease_id, busy, failures)
        if not await self._leases.drop(lease_id):
            raise Conflict("a volume was mounted for the lease meanwhile", lease=lease_id)
        return LeaseDeletion(
            lease=lease_id,
            existed=existed,
            unmounted=tuple(map(_place_of, volumes)),
            detached=tuple(map(_place_of, busy)),
        )

    async def _drain(self, volumes: Sequence[HeldVolume], seconds: float) -> dict[str, ImgvolError]:
        """Unmounts volumes as their users leave; what has failed when the time is over, by ID."""
        deadline = trio.current_time() + seconds
        while True:
            failures = await self._remove(volumes, lazily=False)
            volumes = [volume for volume in volumes if volume.record.id in failures]
            is_over = trio.current_time() >= deadline
            if is_over or not any(isinstance(exc, Conflict) for exc in failures.values()):
                return failures
            await trio.sleep(limits.DRAIN_PAUSE)

    async def _remove(
        self, volumes: Sequence[HeldVolume], *, lazily: bool
    ) -> dict[str, ImgvolError]:
        """Unmounts each volume; goes on over failures, and returns them by ID."""
        failures: dict[str, ImgvolError] = {}
        for volume in volumes:
            try:
                await self._volumes.remove(volume, lazily=lazily)
            except NotFound:
                pass  # somebody has unmounted it meanwhile
            except ImgvolError as exc:
                failures[volume.record.id] = exc
        return failures


def _host_path(held: HeldVolume, request: MountRequest, dirs_only: bool) -> str:
    """What the runtime has to bind: the volume, or, by plain names, what is asked for of it."""
    assert held.view is not None
    assert held.record.target is not None
    part = resolve_sub_path(held.view.tree, sub_path_options(request, dirs_only=dirs_only))
    return os.path.join(held.record.target, os.fsdecode(part.path)).rstrip("/")


def _together(
    lease_id: str, volumes: Sequence[HeldVolume], failures: Mapping[str, ImgvolError]
) -> ImgvolError:
    """One error that tells of every volume that is still there."""
    reasons = [
        f"{_place_of(v)}: {failures[v.record.id]}" for v in volumes if v.record.id in failures
    ]
    are_busy = all(isinstance(failure, Conflict) for failure in failures.values())
    return (Conflict if are_busy else LocalError)(
        "not all volumes of the lease could be unmounted",
        hint="imgvol lease rm --detach takes those away that are in use.",
        lease=lease_id,
        volumes=len(reasons),
        reasons="; ".join(reasons),
    )


def _place_of(volume: HeldVolume) -> str:
    return volume.record.target or volume.record.id
