"""Sources that are open, for the next range from there."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from imgvol import limits
from imgvol.content.records import Origin
from imgvol.registry.bounds import Bounds
from imgvol.registry.credentials import CredentialSource
from imgvol.registry.hosts import RegistryOptions
from imgvol.registry.registries import Registries
from imgvol.sources.base import ImageSource
from imgvol.sources.open import open_source
from imgvol.sources.parse import parse_image_argument

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _OpenSource:
    source: ImageSource
    users: int = 0
    idle_since: float = 0.0


class SourcePool:
    """Opens each source once and keeps it for a while. Used on the event loop.

    Args:
        nursery: Where open sources live.
        logins: Asked whenever a registry refuses what it was sent before, and so also for a login
            that has been replaced since a source was opened; before those in this user's files.
        registries: Where images of registries come from.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        logins: CredentialSource | None = None,
        registries: Registries | None = None,
    ) -> None:
        self._nursery = nursery
        self._logins = logins
        self._registries = registries
        self._open: dict[Origin, _OpenSource] = {}
        self._opening = trio.Lock()

    def __len__(self) -> int:
        return len(self._open)

    @asynccontextmanager
    async def use(self, origin: Origin) -> AsyncIterator[ImageSource]:
        """An open source, for the block.

        Raises:
            ImgvolError: It cannot be opened.
        """
        async with self._opening:
            opened = self._open.get(origin)
            if opened is None:
                opened = await self._nursery.start(self._keep_open, origin)
        opened.users += 1
        try:
            yield opened.source
        finally:
            opened.users -= 1
            opened.idle_since = trio.current_time()

    async def _keep_open(self, origin: Origin, task_status: trio.TaskStatus[_OpenSource]) -> None:
        options = RegistryOptions(
            plain_http=origin.plain_http,
            insecure=origin.insecure,
            ca_file=Path(origin.ca_file) if origin.ca_file else None,
        )
        # A reader waits: a line that stalls is given up in time for another try.
        bounds = Bounds(read_timeout=limits.FETCH_STALL)
        opened: _OpenSource | None = None
        try:
            async with open_source(
                parse_image_argument(origin.argument),
                options,
                credentials=self._logins,
                registries=self._registries,
                bounds=bounds,
            ) as source:
                opened = _OpenSource(source, idle_since=trio.current_time())
                self._open[origin] = opened
                try:
                    task_status.started(opened)
                    while (  # noqa: ASYNC110 - users come and go
                        opened.users or trio.current_time() < opened.idle_since + limits.FETCH_IDLE
                    ):
                        await trio.sleep(limits.FETCH_IDLE)
                finally:
                    del self._open[origin]
        except Exception:
            if opened is None:
                raise  # to whoever wants the source
            log.exception("a source could not be closed: %s", origin.argument)
