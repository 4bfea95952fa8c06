"""The volumes after a restart: records, store and mounts brought together again, without network.

It is idempotent: nothing is recorded on the way but what is gone for good, so a daemon that dies in
here leaves what the next one does once more.

The mounts of a dead daemon's volumes stay, dead, until each is replaced: whoever looks there gets
an error, and never an empty directory. A sandbox's volume that cannot be mounted again is *lost*:
`ps` says why, its lease keeps what there is of its image, its directory is gone, and the next start
tries again, as does the next request for it. A volume at a user's own target is forgotten then, and
its target is the plain directory that it was.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from imgvol.content.records import ImageRecord, Records, VolumeRecord
from imgvol.errors import ImgvolError, NotFound
from imgvol.oci.digest import Digest
from imgvol.volumes import mounts
from imgvol.volumes.homes import Homes
from imgvol.volumes.manager import VolumeManager
from imgvol.volumes.mountinfo import MountInfo, by_target, is_ours, read_mountinfo

log = logging.getLogger(__name__)


async def detach_dead(records: Records, views_directory: Path) -> None:
    """Detaches what a dead daemon left mounted, but for its volumes, which `recover` replaces.

    Call it before the filesystem is mounted.
    """
    kept = {os.fsencode(v.target) for v in await records.volumes() if v.target is not None}
    await trio.to_thread.run_sync(lambda: mounts.detach_dead_mounts(views_directory, kept=kept))


async def recover(
    volumes: VolumeManager, *, records: Records, homes: Homes, views_directory: Path
) -> None:
    """Makes the records of volumes true again. Call once, before anything else is asked."""
    recorded = await records.volumes()
    recovery = _Recovery(
        volumes=volumes,
        records=records,
        homes=homes,
        views_directory=views_directory,
        images={image.manifest: image for image in await records.images()},
        mounts=by_target(await volumes.in_thread(read_mountinfo)),
    )
    # Several at a time would be slower: their threads would wait for each other.
    with volumes.one_after_the_other():
        for record in recorded:
            await recovery.recover_one(record)
    kept = {held.target for held in await volumes.list() if held.target is not None}
    await volumes.in_thread(homes.sweep, kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recovery:
    """What is known when recovery begins.

    Attributes:
        images: By manifest; those of which a layer is missing are not among them.
        mounts: By mount point, the topmost last.
    """

    volumes: VolumeManager
    records: Records
    homes: Homes
    views_directory: Path
    images: Mapping[Digest, ImageRecord]
    mounts: Mapping[bytes, Sequence[MountInfo]]

    async def recover_one(self, record: VolumeRecord) -> None:
        """Makes one record true, or says that it is not."""
        if record.boot_id != self.volumes.boot_id:
            # Mounts and sandboxes' processes have not outlived the boot.
            await self.records.remove_volume(record.id)
            return
        there = self.mounts.get(os.fsencode(record.target), ()) if record.target else ()
        image = self.images.get(record.manifest)
        try:
            self.volumes.require_filesystem()
            if image is None:
                raise NotFound("image is not in the store", image=record.image)
            await self.volumes.restore(record, image, there)
        except (ImgvolError, OSError) as exc:
            log.error("cannot mount %s again at %s: %s", record.image, record.target, exc)
            await self._give_up(record, image, str(exc))

    async def _give_up(
        self,
        record: VolumeRecord,
        image: ImageRecord | None,
        reason: str,
    ) -> None:
        has_home = record.target is not None and self.homes.owns(record.target)
        try:
            if record.target is not None:
                await self.volumes.in_thread(self._clear, record.target, has_home)
        except (ImgvolError, OSError) as exc:
            log.error("cannot take away what is left at %s: %s", record.target, exc)
        if has_home:
            await self.volumes.lose(record, image, reason)
        else:
            await self.records.remove_volume(record.id)

    def _clear(self, target: str, has_home: bool) -> None:
        """Takes a dead mount away, if the attempt to replace it has not. Blocks."""
        path = os.fsencode(target)
        left = mounts.mounts_at(path)
        if all(is_ours(mount, self.views_directory) for mount in left):
            mounts.detach(path, self.views_directory, left)
            if has_home:
                self.homes.remove(target)
