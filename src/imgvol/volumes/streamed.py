"""Volumes of images that are still being pulled: mounted before there is an image to record."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

from imgvol.content.records import Records, VolumeRecord
from imgvol.errors import ImgvolError
from imgvol.images.streams import ImageStream, ImageStreams
from imgvol.images.views import Views
from imgvol.view.settling import Unsettled
from imgvol.volumes.options import BindOptions
from imgvol.volumes.subpaths import SubPath, resolve_sub_path
from imgvol.volumes.table import VolumeTable
from imgvol.volumes.volume import HeldVolume

log = logging.getLogger(__name__)


class StreamedVolumes:
    """Mounts views of images that are being pulled, and records them when the images are here.

    Args:
        streams: Pulls them.
        views: The table of open views.
        records: Where they are recorded.
        table: The volumes that there are.
        mount: Mounts an open volume, and puts it into the table.

    Attributes:
        streams: The same.
    """

    def __init__(
        self,
        streams: ImageStreams,
        views: Views,
        records: Records,
        table: VolumeTable,
        mount: Callable[[HeldVolume], Awaitable[HeldVolume]],
    ) -> None:
        self.streams = streams
        self._views = views
        self._records = records
        self._table = table
        self._mount = mount

    async def add(
        self, stream: ImageStream, record: VolumeRecord, options: BindOptions
    ) -> HeldVolume:
        """Mounts the view of a stream.

        Args:
            stream: Its view is taken over, also if it cannot be mounted.
            record: What will be recorded when the image is here.
            options: What of it is bound, and how.
        """
        view, patience = stream.view, record.patience
        self._views.publish(view, patience)
        try:
            part = await _settled_sub_path(stream, options)
            held = await self._mount(
                HeldVolume(record=record, image=None, view=view, options=options, part=part)
            )
        except BaseException:
            self._views.withdraw(view, patience)
            self._views.release(view)
            raise
        self.streams.follow(stream, partial(self._note, record.id))
        return held

    async def _note(self, volume_id: str, stream: ImageStream) -> None:
        """An image has come, or will not: the volume that shows it is recorded, or lost."""
        held = self._table.get(volume_id)
        if held is None:
            return  # unmounted meanwhile
        if stream.record is None:
            self._table.put(replace(held, loss=str(stream.failure)))
            return
        # Under the view that others have of the image: numbers of this one mean nothing to the
        # next daemon, which mounts the volume anew.
        record = replace(held.record, view_id=stream.record.view_id)
        try:
            await self._records.add_volume(record)
        except ImgvolError as exc:
            log.warning("the volume %s will not outlive the daemon: %s", volume_id, exc)
        current = self._table.get(volume_id)
        if current is None:
            await self._records.remove_volume(volume_id)
        else:
            self._table.put(replace(current, record=record, image=stream.record))


async def _settled_sub_path(stream: ImageStream, options: BindOptions) -> SubPath:
    """What a sub path means, as soon as enough of the image has come."""
    while True:
        try:
            return resolve_sub_path(stream.view.tree, options)
        except Unsettled:
            await stream.settling.wait_change()
