"""What serves images, put together: from the store up to the preload directory."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from imgvol.config import Config
from imgvol.content.ownership import own_directory
from imgvol.content.store import Store, open_store
from imgvol.errors import NotFound
from imgvol.images.collection import Collector
from imgvol.images.credentials import Logins
from imgvol.images.events import Events
from imgvol.images.fetch.copies import LocalCopies
from imgvol.images.fetch.engine import FetchEngine, open_fetch_engine
from imgvol.images.lazy import LazyLayers, open_lazy_layers
from imgvol.images.leases import Leases
from imgvol.images.preload.archives import ArchiveImport
from imgvol.images.preload.loading import PreloadSettings, forget_pins
from imgvol.images.preload.preloader import Preloader
from imgvol.images.preload.retag import parse_registries
from imgvol.images.pulls import PullSettings
from imgvol.images.service import ImageService
from imgvol.images.sharing import open_shared_pulls
from imgvol.images.space import SpaceKeeper
from imgvol.images.streams import ImageStreams, open_image_streams
from imgvol.images.traces.service import Traces, open_traces
from imgvol.images.views import Views
from imgvol.lifecycle import Lifecycle
from imgvol.publish.indexes import Indexes
from imgvol.registry.registries import Registries
from imgvol.view.trace import Trace, parse_trace


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageComponents:
    """What serves images, constructed and recovered."""

    store: Store
    views: Views
    leases: Leases
    collector: Collector
    service: ImageService
    engine: FetchEngine
    lazy_layers: LazyLayers
    traces: Traces
    registries: Registries
    events: Events
    preloader: Preloader | None
    indexes: Indexes
    space: SpaceKeeper
    streams: ImageStreams

    async def find_trace(self, name: str) -> Trace | None:
        """The trace that a mount of an image follows; None: there is none, or no such image."""
        try:
            record = await self.traces.find(await self.service.find(name))
        except NotFound:
            return None
        return await trio.to_thread.run_sync(parse_trace, await self.traces.document(record))


async def open_images(config: Config, lifecycle: Lifecycle) -> ImageComponents:
    """Takes the directories, and makes what serves images of them."""
    store = await lifecycle.open("store", open_store(config.root))
    await lifecycle.open("run directory", _own(config.run))
    # Whoever wants to know what happens is there before anything does.
    events = Events()
    views = Views(store)
    leases = Leases(store.records)
    collector = Collector(store)
    logins = Logins()
    registries = Registries(config.registries)
    with lifecycle.stage("settings of pulls"):
        settings = PullSettings.of(config)
    service = ImageService(
        store,
        views,
        leases=leases,
        collector=collector,
        logins=logins,
        registries=registries,
        shared=await lifecycle.open("pulls", open_shared_pulls()),
        settings=settings,
    )
    service.publish_to(events.publish)
    fetching = open_fetch_engine(
        config.background_rate, logins=logins.for_reads(), registries=registries
    )
    engine = await lifecycle.open("fetching", fetching)
    engine.copies = LocalCopies(store, views.layers.by_slot)
    lazy_layers = await lifecycle.open(
        "lazy layers", open_lazy_layers(store, engine, views, service, config.trust)
    )
    streams = await lifecycle.open("streams", open_image_streams(service, views))
    traces = await lifecycle.open(
        "traces", open_traces(store, views, engine, config.traces, lazy_layers.fetcher)
    )
    space = SpaceKeeper(store, service.meter, collector, lazy_layers, publish=events.publish)
    engine.wait_room = space.wait_room
    with lifecycle.stage("measuring"):
        await space.begin(config.space)
    with lifecycle.stage("recovery of leases"):
        await leases.recover()
    with lifecycle.stage("pins"):
        await service.pin_configured(config.pinned_images)
        preloader = _preloader(config, service)
        if preloader is None and config.idle_exit is None:
            await forget_pins(service)
    return ImageComponents(
        store=store,
        views=views,
        leases=leases,
        collector=collector,
        service=service,
        engine=engine,
        lazy_layers=lazy_layers,
        traces=traces,
        registries=registries,
        events=events,
        preloader=preloader,
        indexes=Indexes(store, logins=logins, registries=registries, collect=collector.collect),
        space=space,
        streams=streams,
    )


def _preloader(config: Config, images: ImageService) -> Preloader | None:
    """The preload directory, if there is one; raises InvalidArgument for what is no registry."""
    preload = config.preload
    if preload.directory is None:
        return None
    settings = PreloadSettings(
        directory=str(preload.directory),
        registries=parse_registries(preload.registries),
        keeps_pins=preload.keeps_pins,
    )
    return Preloader(settings, images, ArchiveImport(images.importer, links=preload.links))


@asynccontextmanager
async def _own(directory: Path) -> AsyncIterator[None]:
    lock = await trio.to_thread.run_sync(own_directory, directory)
    try:
        yield
    finally:
        os.close(lock)
