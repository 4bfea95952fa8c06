"""The daemon: the only place where everything meets.

It is constructed, recovers what the last one left, opens its sockets, begins its work in the
background, and only then says that it is ready. Each component has a name, and is stopped in the
opposite order: no new requests, volumes unmounted, filesystem unmounted, database closed, locks
released. How components start, fail and stop is the business of `lifecycle`. Start-up contacts no
registry.
"""

import faulthandler
import gc
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from imgvol import __version__, limits
from imgvol.api.cri.tallies import CallCounts
from imgvol.api.docker import make_docker_dispatch, write_spec
from imgvol.api.keeping import Keeper
from imgvol.api.problems import as_imgvol_error
from imgvol.api.routes import make_dispatch
from imgvol.api.server import ApiServer
from imgvol.api.services import CriService, DaemonInfo, Server, Services, Statistics
from imgvol.config import Config, TransportChoice, pulls_environment
from imgvol.content.check import Finding
from imgvol.content.durable import translate_os_errors
from imgvol.content.store import Store, check_version
from imgvol.errors import ImgvolError, InternalError, LocalError, MachineLacks
from imgvol.fs import session
from imgvol.fs.choice import Choice, choose, load_transport, make_transport
from imgvol.fs.kernel.keeping import ConnectionKeeper
from imgvol.fs.kernel.mounting import SystemMounting, UserMounting
from imgvol.fs.operations import Operations
from imgvol.fs.succession import check_succession, taken_over
from imgvol.fs.targets.sessions import TargetSessions, open_target_sessions
from imgvol.image_components import ImageComponents, open_images
from imgvol.images import inspection
from imgvol.images.leases import Leases
from imgvol.images.preload.preloader import Preloader
from imgvol.images.scrubbing import Scrubber
from imgvol.images.service import ImageService
from imgvol.images.views import Views
from imgvol.lifecycle import Lifecycle
from imgvol.logs import logging_to
from imgvol.process import Starter, leave_stuck, raise_file_limit
from imgvol.publish.converting import Converter
from imgvol.service_manager import ServiceManager
from imgvol.supervisor.turn import Turn
from imgvol.supervisor.verdict import EXIT_FAILED, EXIT_STOPPED
from imgvol.tallies import RequestTallies
from imgvol.volumes import recovery
from imgvol.volumes.check import check_mounts
from imgvol.volumes.homes import Homes
from imgvol.volumes.manager import VolumeManager
from imgvol.volumes.named import NamedVolumes
from imgvol.volumes.sandboxes import Sandboxes
from imgvol.watchdog import Watchdog

if TYPE_CHECKING:
    from imgvol.api.cri.handlers import Handlers
    from imgvol.api.cri.server import CriServer

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
        log_file: Where to log, instead of standard error.

    Returns:
        The process's exit code.
    """
    os.umask(0o077)
    raise_file_limit()
    # The watchdog of a service manager ends us by SIGABRT: code and line numbers, no values.
    faulthandler.enable()
    manager = ServiceManager.from_environment(os.environ)
    turn = manager.own_turn()
    if turn is not None:
        successor = _stand_by(config, manager, turn)
        if successor is None:
            return EXIT_STOPPED
        manager = successor
    # Nothing but pulls, and the credential helpers that they run, looks there from now on.
    environment = pulls_environment(os.environ, config.exec_env_prefix)
    os.environ.clear()
    os.environ.update(environment)
    starter = Starter(ready_fd)
    try:
        with logging_to(log_file, log_level):
            return _run(_Daemon(config, starter, manager), starter)
    except LocalError as exc:  # there is no log
        starter.report_failure(exc)
        return EXIT_FAILED


def _stand_by(config: Config, manager: ServiceManager, turn: Turn) -> ServiceManager | None:
    """Loads what a daemon needs, and blocks until the one before has ended.

    It takes nothing, and changes nothing: there is a daemon.

    Returns:
        Who keeps things for us; None: we could not go on, which was told, or are not needed.
    """
    choice = _choose(config)
    try:
        load_transport(choice.transport)
        if config.cri is not None:
            _load_cri()
        check_succession(turn.names, choice.transport)
        check_version(config.root)
    except ImgvolError as exc:
        turn.refuse(str(exc))
        return None
    return manager.after(turn, __version__)


def _choose(config: Config) -> Choice:
    return choose(config.transport, release=os.uname().release)


def _run(daemon: "_Daemon", starter: Starter) -> int:
    # What is loaded by now stays: the collector need not look at it each time. It takes 15 ms.
    gc.freeze()
    try:
        trio.run(daemon.run)
    except Exception as exc:
        error = as_imgvol_error(exc)
        level = logging.ERROR if isinstance(error, InternalError) else logging.DEBUG
        log.log(level, "the daemon failed", exc_info=True)
        starter.report_failure(error)
        return EXIT_FAILED
    return EXIT_STOPPED


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mounts:
    """What serves volumes, recovered.

    Attributes:
        obstacle: Why nothing can be mounted here; None when it can.
        sessions: Of targets, where the daemon may not bind.
    """

    volumes: VolumeManager
    sandboxes: Sandboxes
    obstacle: MachineLacks | None
    sessions: TargetSessions | None


class _Daemon:
    def __init__(self, config: Config, starter: Starter, manager: ServiceManager) -> None:
        self._config = config
        self._starter = starter
        self._manager = manager
        self._lifecycle = Lifecycle(announce=self._announce, abandon=leave_stuck)
        self._watchdog = Watchdog(manager)
        self._choice = _choose(config)
        mounting = SystemMounting if config.is_system else UserMounting
        self._mounting = mounting(config.views)
        self._connection_keeper = ConnectionKeeper(manager, self._mounting)
        self._started_at = time.time()
        self._is_ready = False
        # A daemon that is told to stop forgets its volumes; one that is restarted keeps them.
        self._forget_volumes = False
        # Told to stop; one that fails may be followed by another, which takes over what is kept.
        self._is_over = False
        self._requests = RequestTallies()
        self._has_lost_filesystem = False
        self._cri: CriService | None = None

    async def run(self) -> None:
        """Lives from the first component's start to the last one's end.

        Raises:
            ImgvolError: As `Lifecycle.run`.
        """
        await self._lifecycle.run(self._start)

    # --- the order of things --------------------------------------------------------------------

    async def _start(self) -> None:
        config, lifecycle = self._config, self._lifecycle
        await lifecycle.start("signals", self._watch_signals)
        await lifecycle.start("watchdog", self._watchdog.run)
        images = await open_images(config, lifecycle)
        mounts = await self._recover_mounts(images)
        servers = await self._open_sockets(images, mounts)
        self._begin_work(images, mounts, servers)
        if images.preloader is not None and config.preload.waits:
            await self._wait_for_images(images.preloader)
        self._is_ready = True
        if self._cri is not None:
            self._cri.open()
        await trio.to_thread.run_sync(self._tell_ready)
        log.info("ready: version %s, root %s, run %s", __version__, config.root, config.run)
        # Whoever is told that we are ready may stop us in the next moment: nothing comes after.
        self._starter.report_ready()

    def _tell_ready(self) -> None:
        self._manager.drop_rest()
        self._manager.ready(f"serving {self._config.views}")

    async def _recover_mounts(self, images: ImageComponents) -> _Mounts:
        """Mounts the filesystem, and every volume that the last daemon left."""
        can_go_on = self._choice.transport is TransportChoice.KERNEL and not session.obstacle()
        before = taken_over(
            self._connection_keeper, images.views, images.store.records, is_wanted=can_go_on
        )
        async with before as alive:
            return await self._mount(images, alive)

    async def _mount(self, images: ImageComponents, alive: tuple[int, int] | None) -> _Mounts:
        """Does so.

        Args:
            images: What there is to mount.
            alive: The device of the filesystem that was taken over; None: a new one is mounted.
        """
        config, lifecycle, records = self._config, self._lifecycle, images.store.records
        with lifecycle.stage("detaching dead mounts"):
            await recovery.detach_dead(records, config.views, alive=alive)
        with lifecycle.stage("directory of volumes"):
            # As the kernel tells mount points.
            homes = Homes(await trio.to_thread.run_sync(config.volumes.resolve))
        obstacle = await self._open_filesystem(images.views, is_there=alive is not None)
        sessions = None if obstacle else await self._open_target_sessions(images.views)
        volumes = VolumeManager(
            images=images.service,
            views=images.views,
            records=records,
            views_directory=config.views,
            homes=homes,
            obstacle=obstacle,
            may_bind=config.is_system,
            sessions=sessions,
            # Only there can callers be killed that wait for a name.
            streams=images.streams if self._choice.transport is TransportChoice.KERNEL else None,
        )
        await lifecycle.open(
            "volumes", self._open_volumes(volumes, homes, images), stop_within=limits.STOP_VOLUMES
        )
        sandboxes = Sandboxes(
            images=images.service,
            leases=images.leases,
            volumes=volumes,
            homes=homes,
            views_directory=config.views,
        )
        return _Mounts(volumes=volumes, sandboxes=sandboxes, obstacle=obstacle, sessions=sessions)

    async def _open_sockets(self, images: ImageComponents, mounts: _Mounts) -> Sequence[Server]:
        """Lets clients in: all that they may ask for is there."""
        config, lifecycle = self._config, self._lifecycle
        if config.cri is not None:
            with lifecycle.stage("CRI"):
                keeper = self._keeper("cri")
                self._cri = await trio.to_thread.run_sync(
                    _cri_server, config.cri, images.service, keeper
                )
        dispatch = make_dispatch(self._services(images, mounts))
        api = ApiServer(config.socket, dispatch, keeper=self._keeper("api"))
        await lifecycle.start("control API", api.run)
        servers: list[Server] = [api]
        if self._cri is not None:
            await lifecycle.start("CRI", self._cri.run)
            servers.append(self._cri)
        if config.docker_spec is not None:
            with lifecycle.stage("volume plugin"):
                plugin = await self._docker_plugin(config.docker_spec, images, mounts)
            await lifecycle.start("volume plugin", plugin.run)
            servers.append(plugin)
        # Those who follow events are told of the end, while they are still connected.
        await lifecycle.open("events", images.events.closing())
        return servers

    def _begin_work(
        self, images: ImageComponents, mounts: _Mounts, servers: Sequence[Server]
    ) -> None:
        """What the daemon does by itself, as long as it lives."""
        lifecycle = self._lifecycle
        lifecycle.start_soon("leases", partial(_keep_leases, images.leases, mounts.sandboxes))
        lifecycle.start_soon("collection", images.collector.run)
        if images.preloader is not None:
            lifecycle.start_soon("preload", images.preloader.run)
        lifecycle.start_soon("measuring", images.service.meter.run)
        lifecycle.start_soon("space", images.space.run)
        lifecycle.start_soon("uses of images", images.space.note_uses)
        lifecycle.start_soon("progress of pulls", images.service.tell_progress)
        lifecycle.start_soon("copies of the database", images.store.save_copies)
        if self._config.idle_exit is not None:
            lifecycle.start_soon(
                "idle exit",
                partial(self._stop_when_idle, self._config.idle_exit, servers, images, mounts),
            )

    async def _wait_for_images(self, preloader: Preloader) -> None:
        """Until all has been loaded that was in the preload directory at the start."""
        while not preloader.ready.is_set():
            self._manager.starting("loading images", limits.START_STAGE)
            with trio.move_on_after(limits.START_STAGE / 3):
                await preloader.ready.wait()

    # --- components -----------------------------------------------------------------------------

    async def _watch_signals(self, *, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async for number in signals:
                log.info("received %s", signal.Signals(number).name)
                self._end()

    async def _open_filesystem(self, views: Views, *, is_there: bool) -> MachineLacks | None:
        """Mounts the filesystem, or serves the one that is there.

        Returns:
            What is in the way, if something is.
        """
        config = self._config
        obstacle = session.obstacle()
        if obstacle is None:
            try:
                # One that was taken over is there; to look at it would wait for ourselves.
                if not is_there:
                    await trio.to_thread.run_sync(_ensure_directory, config.views)
                log.debug("transport %s: %s", *self._choice)
                transport = make_transport(
                    self._choice.transport,
                    Operations(views, self._requests),
                    self._mounting,
                    is_system=config.is_system,
                    keeper=self._connection_keeper,
                    passthrough=config.passthrough,
                )
                mounted = session.open_session(
                    views, config.views, transport, on_lost=self._filesystem_lost
                )
                await self._lifecycle.open("filesystem", mounted, may_fail=MachineLacks)
            except MachineLacks as exc:
                obstacle = exc
        if obstacle is not None:
            log.warning("images can be pulled and looked into, but not mounted: %s", obstacle)
        return obstacle

    async def _open_target_sessions(self, views: Views) -> TargetSessions | None:
        """What mounts at targets where we may not bind; None: nothing does, or we may."""
        config = self._config
        if config.is_system or self._choice.transport is not TransportChoice.KERNEL:
            return None
        sessions = open_target_sessions(views, config.views, self._requests)
        return await self._lifecycle.open("sessions of targets", sessions)

    def _filesystem_lost(self) -> None:
        """The connection to the kernel is gone; a new process can make another, this one cannot."""
        self._has_lost_filesystem = True
        self._lifecycle.fail(
            "filesystem", LocalError("its connection ended: somebody unmounted or aborted it")
        )

    @asynccontextmanager
    async def _open_volumes(
        self, volumes: VolumeManager, homes: Homes, images: ImageComponents
    ) -> AsyncIterator[None]:
        try:
            await recovery.recover(
                volumes,
                records=images.store.records,
                homes=homes,
                views_directory=self._config.views,
            )
            yield
        finally:
            with trio.CancelScope(shield=True):
                await volumes.detach_all(forget=self._forget_volumes)

    async def _docker_plugin(
        self, spec: Path, images: ImageComponents, mounts: _Mounts
    ) -> ApiServer:
        config = self._config
        named = NamedVolumes(
            volumes=mounts.volumes,
            records=images.store.records,
            directory=config.docker_volumes if config.is_system else None,
        )
        await named.recover()
        with translate_os_errors("write the plugin's spec file"):
            await trio.to_thread.run_sync(write_spec, str(spec), str(config.docker_socket))
        dispatch = make_docker_dispatch(named)
        return ApiServer(config.docker_socket, dispatch, keeper=self._keeper("docker"))

    def _keeper(self, name: str) -> Keeper:
        return Keeper(self._manager, name, lambda: self._is_over)

    async def _stop_when_idle(
        self, limit: float, servers: Sequence[Server], images: ImageComponents, mounts: _Mounts
    ) -> None:
        while True:
            await trio.sleep(min(IDLE_CHECK, limit))
            is_used = len(mounts.volumes.table) > 0 or images.service.pulls_under_way > 0
            # A target that was detached may still be in use.
            is_used = is_used or (mounts.sessions is not None and mounts.sessions.count > 0)
            is_used = is_used or (images.preloader is not None and images.preloader.is_busy)
            if not is_used and min(server.idle_seconds() for server in servers) >= limit:
                log.info("nobody has asked for anything in %g s", limit)
                self._end()
                await trio.sleep_forever()

    # --- what the API is given ------------------------------------------------------------------

    def _services(self, images: ImageComponents, mounts: _Mounts) -> Services:
        scrubber = Scrubber(images.store, images.views, images.service)
        return Services(
            images=images.service,
            inspection=inspection,
            volumes=mounts.volumes,
            sandboxes=mounts.sandboxes,
            check=partial(self._check, images.store, mounts.volumes),
            scrub=scrubber.scrub,
            events=images.events,
            traces=images.traces,
            registries=images.registries,
            indexes=images.indexes,
            preload=lambda: None if images.preloader is None else images.preloader.status(),
            info=lambda: self._info(can_mount=mounts.obstacle is None),
            statistics=lambda: self._statistics(images, mounts),
            stop=self._stop,
            converter=Converter(
                images.store,
                images.service,
                images.views,
                images.registries,
                find_trace=images.find_trace,
            ),
            space=images.space,
        )

    async def _check(self, store: Store, volumes: VolumeManager) -> list[Finding]:
        targets = [volume.target for volume in await volumes.list() if volume.target is not None]
        mounts = partial(check_mounts, self._config.views, targets, is_served=True)
        return [*await store.check(), *await trio.to_thread.run_sync(mounts)]

    def _statistics(self, images: ImageComponents, mounts: _Mounts) -> Statistics:
        return Statistics(
            requests=self._requests.snapshot(),
            views=images.views.statistics(),
            fetching=images.engine.statistics(),
            lazy=images.lazy_layers.statistics(),
            pulls=images.service.statistics(),
            space=images.space.statistics(),
            disk=images.store.disk_queue,
            volumes=len(mounts.volumes.table),
            is_serving=mounts.obstacle is None and not self._has_lost_filesystem,
            loop_blocked=self._watchdog.blocked(),
            worker_restarts=self._manager.restarts,
            cri=CallCounts() if self._cri is None else self._cri.statistics(),
        )

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

    def _stop(self) -> None:
        self._forget_volumes = True
        self._end()

    def _end(self) -> None:
        # One that has failed already ends for that reason.
        if not self._lifecycle.is_stopping:
            self._is_over = True
        self._lifecycle.stop()

    def _announce(self, what: str) -> None:
        log.debug("%s", what)
        if self._lifecycle.is_stopping:
            self._manager.stopping(what)
        elif not self._is_ready:
            self._manager.starting(what, limits.START_STAGE)


async def _keep_leases(leases: Leases, sandboxes: Sandboxes) -> None:
    try:
        await leases.run(sandboxes.end_lease)
    finally:
        with trio.CancelScope(shield=True):
            await _note_leases(leases)


async def _note_leases(leases: Leases) -> None:
    try:
        await leases.note()
    except ImgvolError as exc:
        log.error("what is left of the leases cannot be written down: %s", exc)


def _cri_server(socket: Path, images: ImageService, keeper: Keeper) -> CriService:
    """The Container Runtime Interface. gRPC takes 0.2 s and 20 MiB: only who serves it loads it."""
    server, handlers = _load_cri()
    return server(socket, handlers(images).methods(), keeper=keeper)


def _load_cri() -> "tuple[type[CriServer], type[Handlers]]":
    from imgvol.api.cri.handlers import Handlers
    from imgvol.api.cri.server import CriServer

    return CriServer, Handlers


def _ensure_directory(path: Path) -> None:
    path.mkdir(mode=0o700, exist_ok=True)
