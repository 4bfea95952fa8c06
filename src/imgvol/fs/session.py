"""The session: mount, serve, keep the kernel's memory true, unmount; over whichever transport."""

import contextlib
import errno
import logging
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import trio

from imgvol import limits
from imgvol.content.layer import Layer
from imgvol.errors import MachineLacks
from imgvol.fs.readahead import KernelReadahead
from imgvol.fs.replies import ROOT_INODE
from imgvol.fs.transport import Transport, own_mount
from imgvol.images.open_view import OpenView
from imgvol.images.views import Views
from imgvol.view.chain import ChainView
from imgvol.view.merge import POSITION_SHIFT
from imgvol.view.settling import SettlingView
from imgvol.volumes.unmounting import detach_dead_mounts

log = logging.getLogger(__name__)

FUSE_DEVICE: Final = Path("/dev/fuse")
# Seconds between looks at views that the kernel still refers to and nobody else does.
LINGERING_CHECK: Final = 5.0

T = TypeVar("T")


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
    views: Views, mount_point: Path, transport: Transport, *, on_lost: Callable[[], None]
) -> AsyncIterator[None]:
    """Serves the filesystem at a directory while the block runs.

    Args:
        views: What it shows.
        mount_point: Where.
        transport: How; used for this session only.
        on_lost: Called when the session ends on its own: somebody unmounted the filesystem, or
            aborted its connection.

    Raises:
        MachineLacks: The kernel or fusermount3 refuses the mount.
    """
    await trio.to_thread.run_sync(transport.mount)
    withdrawn, names = trio.open_memory_channel[bytes](math.inf)
    views.on_withdrawn = withdrawn.send_nowait
    views.on_changed = transport.root_changed
    try:
        async with trio.open_nursery() as nursery:

            async def serve() -> None:
                await transport.serve()
                on_lost()

            nursery.start_soon(serve)
            nursery.start_soon(_forget_withdrawn, transport, views, names)
            await nursery.start(forget_when_told, transport, views)
            nursery.start_soon(_release_lingering, transport, views)
            readahead = await trio.to_thread.run_sync(_find_readahead, mount_point)
            views.on_opened = partial(readahead.adjust, views)
            await readahead.adjust(views)
            nursery.start_soon(readahead.follow, views)
            yield
            nursery.cancel_scope.cancel()
    finally:
        views.on_changed = lambda: None
        views.on_withdrawn = lambda _name: None
        views.on_opened = _nothing_to_do
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(transport.close)
            # The mount of a connection that was aborted may be left.
            await trio.to_thread.run_sync(detach_dead_mounts, mount_point)


def _find_readahead(mount_point: Path) -> KernelReadahead:
    # The kernel sets its own value when the session's first exchange ends: wait for that, by a
    # question that only the session can answer.
    os.statvfs(mount_point)
    # The device number comes from mountinfo: a stat's would be right, too, but asks the session.
    # Without a mount, somebody has unmounted it in this moment: the session ends by itself.
    mount = own_mount(mount_point)
    return KernelReadahead(f"{mount.major}:{mount.minor}" if mount else None)


async def _nothing_to_do() -> None:
    """For views that no kernel knows."""


async def _forget_withdrawn(
    transport: Transport, views: Views, names: trio.MemoryReceiveChannel[bytes]
) -> None:
    """Makes the kernel forget each view that leaves the root, so that it can be closed."""
    async for name in names:
        # One that is shown again meanwhile is being looked up, and will be withdrawn once more.
        if views.by_name(name) is None:
            await _forget_entry(transport, ROOT_INODE, name)


async def forget_when_told(
    transport: Transport, views: Views, *, task_status: trio.TaskStatus[None]
) -> None:
    """Makes the kernel forget what it should ask for again, until cancelled.

    This is the content of layers that turn out to be bad, whatever it was shown of views whose
    layers did not come as promised, and the content of views that are recorded from now on.
    """
    condemned, layers = trio.open_memory_channel[Layer](math.inf)
    failed, failures = trio.open_memory_channel[OpenView](math.inf)

    def condemn(layer: Layer) -> None:
        transport.recheck()
        condemned.send_nowait(layer)

    recorded = partial(_forget_pages_of, transport)
    views.on_condemned.append(condemn)
    views.on_failed.append(failed.send_nowait)
    views.on_recorded.append(recorded)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_each, layers, partial(_forget_condemned, transport, views))
            nursery.start_soon(_each, failures, partial(_forget_failed, transport))
            task_status.started()
    finally:
        views.on_condemned.remove(condemn)
        views.on_failed.remove(failed.send_nowait)
        views.on_recorded.remove(recorded)


async def _each(
    things: trio.MemoryReceiveChannel[T], deal_with: Callable[[T], Awaitable[None]]
) -> None:
    """Deals with what comes over a channel, one after the other, until cancelled.

    While it waits for the next it has no name for the last one, which would keep its files open.
    """
    while True:
        await deal_with(await things.receive())


async def _forget_condemned(transport: Transport, views: Views, layer: Layer) -> None:
    work = partial(_forget_pages, transport, layer, views.trees_of(layer))
    await trio.to_thread.run_sync(work, abandon_on_cancel=True)


async def _forget_pages_of(transport: Transport, view: OpenView) -> None:
    """Makes the kernel forget the content of a view: what it has is read unseen.

    It waits for pages that are just being read, but not for ever: those are seen anyhow.
    """

    def forget() -> None:
        for position, layer in enumerate(view.layers):
            _forget_pages(transport, layer, [(view.tree, position)])

    with trio.move_on_after(limits.TRACE_FORGETTING):
        await trio.to_thread.run_sync(forget, abandon_on_cancel=True)


def _forget_pages(
    transport: Transport, layer: Layer, trees: Sequence[tuple[ChainView, int]]
) -> None:
    for node in range(layer.index.node_count):
        if layer.index.is_directory(node) or layer.index.is_foreign_link(node):
            continue
        # Most are the same number in every tree.
        for inode in {tree.inode(position << POSITION_SHIFT | node) for tree, position in trees}:
            # ENOENT: the kernel does not know the file.
            with contextlib.suppress(OSError):
                transport.invalidate_inode(inode)


async def _forget_failed(transport: Transport, view: OpenView) -> None:
    """Makes the kernel forget what it was shown of a view whose layers did not come as promised."""
    assert view.settling is not None, "others do not fail as a whole"
    work = partial(_forget_given, transport, view.settling.tree)
    try:
        await _forget_names(transport, view.tree)
        await trio.to_thread.run_sync(work, abandon_on_cancel=True)
    except Exception:  # one view's trouble must not end the session of all
        log.exception("view %s is not forgotten: a defect", view.id)


def _forget_given(transport: Transport, tree: SettlingView) -> None:
    for node in tree.given():
        with contextlib.suppress(OSError):  # ENOENT: the kernel does not know the file
            transport.invalidate_inode(tree.inode(node))


async def _release_lingering(transport: Transport, views: Views) -> None:
    """Makes the kernel forget views that were still in use when they were withdrawn.

    Once the last file of such a view is closed nothing tells us so, and the kernel would keep its
    names, and with them the view, until memory gets short.
    """
    absent: dict[OpenView, int] = {}
    while True:
        await trio.sleep(LINGERING_CHECK)
        absent = await _look_at_lingering(transport, views, absent)


async def _look_at_lingering(
    transport: Transport, views: Views, were_absent: dict[OpenView, int]
) -> dict[OpenView, int]:
    """One look; takes and gives what `_look_for` is to know of the one before."""
    lingering = views.lingering()
    absent = {view: given for view, given in were_absent.items() if view in lingering}
    for view in lingering:
        try:
            await _forget_names(transport, view.tree)
            if view.is_inherited:
                await _look_for(transport, views, view, absent)
        except Exception:  # one view's trouble must not end the session of all
            log.exception("view %s is not let go: a defect", view.id)
    return absent


async def _look_for(
    transport: Transport, views: Views, view: OpenView, absent: dict[OpenView, int]
) -> None:
    """Lets go of a view of which nobody knows how often the kernel refers to it, once it does not.

    Whoever uses anything of a view keeps its root in the kernel's memory. It must be absent in two
    looks in a row, with nothing given in between: a reply may be on its way to whoever asked, and
    what the kernel has forgotten on its way to us.

    Args:
        transport: Whom to ask by.
        views: The table of open views.
        view: Nobody on our side holds it.
        absent: Of views whose root was absent in the last look, references given until then.
    """
    await _forget_entry(transport, ROOT_INODE, view.name)
    root, given = view.tree.inode(view.tree.root), view.references_given
    if await trio.to_thread.run_sync(_is_known, transport, root, abandon_on_cancel=True):
        absent.pop(view, None)
    elif absent.get(view) == given == view.references_given and view.holders == 0:
        views.let_go(view)
    else:
        absent[view] = given


async def _forget_names(transport: Transport, tree: ChainView) -> None:
    """Drops every name of a view that nobody uses.

    What is below a name goes along, but for what is in use at that moment, and that is not found by
    the same way again: so each directory that the kernel still has is asked for its own names. One
    that it does not have has nothing below it that it has.
    """
    directories = [tree.root]
    while directories:
        directory = directories.pop()
        listing = list(tree.known_names(directory))
        names = [name for name, _ in listing]
        work = partial(_forget_names_of, transport, tree.inode(directory), names)
        if await trio.to_thread.run_sync(work, abandon_on_cancel=True):
            directories += [node for _, node in listing if tree.is_directory(node)]


def _forget_names_of(transport: Transport, directory: int, names: Sequence[bytes]) -> bool:
    """Drops the names of one directory; whether the kernel knows that at all."""
    is_known = _is_known(transport, directory)
    if is_known:
        for name in names:
            with contextlib.suppress(OSError):  # ENOENT: the kernel does not know the name
                transport.invalidate_entry(directory, name)
    return is_known


def _is_known(transport: Transport, inode: int) -> bool:
    """Whether the kernel has an inode in its memory; if it cannot be asked, it may have."""
    try:
        transport.invalidate_inode(inode, attributes_only=True)
    except OSError as exc:
        return exc.errno != errno.ENOENT
    return True


async def _forget_entry(transport: Transport, parent: int, name: bytes) -> None:
    """Drops a name from the kernel's cache; this may wait for requests below that name."""

    def invalidate() -> None:
        # ENOENT: the kernel does not know the name, or not any more.
        with contextlib.suppress(OSError):
            transport.invalidate_entry(parent, name)

    await trio.to_thread.run_sync(invalidate, abandon_on_cancel=True)
