"""What the control API needs from the rest of the daemon, as small protocols.

The records are the real ones; the services are described here as far as the handlers use them, so
that tests can give fakes. Everything is called on the event loop, and nothing may wait for the
filesystem that the daemon serves.
"""

from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

import trio

from imgvol.api.cri.tallies import CallCounts
from imgvol.content.check import Finding
from imgvol.content.records import (
    EvictedImage,
    ImageRecord,
    IndexRecord,
    LeaseRecord,
    TraceRecord,
)
from imgvol.content.store import StoreUsage
from imgvol.images.collection import CollectionReport, Fate
from imgvol.images.events import Subscription
from imgvol.images.exporting import ExportedImage, ExportProgress
from imgvol.images.fetch.engine import EngineStatistics
from imgvol.images.importing import ImportReport
from imgvol.images.inspection import EntryInfo, TreeUsage
from imgvol.images.lazy import LazyStatistics
from imgvol.images.local import RemovalReport
from imgvol.images.open_view import OpenView
from imgvol.images.preload.status import PreloadStatus
from imgvol.images.pull import PullProgress
from imgvol.images.readiness import Readiness
from imgvol.images.scrubbing import ScrubFault, ScrubProgress
from imgvol.images.service import PullOptions, PullStatistics
from imgvol.images.space import EvictionReport, SpaceStatistics, SpaceStatus
from imgvol.images.streams import Showing
from imgvol.images.traces.service import RecordingProgress
from imgvol.images.views import ViewStatistics
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.json import JSONValue
from imgvol.publish.conversion import ConversionProgress, ConversionReport, ConversionRequest
from imgvol.publish.indexes import IndexProgress, IndexRequest
from imgvol.publish.pushing import Pushed, PushProgress
from imgvol.publish.traces import push_trace
from imgvol.registry.push import Pusher
from imgvol.registry.registries import Registries
from imgvol.tallies import Distribution, QueueLength, RequestCounts
from imgvol.volumes.obtaining import PullPolicy
from imgvol.volumes.options import BindOptions
from imgvol.volumes.plan import MountRequest
from imgvol.volumes.sandboxes import LeaseDeletion
from imgvol.volumes.volume import HeldVolume, Volume


class Imports(Protocol):
    """`images.importing.Importer`."""

    async def import_archive(
        self,
        path: str,
        *,
        stream: int | None,
        link: bool,
        platforms: Sequence[str],
        base_name: str | None,
        digests: bool,
        progress: PullProgress,
    ) -> ImportReport:
        """All images of an archive, or none; raises what the archive deserves."""


class Exports(Protocol):
    """`images.exporting.Exporter`."""

    async def export(
        self,
        images: Sequence[str],
        output: int,
        *,
        platform: str | None,
        progress: ExportProgress,
    ) -> Sequence[ExportedImage]:
        """Writes an archive into an open file; raises NotFound, Conflict."""


class Conversions(Protocol):
    """`publish.converting.Converter`."""

    async def convert(
        self, request: ConversionRequest, progress: ConversionProgress
    ) -> ConversionReport:
        """Writes an image in another format; raises what is wrong with it, or with the target."""


class Images(Protocol):
    """`images.service.ImageService`."""

    @property
    def importer(self) -> Imports:
        """Brings archives in."""

    @property
    def exporter(self) -> Exports:
        """Writes archives."""

    async def pull(
        self, image: str, *, platform: str | None, options: PullOptions, progress: PullProgress
    ) -> ImageRecord:
        """Fetches, verifies and indexes an image; concurrent pulls share their layers."""

    async def find(self, image: str, *, platform: str | None = None) -> ImageRecord:
        """The local image of that name, ID or digest; raises NotFound."""

    async def list(self) -> Sequence[ImageRecord]:
        """Every local image."""

    async def evicted(self) -> Sequence[EvictedImage]:
        """The images that went for want of room."""

    async def remove(self, image: str) -> RemovalReport:
        """Drops a name, and the image with its last name; raises NotFound, Conflict."""

    async def remove_image(self, text: str) -> RemovalReport:
        """Drops all names of an image, whatever uses it; not here is fine; raises Conflict."""

    async def pin(self, image: str) -> ImageRecord:
        """Pins a name, or an image by its ID; raises NotFound, Conflict."""

    async def unpin(self, image: str) -> ImageRecord:
        """Ends what users have pinned of an image; raises NotFound, Conflict."""

    async def documents(self, image: ImageRecord) -> tuple[JSONValue, JSONValue]:
        """The manifest and the config, as stored."""

    async def descriptor(self, image: ImageRecord) -> Descriptor:
        """What points at the image's manifest."""

    def open_view(self, image: ImageRecord) -> AbstractAsyncContextManager[OpenView]:
        """The merged tree of an image, held open."""

    async def usage(self) -> StoreUsage:
        """Sizes of what is stored."""

    async def collect(self) -> CollectionReport:
        """Removes what nobody needs."""

    async def explain_collection(self) -> Sequence[Fate]:
        """Why each thing that is stored stays, or that it would go."""


class Space(Protocol):
    """`images.space.SpaceKeeper`."""

    async def status(self) -> SpaceStatus:
        """How full the store is, what could go, and what could not."""

    async def plan(self, size: int) -> EvictionReport:
        """What `evict_to` would do."""

    async def evict_to(self, size: int) -> EvictionReport:
        """Evicts until the store takes no more than so many bytes."""


class Inspection(Protocol):
    """Looking into a view: the module `images.inspection`."""

    def list_entries(self, view: OpenView, path: bytes, recursive: bool) -> Iterator[EntryInfo]:
        """The entry at `path`, or a directory's children, or all below it."""

    async def usage(self, view: OpenView, path: bytes) -> TreeUsage:
        """Sums up everything below a path."""

    def iter_content(self, view: OpenView, path: bytes) -> AsyncIterator[bytes]:
        """The bytes of a file, exact or an error."""


class Volumes(Protocol):
    """`volumes.manager.VolumeManager`."""

    async def mount(
        self,
        image: str,
        target: str | None,
        *,
        sandbox: str,
        platform: str | None,
        pull: PullPolicy,
        options: PullOptions,
        bind: BindOptions,
        patience: float,
        readiness: Readiness,
        follows_trace: bool,
        showing: Showing | None,
        progress: PullProgress,
    ) -> Volume:
        """Pulls when `pull` says so, then mounts. Nothing is left behind when it fails."""

    async def unmount(self, target_or_id: str, *, detach: bool = False) -> Volume:
        """Undoes a mount; raises NotFound, Conflict when busy."""

    async def list(self) -> Sequence[Volume]:
        """Every volume."""

    def find(self, target_or_id: str) -> HeldVolume:
        """One volume with what it keeps open; raises NotFound."""


class Scrub(Protocol):
    """`images.scrubbing.Scrubber.scrub`."""

    async def __call__(
        self,
        images: Sequence[str],
        *,
        repair: bool,
        options: PullOptions,
        progress: ScrubProgress,
    ) -> Sequence[ScrubFault]:
        """Reads data again, and pulls again what is damaged, if asked to; raises NotFound."""


class Events(Protocol):
    """`images.events.Events`."""

    def subscribe(self, kinds: Collection[str] = ()) -> AbstractAsyncContextManager[Subscription]:
        """Follows what happens inside of the block; raises Conflict."""


class Indexes(Protocol):
    """`publish.indexes.Indexes`."""

    @property
    def registries(self) -> Registries | None:
        """Where images of registries come from."""

    async def create(self, request: IndexRequest, progress: IndexProgress) -> IndexRecord:
        """Makes and keeps the index of an image."""

    async def kept(self, image: str | None = None) -> Sequence[IndexRecord]:
        """The indexes that are kept, or an image's; raises NotFound."""

    async def remove(self, image: str) -> Sequence[IndexRecord]:
        """Removes an image's; raises NotFound."""

    async def push_referrers(self, image: str, pusher: Pusher, progress: PushProgress) -> Pushed:
        """Pushes an image's to the image; raises NotFound."""

    async def push_image(
        self, image: str, pusher: Pusher, tag: str, progress: PushProgress
    ) -> Pushed:
        """Pushes the image with its indexes; raises NotFound, Conflict."""


class Sandboxes(Protocol):
    """`volumes.sandboxes.Sandboxes`."""

    async def create_lease(
        self,
        lease_id: str,
        *,
        labels: Mapping[str, str],
        duration: float | None,
        images: Collection[str] = (),
    ) -> LeaseRecord:
        """The lease with this ID, made if there is none; raises NotFound for its images."""

    async def renew_lease(self, lease_id: str, duration: float | None) -> LeaseRecord:
        """Starts its time again; raises NotFound."""

    async def list_leases(self, label: str | None = None) -> Sequence[LeaseRecord]:
        """The leases, or those with a label."""

    async def delete_lease(
        self, lease_id: str, *, drain: float, detach: bool = False
    ) -> LeaseDeletion:
        """Unmounts its volumes and forgets it; raises Conflict when some are busy."""

    async def mount(
        self,
        sandbox: str,
        requests: Sequence[MountRequest],
        *,
        platform: str | None = None,
        dirs_only: bool = False,
    ) -> Sequence[MountRequest]:
        """All volumes of a container, or none; raises ImageVolumeMountFailed."""


class Server(Protocol):
    """Whatever serves clients."""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Listens until cancelled."""

    def idle_seconds(self) -> float:
        """How long no request has been in progress; 0 while one is."""


class CriService(Server, Protocol):
    """`cri.server.CriServer`, which is loaded only where it is wanted."""

    def open(self) -> None:
        """Lets calls through."""

    def statistics(self) -> CallCounts:
        """What has been asked."""


class Traces(Protocol):
    """`images.traces.service.Traces`."""

    async def record(
        self,
        image: ImageRecord,
        view: OpenView,
        *,
        progress: RecordingProgress,
        seconds: float,
    ) -> TraceRecord:
        """Notes what is read of an open view, and keeps it; raises Conflict."""

    def finish(self, recording: str) -> None:
        """Ends a recording; raises NotFound."""

    async def list(self) -> Sequence[TraceRecord]:
        """All of them, the latest first."""

    async def find(self, image: ImageRecord) -> TraceRecord:
        """The one that mounts of an image follow; raises NotFound."""

    async def document(self, record: TraceRecord) -> bytes:
        """The document itself; raises NotFound."""

    async def remove(self, image: ImageRecord) -> TraceRecord:
        """Forgets the one that mounts of an image follow; raises NotFound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonInfo:
    """Who answers.

    Attributes:
        version: Of imgvol.
        pid: Process ID.
        uid: Whom the daemon runs as.
        root: Directory of the store.
        run: Directory of the socket and of the views.
        views: Where views are mounted.
        is_system: Whether it serves the machine and not one person.
        can_mount: Whether views can be mounted; False leaves pulling and looking inside.
        started_at: Seconds since the epoch.
    """

    version: str
    pid: int
    uid: int
    root: str
    run: str
    views: str
    is_system: bool
    can_mount: bool
    started_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """What the daemon's components have counted, at one moment.

    Attributes:
        requests: What the kernel has asked of the filesystem.
        views: What is open.
        fetching: What has been fetched for lazy layers.
        lazy: What has become of lazy layers.
        pulls: What pulls have done.
        disk: Reads that wait for the disk.
        volumes: How many there are.
        is_serving: Whether the filesystem is mounted and connected to the kernel.
        loop_blocked: For how long the event loop did not turn, each time that was too long.
        worker_restarts: How many workers of the same supervisor there were before this process.
        space: How full the store is, and what was evicted.
        cri: What has been asked of the Container Runtime Interface, if it is served.
    """

    requests: RequestCounts
    views: ViewStatistics
    fetching: EngineStatistics
    lazy: LazyStatistics
    pulls: PullStatistics
    disk: QueueLength
    volumes: int
    is_serving: bool
    loop_blocked: Distribution
    worker_restarts: int
    space: SpaceStatistics
    cri: CallCounts = field(default_factory=CallCounts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything that handlers may use.

    Attributes:
        images: The image service.
        inspection: Lists, sums up and reads what is in a view.
        volumes: The volume manager.
        check: Looks for damage, without reading the data.
        scrub: Reads the data of images again, and compares it with its digests.
        sandboxes: Leases, and the volumes of sandboxes.
        events: What happens to images.
        traces: What starts of images read.
        indexes: SOCI indexes.
        info: Tells who answers.
        statistics: What has been counted; from memory, whatever else is stuck.
        stop: Asks the daemon to end; returns at once.
        converter: Writes images in formats that can be mounted lazily.
        space: Keeps the store within its size.
        preload: What has become of the preload directory, from memory; None: there is none.
        registries: How registries are reached; None: by themselves.
        push_trace: `publish.traces.push_trace`.
    """

    images: Images
    inspection: Inspection
    volumes: Volumes
    check: Callable[[], Awaitable[Sequence[Finding]]]
    scrub: Scrub
    sandboxes: Sandboxes
    events: Events
    traces: Traces
    indexes: Indexes
    info: Callable[[], DaemonInfo]
    statistics: Callable[[], Statistics]
    stop: Callable[[], None]
    converter: Conversions
    space: Space
    preload: Callable[[], PreloadStatus | None] = lambda: None
    registries: Registries | None = None
    push_trace: Callable[[Pusher, Descriptor, bytes, PushProgress], Awaitable[Pushed]] = push_trace
