"""The image service as a daemon has it, and images on a scripted registry for it to pull."""

import base64
import threading
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import trio

from imgvol.content.store import open_store
from imgvol.images.collection import Collector
from imgvol.images.credentials import Logins
from imgvol.images.fetch.engine import open_fetch_engine
from imgvol.images.lazy import LazyLayers
from imgvol.images.leases import Leases
from imgvol.images.pull import PullProgress
from imgvol.images.pulls import PullSettings
from imgvol.images.service import ImageService, PullOptions
from imgvol.images.sharing import open_shared_pulls
from imgvol.images.views import Views
from imgvol.registry import Credential, Secret
from support.images import Image, sha256
from support.scripted_registry import Connection, ScriptedServer, Seen, Step, respond, serve

MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def login(password: str, username: str = "jane") -> Credential:
    return Credential(username=username, password=Secret(password))


def basic(password: str, username: str = "jane") -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


@dataclass
class Service:
    """An image service and what it is made of."""

    images: ImageService
    store: object
    views: Views
    logins: Logins

    async def pull(self, name: str, progress: PullProgress | None = None, **options):
        return await self.images.pull(
            name,
            platform="linux/amd64",
            options=PullOptions(),
            progress=progress or PullProgress(),
            **options,
        )


@asynccontextmanager
async def open_service(root, **settings):
    """A service that shares pulls and reads lazily; REGISTRY_AUTH_FILE says what it may find."""
    logins = Logins()
    async with (
        open_store(root) as store,
        open_shared_pulls() as shared,
        open_fetch_engine(logins=logins.for_reads()) as engine,
        trio.open_nursery() as nursery,
    ):
        views = Views(store)
        images = ImageService(
            store,
            views,
            leases=Leases(store.records),
            collector=Collector(store),
            logins=logins,
            shared=shared,
            settings=PullSettings(**settings),
        )
        lazy = LazyLayers(store, engine, nursery)
        views.layers.on_lazy, views.layers.on_lazy_closed = lazy.attach, lazy.detach
        views.layers.closing_of = lazy.closing_of
        images.call_to_adopt(lazy.adopt)
        yield Service(images, store, views, logins)
        nursery.cancel_scope.cancel()


@dataclass
class Served:
    """An image on a scripted registry.

    Attributes:
        allowed: Logins that are let in, as headers; None: everybody. May change.
        manifest: What is served for one, if not the image's own.
        media_type: What it is said to be.
    """

    server: ScriptedServer
    repository: str
    image: Image
    allowed: list[str] | None = None
    manifest: bytes = b""
    media_type: str = MANIFEST

    def __post_init__(self) -> None:
        self.manifest = self.manifest or self.image.manifest_bytes()
        names = ("v1", sha256(self.manifest))
        answer = respond(
            200,
            self.manifest,
            Content_Type=self.media_type,
            Docker_Content_Digest=sha256(self.manifest),
        )
        for name in names:
            for method in ("HEAD", "GET"):
                self.server.on(method, self.manifest_path(name), self._guarded(answer))
        config = self.image.config_bytes()
        for data in (config, *(layer.blob for layer in self.image.layers)):
            self.on_blob(sha256(data), serve(data))

    @property
    def name(self) -> str:
        return f"{self.server.domain}/{self.repository}:v1"

    def manifest_path(self, name: str = "v1") -> str:
        return f"/v2/{self.repository}/manifests/{name}"

    def blob_path(self, digest: str) -> str:
        return f"/v2/{self.repository}/blobs/{digest}"

    def on_blob(self, digest: str, *steps: Step) -> None:
        self.server.on("GET", self.blob_path(digest), *map(self._guarded, steps))

    def fetched(self, digest: str) -> list[Seen]:
        """Requests for a blob that were let in."""
        seen = self.server.requests("GET", self.blob_path(digest))
        return [request for request in seen if self._may(request)]

    def _may(self, request: Seen) -> bool:
        return self.allowed is None or request.headers.get("authorization") in self.allowed

    def _guarded(self, then: Step) -> Step:
        def step(connection: Connection, request: Seen) -> None:
            if self._may(request):
                then(connection, request)
                return
            connection.fire("401")
            respond(401, WWW_Authenticate='Basic realm="here"')(connection, request)

        return step


@dataclass
class Gate:
    """Holds answers back until it is opened, and knows how many are held."""

    opened: threading.Event = field(default_factory=threading.Event)
    arrived: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def before(self, then: Step) -> Step:
        def step(connection: Connection, request: Seen) -> None:
            self.arrived.release()
            while not self.opened.is_set():
                connection.pause(0.01)
            then(connection, request)

        return step

    async def wait_arrived(self, count: int = 1) -> None:
        """Returns when so many more have come."""
        for _ in range(count):
            assert await trio.to_thread.run_sync(lambda: self.arrived.acquire(timeout=20))


@dataclass
class Crowd:
    """How many answers are on their way at once, at most."""

    now: int = 0
    most: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def inside(self) -> Iterator[None]:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            yield
        finally:
            with self._lock:
                self.now -= 1

    def around(self, then: Step, *, seconds: float) -> Step:
        def step(connection: Connection, request: Seen) -> None:
            with self.inside():
                connection.pause(seconds)
                then(connection, request)

        return step
