"""Going on with the filesystem of a process that died: docs/design/supervision.md."""

import logging
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager

import trio

from imgvol.config import TransportChoice
from imgvol.content.records import Records
from imgvol.errors import LocalError
from imgvol.fs.kernel.keeping import PREFIX, ConnectionKeeper, Kept
from imgvol.images.views import Views
from imgvol.volumes.reopening import reopened

log = logging.getLogger(__name__)


def check_succession(names: Iterable[str], transport: TransportChoice) -> None:
    """Makes sure that this program could go on with what another one serves.

    Args:
        names: Of the descriptors that are kept.
        transport: What this program would use.

    Raises:
        LocalError: It would have to mount everything anew.
    """
    for name in names:
        if not name.startswith(PREFIX):
            continue
        if transport is not TransportChoice.KERNEL:
            raise LocalError("the filesystem is served by another transport", transport=transport)
        try:
            Kept.from_name(name)
        except ValueError as exc:
            raise LocalError(
                "what was negotiated with the kernel cannot be read", reason=exc
            ) from exc


@asynccontextmanager
async def taken_over(
    keeper: ConnectionKeeper, views: Views, records: Records, *, is_wanted: bool
) -> AsyncIterator[tuple[int, int] | None]:
    """Takes the filesystem over, if there is one and it can be done; otherwise ends it.

    Inside the block its views are open: mount what `keeper` has found, recover the volumes.

    Args:
        keeper: Knows what was kept.
        views: The table of open views.
        records: Of volumes and images.
        is_wanted: Whether the transport can go on with it.

    Yields:
        The filesystem's device; None: there is none, mount a new one.
    """
    if not is_wanted:
        await trio.to_thread.run_sync(keeper.refuse)
        yield None
        return
    began = time.monotonic()
    found = await trio.to_thread.run_sync(keeper.find)
    if found is None:
        yield None
        return
    async with AsyncExitStack() as stack:
        try:
            opened = reopened(views, records, found.connection.known)
            await stack.enter_async_context(opened)
        except (trio.TooSlowError, OSError) as exc:
            is_late = isinstance(exc, trio.TooSlowError)
            reason = "its views are not open in time" if is_late else exc
            log.error("the filesystem is not taken over: %s", reason)
            await trio.to_thread.run_sync(keeper.refuse)
            yield None
            return
        seconds = time.monotonic() - began
        log.info("took the filesystem over: its views were open in %.3f s", seconds)
        yield found.device
