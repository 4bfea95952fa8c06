"""The image service: what users and the API ask of images. Local answers need no network."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

from imgvol.content.records import ImageRecord, LayerFault, LayerRecord
from imgvol.content.store import Store, StoreUsage
from imgvol.images.collection import CollectionReport, Collector, Fate
from imgvol.images.credentials import Logins
from imgvol.images.events import Event
from imgvol.images.exporting import Exporter
from imgvol.images.importing import Importer
from imgvol.images.leases import Leases
from imgvol.images.local import LocalImages, RemovalReport
from imgvol.images.open_view import OpenView
from imgvol.images.pull import PullProgress
from imgvol.images.pulls import (
    PullOptions,
    PullRequest,
    Pulls,
    PullSettings,
    PullStatistics,
    Stream,
)
from imgvol.images.readiness import Readiness
from imgvol.images.sharing import SharedPulls
from imgvol.images.usage import FilesystemUsage, UsageMeter
from imgvol.images.views import Views
from imgvol.registry.credentials import Credential
from imgvol.registry.registries import Registries
from imgvol.sources.parse import parse_image_argument

__all__ = ["ImageService", "PullOptions", "PullStatistics", "RemovalReport"]


class ImageService(LocalImages):
    """Pull, find, list, remove and open images. One per daemon; used on the event loop.

    Args:
        store: Where images are kept.
        views: What is open of them.
        leases: What keeps images alive besides their names.
        collector: Removes what nobody needs; None: one of its own.
        logins: Who requests have said to be; None: its own.
        shared: Where pulls are shared; None: each is its caller's own.
        registries: Where images of registries come from; None: from the registries themselves.
        settings: The habits of pulls.

    Attributes:
        handlers: What runtime handlers mean.
        importer: Imports archives into the same store.
        exporter: Writes archives of what is in it.
    """

    def __init__(
        self,
        store: Store,
        views: Views,
        *,
        leases: Leases,
        collector: Collector | None = None,
        logins: Logins | None = None,
        shared: SharedPulls | None = None,
        registries: Registries | None = None,
        settings: PullSettings | None = None,
    ) -> None:
        super().__init__(store, leases=leases, collector=collector or Collector(store))
        self._views = views
        # To be run in the background.
        self.meter = UsageMeter(store)
        settings = settings or PullSettings()
        self.handlers = settings.handlers
        self._pulls = Pulls(
            store,
            catalog=self.catalog,
            leases=leases,
            collector=self._collector,
            logins=logins or Logins(),
            registries=registries,
            shared=shared,
            settings=settings,
        )
        self.importer = Importer(store, self._pulls.puller, self._collector)
        self.exporter = Exporter(store, self)

    def publish_to(self, publish: Callable[[Event], None]) -> None:
        """Whom to tell what happens to images; it must not block."""
        self.catalog.publish = self._pulls.publish = publish

    async def tell_progress(self) -> None:
        """Tells now and then how far pulls are, for ever."""
        await self._pulls.tell_progress()

    @property
    def pulls_under_way(self) -> int:
        """How many pulls have not ended."""
        return self._pulls.under_way

    def statistics(self) -> PullStatistics:
        """What pulls have done and do; from memory."""
        return self._pulls.statistics()

    def call_to_adopt(self, adopt: Callable[[LayerRecord], Awaitable[LayerFault | None]]) -> None:
        """Whom to tell of layers that were lazy and have been pulled as a whole; see `Puller`."""
        self._pulls.puller.adopt = adopt

    async def pull(
        self,
        image: str,
        *,
        platform: str | None = None,
        options: PullOptions,
        progress: PullProgress,
        readiness: Readiness = Readiness.STORED,
        credentials: Credential | None = None,
        handler: str = "",
    ) -> ImageRecord:
        """Makes an image ready in the store, fetching what is missing.

        Callers that ask for the same at the same time wait for one pull; see `sharing`.

        Args:
            image: A reference, or a local source such as `oci:/directory:tag`.
            platform: For which platform; None: the handler's, or else this machine's.
            readiness: How much of it has to be here; a handler may want more, or less.
            credentials: The login that came with the request, instead of the one in `options`;
                with neither, one that is configured.
            handler: The runtime handler of the sandbox that it is for; empty: the default.

        Raises:
            InvalidReference: `image` is malformed.
            InvalidArgument: There is no such handler.
            NotFound: The source has no such image.
            NoMatchingPlatform: The image has no variant for the platform.
            ContentError: The image is damaged or hostile; nothing of it is kept.
            RemoteError: The registry failed; complete layers are kept for the next try.
            StoreFull: No room.
        """
        runtime = self.handlers.get(handler)
        request = PullRequest(
            argument=parse_image_argument(image),
            platform=platform or runtime.platform,
            options=options if credentials is None else replace(options, credential=credentials),
            readiness=runtime.readiness or readiness,
        )
        return await self._pulls.pull(request, progress)

    async def pull_streaming(
        self,
        image: str,
        *,
        platform: str | None,
        options: PullOptions,
        progress: PullProgress,
        stream: Stream,
    ) -> ImageRecord:
        """As `pull`, and the image is shown while it comes; its lazy layers stay lazy."""
        request = PullRequest(
            argument=parse_image_argument(image),
            platform=platform,
            options=options,
            readiness=Readiness.LAZY,
        )
        return await self._pulls.pull_streaming(request, progress, stream)

    async def collect(self) -> CollectionReport:
        """Removes what nobody needs."""
        return await self._collector.collect()

    async def explain_collection(self) -> tuple[Fate, ...]:
        """What collecting would keep, and why, and what it would remove."""
        return await self._collector.explain()

    def open_view(self, image: ImageRecord) -> AbstractAsyncContextManager[OpenView]:
        """Holds an image's merged tree open inside the block."""
        return self._views.hold(image)

    def filesystem_usage(self) -> Sequence[FilesystemUsage]:
        """What the store takes of its filesystem, when it was measured last; from memory."""
        return self.meter.filesystem_usage()

    async def usage(self) -> StoreUsage:
        """Sizes of what is stored."""
        return await self._store.usage()
