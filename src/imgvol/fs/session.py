"""The FUSE session: mount, serve, unmount. pyfuse3 allows one in a process."""

import contextlib
import logging
import math
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import pyfuse3
import trio

from imgvol import limits
from imgvol.content.layer import Layer
from imgvol.errors import LocalError, MachineLacks
from imgvol.fs.operations import Operations
from imgvol.fs.readahead import KernelReadahead
from imgvol.images.views import Views
from imgvol.tallies import RequestTallies
from imgvol.view.chain import ChainView
from imgvol.view.merge import POSITION_SHIFT
from imgvol.volumes.mountinfo import MountInfo, is_ours, read_mountinfo, source_of
from imgvol.volumes.mounts import detach_dead_mounts

log = logging.getLogger(__name__)

FUSE_DEVICE: Final = Path("/dev/fuse")
# Seconds between looks at views that the kernel still refers to and nobody else does.
LINGERING_CHECK: Final = 5.0


def obstacle() -> MachineLacks | None:
    """Why this process cannot serve a filesystem; None when it can."""
    if not FUSE_DEVICE.exists():
        return MachineLacks(
            "this machine has no /dev/fuse",
            hint="Load the kernel module: modprobe fuse. In a container, pass --device /dev/fuse.",
        )
    if not os.access(FUSE_DEVICE, os.R_OK | os.W_OK):
        return MachineLacks(
            "/dev/fuse may not be opened by this user",
            hint="Run as root, or: chmod 666 /dev/fuse",
        )
    return None


@asynccontextmanager
async def open_session(
    views: Views,
    mount_point: Path,
    *,
    is_system: bool,
    on_lost: Callable[[], None],
    requests: RequestTallies | None = None,
) -> AsyncIterator[None]:
    """Serves the filesystem at a directory while the block runs.

    Args:
        on_lost: Called when the session ends on its own: somebody unmounted the filesystem, or
            aborted its connection. This process cannot make another.
        is_system: Let every user of the machine see what the kernel's own permission checks allow;
            needs root. Otherwise only the user who runs the daemon sees anything.
        requests: Where to count what is asked.

    Raises:
        MachineLacks: The kernel or fusermount3 refuses the mount.
    """
    operations = Operations(views, requests)
    await trio.to_thread.run_sync(_mount, operations, mount_point, is_system)
    withdrawn, names = trio.open_memory_channel[bytes](math.inf)
    views.on_withdrawn = withdrawn.send_nowait
    condemned, layers = trio.open_memory_channel[Layer](math.inf)
    views.on_condemned = condemned.send_nowait
    try:
        async with trio.open_nursery() as nursery:

            async def serve() -> None:
                await pyfuse3.main(min_tasks=1, max_tasks=limits.FUSE_TASKS)
                log.error("the filesystem's connection ended: somebody unmounted or aborted it")
                on_lost()

            nursery.start_soon(serve)
            nursery.start_soon(_forget_withdrawn, names)
            nursery.start_soon(_forget_condemned, views, layers)
            nursery.start_soon(_release_lingering, views)
            readahead = await trio.to_thread.run_sync(_find_readahead, mount_point)
            views.on_opened = partial(readahead.adjust, views)
            await readahead.adjust(views)
            nursery.start_soon(readahead.follow, views)
            yield
            nursery.cancel_scope.cancel()
    finally:
        views.on_withdrawn = lambda _name: None
        views.on_condemned = lambda _layer: None
        views.on_opened = _nothing_to_do
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(pyfuse3.close)
            # libfuse leaves the mount of a connection that was aborted.
            await trio.to_thread.run_sync(detach_dead_mounts, mount_point)


def _mount(operations: Operations, mount_point: Path, is_system: bool) -> None:
    # Without default_permissions the kernel would give one user what it has cached for another.
    options = set(pyfuse3.default_options)
    assert "default_permissions" in options
    options |= {f"fsname={os.fsdecode(source_of(mount_point))}", "subtype=imgvol", "ro"}
    options.add("noatime")
    if is_system:
        options.add("allow_other")
    try:
        pyfuse3.init(operations, os.fspath(mount_point), options)
    except RuntimeError as exc:
        raise MachineLacks(
            "the filesystem cannot be mounted here",
            hint="The daemon's log has the reason; imgvol doctor says what this machine lacks.",
            mount_point=mount_point,
        ) from exc
    mount = _own_mount(mount_point)
    if mount is None or not {"nosuid", "nodev"} <= mount.options:
        pyfuse3.close()
        raise LocalError("the filesystem was mounted without nosuid,nodev", mount_point=mount_point)


def _find_readahead(mount_point: Path) -> KernelReadahead:
    # The kernel sets its own value when the session's first exchange ends: wait for that, by a
    # question that only the session can answer.
    os.statvfs(mount_point)
    # The device number comes from mountinfo: a stat's would be right, too, but asks the session.
    # Without a mount, somebody has unmounted it in this moment: the session ends by itself.
    mount = _own_mount(mount_point)
    return KernelReadahead(f"{mount.major}:{mount.minor}" if mount else None)


async def _nothing_to_do() -> None:
    """For views that no kernel knows."""


def _own_mount(mount_point: Path) -> MountInfo | None:
    """Our filesystem's line. Not by its mount point: the kernel tells that without links.

    Binds of dead filesystems of ours are still there when it is mounted: their root is a view.
    """
    ours = (mount for mount in read_mountinfo() if is_ours(mount, mount_point))
    return next((mount for mount in ours if mount.root == b"/"), None)


async def _forget_withdrawn(names: trio.MemoryReceiveChannel[bytes]) -> None:
    """Makes the kernel forget each view that leaves the root, so that it can be closed."""
    async for name in names:
        await _forget_entry(pyfuse3.ROOT_INODE, name)


async def _forget_condemned(views: Views, layers: trio.MemoryReceiveChannel[Layer]) -> None:
    """Makes the kernel forget the content of layers that turned out to be bad."""
    async for layer in layers:
        work = partial(_forget_pages, layer, views.trees_of(layer))
        await trio.to_thread.run_sync(work, abandon_on_cancel=True)


def _forget_pages(layer: Layer, trees: Sequence[tuple[ChainView, int]]) -> None:
    for node in range(layer.index.node_count):
        if layer.index.is_directory(node) or layer.index.is_foreign_link(node):
            continue
        # Most are the same number in every tree.
        for inode in {tree.inode(position << POSITION_SHIFT | node) for tree, position in trees}:
            # ENOENT: the kernel does not know the file.
            with contextlib.suppress(OSError):
                pyfuse3.invalidate_inode(inode)


async def _release_lingering(views: Views) -> None:
    """Makes the kernel forget views that were still in use when they were withdrawn.

    Once the last file of such a view is closed nothing tells us so, and the kernel would keep its
    names, and with them the view, until memory gets short.
    """
    while True:
        await trio.sleep(LINGERING_CHECK)
        for view in views.lingering():
            try:
                root = view.tree.inode(view.tree.root)
                for name, _ in view.tree.list(view.tree.root):
                    await _forget_entry(root, name)
            except Exception:  # one view's trouble must not end the session of all
                log.exception("view %s is not let go: a defect", view.id)


async def _forget_entry(parent: int, name: bytes) -> None:
    """Drops a name from the kernel's cache; this may wait for requests below that name."""

    def invalidate() -> None:
        # ENOENT: the kernel does not know the name, or not any more.
        with contextlib.suppress(OSError):
            pyfuse3.invalidate_entry(parent, name)

    await trio.to_thread.run_sync(invalidate, abandon_on_cancel=True)
