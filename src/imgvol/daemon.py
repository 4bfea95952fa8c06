"""The daemon: the only place where everything meets.

Each resource is entered on one stack, its undoing beside it; leaving goes backwards: no new
requests, volumes unmounted, filesystem unmounted, database closed, locks released. Start-up
contacts no registry.
"""

import contextlib
import json
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Final

import trio

from imgvol import __version__, limits
from imgvol.api.cri.tallies import CallCounts
from imgvol.api.docker import make_docker_dispatch, write_spec
from imgvol.api.problems import as_imgvol_error, error_document
from imgvol.api.routes import make_dispatch
from imgvol.api.server import ApiServer
from imgvol.api.services import CriService, DaemonInfo, Server, Services, Statistics
from imgvol.config import Config, pulls_environment
from imgvol.content.check import Finding
from imgvol.content.durable import translate_os_errors
from imgvol.content.ownership import own_directory
from imgvol.content.store import Store, open_store
from imgvol.errors import ImgvolError, InternalError, LocalError, MachineLacks
from imgvol.images import inspection
from imgvol.images.collection import Collector
from imgvol.images.credentials import Logins
from imgvol.images.fetch.engine import FetchEngine, open_fetch_engine
from imgvol.images.handlers import RuntimeHandler, RuntimeHandlers
from imgvol.images.lazy import LazyLayers
from imgvol.images.leases import Leases
from imgvol.images.preload.archives import ArchiveImport
from imgvol.images.preload.loading import PreloadSettings, forget_pins
from imgvol.images.preload.preloader import Preloader
from imgvol.images.preload.retag import parse_registries
from imgvol.images.pull import LAYERS_AT_ONCE
from imgvol.images.pulls import PullSettings
from imgvol.images.scrubbing import Scrubber
from imgvol.images.service import ImageService
from imgvol.images.sharing import open_shared_pulls
from imgvol.images.views import Views
from imgvol.logs import logging_to
from imgvol.tallies import RequestTallies
from imgvol.volumes import recovery
from imgvol.volumes.check import check_mounts
from imgvol.volumes.homes import Homes
from imgvol.volumes.manager import VolumeManager
from imgvol.volumes.named import NamedVolumes
from imgvol.volumes.sandboxes import Sandboxes

log = logging.getLogger(__name__)

IDLE_CHECK: Final = 1.0


def run(
    config: Config,
    *,
    ready_fd: int | None = None,
    log_level: str = "info",
    log_file: Path | None = None,
) -> int:
    """Runs a daemon until it is told to stop; blocks.

    Args:
        config: Its directories and habits.
        ready_fd: Written to once: `ready`, or the reason for not starting as one JSON line.
        log_level: As `logging` knows it.
        log_file: Where to log; None: on standard error.

    Returns:
        The process's exit code.
    """
    os.umask(0o077)
    # Nothing but pulls, and the credential helpers that they run, looks there.
    environment = pulls_environment(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    _raise_file_limit()
    daemon = _Daemon(config, ready_fd)
    try:
        with logging_to(log_file, log_level):
            return _serve(daemon)
    except LocalError as exc:  # there is no log
        daemon.report_failure(exc)
        return 1


def _serve(daemon: "_Daemon") -> int:
    try:
        trio.run(daemon.serve)
    except Exception as exc:
        error = as_imgvol_error(exc)
        level = logging.ERROR if isinstance(error, InternalError) else logging.DEBUG
        log.log(level, "the daemon failed", exc_info=True)
        daemon.report_failure(error)
        return 1
    return daemon.exit_code


class _Daemon:
    def __init__(self, config: Config, ready_fd: int | None) -> None:
        self._config = config
        self._ready_fd = ready_fd
        self._stopping = trio.Event()
        self._started_at = time.time()
        # A daemon that is told to stop forgets its volumes; one that is restarted keeps them.
        self._forget_volumes = False
        self._requests = RequestTallies()
        self._has_lost_filesystem = False
        self.exit_code = 0

    async def serve(self) -> None:
        """Starts everything in order, waits, and takes it down in the opposite order."""
        config = self._config
        async with AsyncExitStack() as stack:
            store = await stack.enter_async_context(open_store(config.root))
            lock = await trio.to_thread.run_sync(own_directory, config.run)
            stack.callback(os.close, lock)
            await recovery.detach_dead(store.records, config.views)
            views = Views(store)
            leases = Leases(store.records)
            await leases.recover()
            # As the kernel tells mount points.
            homes = Homes(await trio.to_thread.run_sync(config.volumes.resolve))
            collector = Collector(store)
            logins = Logins()
            images = ImageService(
                store,
                views,
                leases=leases,
                collector=collector,
                logins=logins,
                shared=await stack.enter_async_context(open_shared_pulls()),
                settings=_pull_settings(config),
            )
            await images.pin_configured(config.pinned_images)
            engine, lazy_layers = await self._open_lazy_layers(stack, store, views, images, logins)
            obstacle = await self._open_filesystem(stack, views)
            volumes = VolumeManager(
                images=images,
                views=views,
                records=store.records,
                views_directory=config.views,
                homes=homes,
                obstacle=obstacle,
                may_bind=config.is_system,
            )
            stack.push_async_callback(self._detach_volumes, volumes)
            await recovery.recover(
                volumes, records=store.records, homes=homes, views_directory=config.views
            )
            sandboxes = Sandboxes(
                images=images,
                leases=leases,
                volumes=volumes,
                homes=homes,
                views_directory=config.views,
            )
            preloader = _preloader(config, images)
            scrubber = Scrubber(store, views, images)
            services = Services(
                images=images,
                inspection=inspection,
                volumes=volumes,
                sandboxes=sandboxes,
                check=partial(self._check, store, volumes),
                scrub=scrubber.scrub,
                info=lambda: self._info(can_mount=obstacle is None),
                statistics=lambda: Statistics(
                    requests=self._requests.snapshot(),
                    views=views.statistics(),
                    fetching=engine.statistics(),
                    lazy=lazy_layers.statistics(),
                    pulls=images.statistics(),
                    disk=store.disk_queue,
                    volumes=volumes.count,
                    is_serving=obstacle is None and not self._has_lost_filesystem,
                    cri=CallCounts() if cri is None else cri.statistics(),
                ),
                preload=lambda: None if preloader is None else preloader.status(),
                stop=self._stop,
            )
            cri = None
            if config.cri is not None:
                cri = await trio.to_thread.run_sync(_cri_server, config.cri, images)
            server = ApiServer(config.socket, make_dispatch(services))
            stack.push_async_callback(self._note_leases, leases)
            nursery = await stack.enter_async_context(trio.open_nursery())
            stack.callback(nursery.cancel_scope.cancel)
            nursery.start_soon(leases.run, sandboxes.end_lease)
            await nursery.start(server.run)
            servers: list[Server] = [server]
            if cri is not None:
                await nursery.start(cri.run)
                servers.append(cri)
            if config.docker_spec is not None:
                plugin = await self._docker_plugin(config.docker_spec, volumes, store)
                await nursery.start(plugin.run)
                servers.append(plugin)
            nursery.start_soon(collector.run)
            nursery.start_soon(images.meter.run)
            nursery.start_soon(store.save_copies)
            # Whoever is told that we are ready may stop us in the next moment.
            signals = stack.enter_context(trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT))
            if cri is not None:
                cri.open()
            if preloader is None and config.idle_exit is None:
                await forget_pins(images)
            elif preloader is not None:
                nursery.start_soon(preloader.run)
                if config.preload.waits:
                    await self._wait_for_preload(preloader, signals)
            self._report_ready()
            log.info("ready: version %s, root %s, run %s", __version__, config.root, config.run)
            await self._wait_for_the_end(signals, servers, images, volumes, preloader)
            log.info("stopping")

    async def _wait_for_preload(self, preloader: Preloader, signals: AsyncIterator[int]) -> None:
        """Until all has been loaded that was there, or somebody tells us to stop."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stop_on_signal, signals)
            nursery.start_soon(_wait_and_cancel, self._stopping, nursery.cancel_scope)
            nursery.start_soon(_ask_for_time)
            await preloader.ready.wait()
            nursery.cancel_scope.cancel()

    async def _open_lazy_layers(
        self,
        stack: AsyncExitStack,
        store: Store,
        views: Views,
        images: ImageService,
        logins: Logins,
    ) -> tuple[FetchEngine, LazyLayers]:
        engine = await stack.enter_async_context(
            open_fetch_engine(self._config.background_rate, logins=logins.for_reads())
        )
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        lazy_layers = LazyLayers(store, engine, nursery, self._config.trust)
        views.on_lazy_layer = lazy_layers.attach
        views.on_lazy_layer_closed = lazy_layers.detach
        views.closing_of = lazy_layers.closing_of
        lazy_layers.on_condemned = views.condemn
        images.call_to_adopt(lazy_layers.adopt)
        return engine, lazy_layers

    async def _open_filesystem(self, stack: AsyncExitStack, views: Views) -> MachineLacks | None:
        """Mounts the filesystem; returns what is in the way, if something is."""
        try:
            from imgvol.fs import session
        except ImportError:
            return MachineLacks(
                "pyfuse3 is not installed",
                hint="With libfuse3-dev and gcc present: pip install 'imgvol[fuse]'",
            )
        config = self._config
        obstacle = session.obstacle()
        if obstacle is None:
            try:
                await trio.to_thread.run_sync(_ensure_directory, config.views)
                await stack.enter_async_context(
                    session.open_session(
                        views,
                        config.views,
                        is_system=config.is_system,
                        on_lost=self._filesystem_lost,
                        requests=self._requests,
                    )
                )
            except MachineLacks as exc:
                obstacle = exc
        if obstacle is not None:
            log.warning("images can be pulled and looked into, but not mounted: %s", obstacle)
        return obstacle

    async def _docker_plugin(self, spec: Path, volumes: VolumeManager, store: Store) -> ApiServer:
        config = self._config
        named = NamedVolumes(
            volumes=volumes,
            records=store.records,
            directory=config.docker_volumes if config.is_system else None,
        )
        await named.recover()
        with translate_os_errors("write the plugin's spec file"):
            await trio.to_thread.run_sync(write_spec, str(spec), str(config.docker_socket))
        return ApiServer(config.docker_socket, make_docker_dispatch(named))

    async def _wait_for_the_end(
        self,
        signals: AsyncIterator[int],
        servers: Sequence[Server],
        images: ImageService,
        volumes: VolumeManager,
        preloader: Preloader | None,
    ) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stop_on_signal, signals)
            if self._config.idle_exit is not None:
                nursery.start_soon(
                    self._stop_when_idle,
                    self._config.idle_exit,
                    servers,
                    images,
                    volumes,
                    preloader,
                )
            await self._stopping.wait()
            nursery.cancel_scope.cancel()

    async def _stop_on_signal(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            log.info("received %s", signal.Signals(number).name)
            self._stopping.set()

    async def _stop_when_idle(
        self,
        limit: float,
        servers: Sequence[Server],
        images: ImageService,
        volumes: VolumeManager,
        preloader: Preloader | None,
    ) -> None:
        while True:
            await trio.sleep(min(IDLE_CHECK, limit))
            is_used = volumes.count > 0 or images.pulls_under_way > 0
            is_used = is_used or (preloader is not None and preloader.is_busy)
            if not is_used and min(server.idle_seconds() for server in servers) >= limit:
                log.info("nobody has asked for anything in %g s", limit)
                self._stopping.set()
                return

    async def _detach_volumes(self, volumes: VolumeManager) -> None:
        with trio.CancelScope(shield=True):
            await volumes.detach_all(forget=self._forget_volumes)

    async def _check(self, store: Store, volumes: VolumeManager) -> list[Finding]:
        targets = [volume.target for volume in await volumes.list() if volume.target is not None]
        mounts = partial(check_mounts, self._config.views, targets, is_served=True)
        return [*await store.check(), *await trio.to_thread.run_sync(mounts)]

    async def _note_leases(self, leases: Leases) -> None:
        with trio.CancelScope(shield=True):
            try:
                await leases.note()
            except ImgvolError as exc:
                log.error("what is left of the leases cannot be written down: %s", exc)

    def _stop(self) -> None:
        self._forget_volumes = True
        self._stopping.set()

    def _filesystem_lost(self) -> None:
        """The connection to the kernel is gone; a new process can make another, this one cannot."""
        self.exit_code = 1
        self._has_lost_filesystem = True
        self._stopping.set()

    def _info(self, *, can_mount: bool) -> DaemonInfo:
        config = self._config
        return DaemonInfo(
            version=__version__,
            pid=os.getpid(),
            uid=os.getuid(),
            root=str(config.root),
            run=str(config.run),
            views=str(config.views),
            is_system=config.is_system,
            can_mount=can_mount,
            started_at=self._started_at,
        )

    def _report_ready(self) -> None:
        self._tell_starter(b"ready\n")
        _notify_systemd("READY=1")

    def report_failure(self, error: ImgvolError) -> None:
        """Tells whoever started us why there is no daemon."""
        log.error("%s", error)
        if error.hint:
            log.error("%s", error.hint)
        self._tell_starter(json.dumps(error_document(error)).encode() + b"\n")

    def _tell_starter(self, line: bytes) -> None:
        if self._ready_fd is not None:
            with contextlib.suppress(OSError):  # the starter may have gone: then nobody waits
                os.write(self._ready_fd, line)
            os.close(self._ready_fd)
            self._ready_fd = None


def _cri_server(socket: Path, images: ImageService) -> CriService:
    """The Container Runtime Interface. gRPC takes 0.2 s and 20 MiB: only who serves it loads it."""
    from imgvol.api.cri.handlers import Handlers
    from imgvol.api.cri.server import CriServer

    return CriServer(socket, Handlers(images).methods())


def _pull_settings(config: Config) -> PullSettings:
    """The habits of pulls; raises InvalidArgument when a runtime handler is malformed."""
    handlers = map(RuntimeHandler.parse, config.runtime_handlers)
    return PullSettings(
        trust=config.trust,
        layers_at_once=config.max_downloads or LAYERS_AT_ONCE,
        progress_timeout=config.pull_progress_timeout,
        handlers=RuntimeHandlers(handlers),
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


async def _ask_for_time() -> None:
    """Keeps a service manager from taking a long start for a failed one."""
    while True:
        longer = int(limits.START_EXTENSION * 1e6)
        _notify_systemd(f"STATUS=loading images\nEXTEND_TIMEOUT_USEC={longer}")
        await trio.sleep(limits.START_EXTENSION / 3)


async def _wait_and_cancel(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _ensure_directory(path: Path) -> None:
    path.mkdir(mode=0o700, exist_ok=True)


def _raise_file_limit() -> None:
    """Each open layer takes a descriptor, each large file that is read another."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _notify_systemd(state: str) -> None:
    """sd_notify(3): one datagram to the socket that systemd names."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),  # a manager that does not listen is not our failure
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify,
    ):
        notify.sendto(state.encode(), address)
