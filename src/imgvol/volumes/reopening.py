"""What the process before had open, opened again before the kernel is answered.

The kernel goes on with the inode numbers that it was given. These are the same in every process:
slots are in the database, nodes in the layers. What is missing is that views and layers are open:
those of volumes, and those that somebody still uses whose volume has gone.
"""

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass

import trio

from imgvol import limits
from imgvol.content.records import ImageRecord, Records
from imgvol.errors import ImgvolError
from imgvol.images.views import Views
from imgvol.oci.digest import Digest
from imgvol.view.chain import root_of
from imgvol.view.inodes import encode_chain_inode
from imgvol.volumes.manager import BOOT_ID

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class _Used:
    """A view that was open.

    Attributes:
        patience: Of the most patient volume; None: no volume has it.
    """

    image: ImageRecord
    view_id: Digest
    patience: float | None


@asynccontextmanager
async def reopened(
    views: Views, records: Records, knows: Callable[[Sequence[int]], set[int]]
) -> AsyncIterator[None]:
    """Keeps open inside the block what the kernel may ask for; recovery takes its volumes there.

    A view that cannot be opened is told of in the log: its users get errors.

    Args:
        views: The table of open views.
        records: Of volumes and images.
        knows: Which of some inode numbers the kernel has in its memory. Blocks.

    Raises:
        trio.TooSlowError: It takes longer than callers should wait.
    """
    with ExitStack() as stack:
        with trio.fail_after(limits.TAKE_OVER_DEADLINE):
            for used in await _used_views(records, knows):
                await _reopen(views, used, stack)
        yield


async def _reopen(views: Views, used: _Used, stack: ExitStack) -> None:
    try:
        view = await views.acquire(used.image, used.view_id)
    except (ImgvolError, OSError) as exc:
        log.warning("what is in use of %s gives errors from now on: %s", used.image.id, exc)
        return
    views.inherit(view)
    stack.callback(views.release, view)
    if used.patience is not None:
        views.publish(view, used.patience)
        stack.callback(views.withdraw, view, used.patience)


async def _used_views(
    records: Records, knows: Callable[[Sequence[int]], set[int]]
) -> Sequence[_Used]:
    boot_id = BOOT_ID.read_text().strip()
    images = {image.manifest: image for image in await records.images()}
    used: dict[Digest, _Used] = {}
    for volume in await records.volumes():
        image = images.get(volume.manifest)
        if image is None or volume.boot_id != boot_id:
            continue
        known = used.setdefault(
            volume.view_id, _Used(image=image, view_id=volume.view_id, patience=None)
        )
        known.patience = max(known.patience or 0.0, volume.patience)
    slots = await records.view_slots()
    roots = {
        encode_chain_inode(slots[str(image.view_id)], root_of(len(image.layers))): image
        for image in images.values()
        if image.view_id not in used and str(image.view_id) in slots
    }
    for inode in await trio.to_thread.run_sync(knows, list(roots)):
        image = roots[inode]
        used[image.view_id] = _Used(image=image, view_id=image.view_id, patience=None)
    return list(used.values())
