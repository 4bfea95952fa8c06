"""Sessions of targets: where a daemon may not bind, each target of a volume is a mount of its own.

Theory of operation: docs/design/transport.md. fusermount3 mounts a filesystem whose root is what
the volume shows, and a connection of its own carries the requests for it. All of them are answered
from the same open views, on the same event loop.

Rule 1: a session lives as long as its connection: when its target is detached it goes on until
nobody has anything open there.
Rule 2: whatever happens to one session, the others go on.
"""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from imgvol.errors import ImgvolError
from imgvol.fs.kernel.mounting import TargetMounting
from imgvol.fs.kernel.transport import KernelTransport, Settings
from imgvol.fs.session import forget_when_told
from imgvol.fs.targets.operations import TargetOperations
from imgvol.images.open_view import OpenView
from imgvol.images.views import Views
from imgvol.tallies import RequestTallies
from imgvol.view.chain import NodeID
from imgvol.volumes.mounts import Bound
from imgvol.volumes.options import BindOptions
from imgvol.volumes.subpaths import SubPath

log = logging.getLogger(__name__)

# Targets that are being mounted or closed at once.
_THREADS: Final = 8
# Only who has CAP_SYS_ADMIN can have files passed through.
_SETTINGS: Final = Settings(passthrough=False)


@asynccontextmanager
async def open_target_sessions(
    views: Views, views_directory: Path, requests: RequestTallies
) -> AsyncIterator["TargetSessions"]:
    """Sessions can be opened inside the block, and are served there.

    Those that are left at its end are closed: whoever still uses one gets errors.

    Args:
        views: What there is to show.
        views_directory: Of the daemon, by which its mounts are known.
        requests: What has been asked, of all sessions together.
    """
    async with trio.open_nursery() as nursery:
        yield TargetSessions(views, views_directory, requests, nursery)
        nursery.cancel_scope.cancel()


@dataclass(eq=False, slots=True)
class TargetSessions:
    """A `volumes.target_sessions.TargetSessions`. Used on the event loop."""

    _views: Views
    _views_directory: Path
    _requests: RequestTallies
    _nursery: trio.Nursery
    _living: list[Bound] = field(default_factory=list)
    _limiter: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(_THREADS))

    @property
    def count(self) -> int:
        """See `volumes.target_sessions.TargetSessions.count`."""
        return len(self._living)

    def is_alive(self, bound: Bound) -> bool:
        """See `volumes.target_sessions.TargetSessions.is_alive`."""
        return bound in self._living

    async def open(
        self, view: OpenView, part: SubPath, target: bytes, options: BindOptions
    ) -> Bound:
        """See `volumes.target_sessions.TargetSessions.open`."""
        mounting = TargetMounting(target, self._views_directory, noexec=options.noexec)
        transport = KernelTransport(
            TargetOperations(self._views, view, self._requests),
            mounting,
            _SETTINGS,
            root=view.tree.inode(_find(view, part)),
        )
        bound: Bound = await self._nursery.start(self._run, view, mounting, transport)
        mounting.hand_over()
        return bound

    async def _run(
        self,
        view: OpenView,
        mounting: TargetMounting,
        transport: KernelTransport,
        *,
        task_status: trio.TaskStatus[Bound],
    ) -> None:
        self._views.share(view)
        try:
            await trio.to_thread.run_sync(transport.mount, limiter=self._limiter)
            assert mounting.bound is not None, "it is mounted"
            await self._serve(mounting.bound, transport, task_status)
        finally:
            # The kernel knows of nothing any more.
            self._views.release(view)

    async def _serve(
        self, bound: Bound, transport: KernelTransport, task_status: trio.TaskStatus[Bound]
    ) -> None:
        self._living.append(bound)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(forget_when_told, transport, self._views)
                task_status.started(bound)
                await transport.serve()
                nursery.cancel_scope.cancel()
            log.debug("the session at %s has ended", os.fsdecode(bound.target))
        except Exception:
            log.exception("the session at %s has failed: a defect", os.fsdecode(bound.target))
        finally:
            self._living.remove(bound)
            with trio.CancelScope(shield=True):
                await self._close(bound, transport)

    async def _close(self, bound: Bound, transport: KernelTransport) -> None:
        try:
            await trio.to_thread.run_sync(transport.close, limiter=self._limiter)
        except (ImgvolError, OSError) as exc:
            # The connection has ended all the same: a dead mount is left, which `ps` tells.
            log.error("cannot unmount %s: %s", os.fsdecode(bound.target), exc)


def _find(view: OpenView, part: SubPath) -> NodeID:
    """The node of a part that was resolved in this very view."""
    node = view.tree.root
    for name in filter(None, part.path.split(b"/")):
        found = view.tree.lookup(node, name)
        assert found is not None, "it was resolved"
        node = found
    return node
