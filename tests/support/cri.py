"""A plain client of the CRI, and a server of it over fakes."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import grpc
import trio

from imgvol.api.cri.generated import runtime_pb2 as pb
from imgvol.api.cri.handlers import Handlers
from imgvol.api.cri.server import CriServer
from imgvol.api.keeping import Keeper
from imgvol.errors import NotFound
from imgvol.images.handlers import RuntimeHandler, RuntimeHandlers

SECONDS = 20.0
IMAGE_SERVICE = "/runtime.v1.ImageService/"
RUNTIME_SERVICE = "/runtime.v1.RuntimeService/"


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


class Client:
    """What a kubelet asks, with as little as possible between the test and the wire."""

    def __init__(self, socket) -> None:
        # Its own connection: channels to one address share one otherwise.
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.insecure_channel(f"unix:{socket}", options=options)

    def close(self) -> None:
        self.channel.close()

    def raw(self, path: str, timeout: float = SECONDS):
        """A method as a function of bytes."""
        return self._with_timeout(self.channel.unary_unary(path), timeout)

    def method(self, path: str, answer, *, timeout: float = SECONDS):
        call = self.channel.unary_unary(
            path,
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        return self._with_timeout(call, timeout)

    def _with_timeout(self, call, timeout):
        return lambda request: call(request, timeout=timeout)

    def images(self, image: str = "") -> Sequence[pb.Image]:
        request = pb.ListImagesRequest(filter=_filter(image))
        return self.method(f"{IMAGE_SERVICE}ListImages", pb.ListImagesResponse)(request).images

    def stream(self, image: str = "") -> list[Sequence[pb.Image]]:
        call = self.channel.unary_stream(
            f"{IMAGE_SERVICE}StreamImages",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=pb.StreamImagesResponse.FromString,
        )
        request = pb.StreamImagesRequest(filter=_filter(image))
        return [answer.images for answer in call(request, timeout=SECONDS)]

    def status(self, image: str, *, verbose: bool = False, handler: str = ""):
        request = pb.ImageStatusRequest(
            image=pb.ImageSpec(image=image, runtime_handler=handler), verbose=verbose
        )
        return self.method(f"{IMAGE_SERVICE}ImageStatus", pb.ImageStatusResponse)(request)

    def find(self, image: str) -> pb.Image | None:
        """The image, or None when the answer has none."""
        answer = self.status(image)
        return answer.image if answer.HasField("image") else None

    def start_pull(self, image: str, *, timeout: float = SECONDS, handler: str = "", **auth: str):
        """A pull under way: has `cancel` and `result`."""
        call = self.channel.unary_unary(
            f"{IMAGE_SERVICE}PullImage",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=pb.PullImageResponse.FromString,
        )
        request = pb.PullImageRequest(
            image=pb.ImageSpec(image=image, runtime_handler=handler),
            auth=pb.AuthConfig(**auth) if auth else None,
        )
        return call.future(request, timeout=timeout)

    def pull(self, image: str, **options) -> str:
        return self.start_pull(image, **options).result().image_ref

    def remove(self, image: str) -> None:
        request = pb.RemoveImageRequest(image=pb.ImageSpec(image=image))
        self.method(f"{IMAGE_SERVICE}RemoveImage", pb.RemoveImageResponse)(request)

    def filesystems(self) -> pb.ImageFsInfoResponse:
        request = pb.ImageFsInfoRequest()
        return self.method(f"{IMAGE_SERVICE}ImageFsInfo", pb.ImageFsInfoResponse)(request)

    def version(self) -> pb.VersionResponse:
        return self.method(f"{RUNTIME_SERVICE}Version", pb.VersionResponse)(pb.VersionRequest())

    def runtime_status(self) -> pb.RuntimeStatus:
        call = self.method(f"{RUNTIME_SERVICE}Status", pb.StatusResponse)
        return call(pb.StatusRequest()).status


def _filter(image: str) -> pb.ImageFilter | None:
    return pb.ImageFilter(image=pb.ImageSpec(image=image)) if image else None


def make_image(number: int, **changes):
    values = {
        "id": digest(number),
        "repo_tags": (f"registry.test/image-{number}:1",),
        "repo_digests": (f"registry.test/image-{number}@{digest(number + 1_000_000)}",),
        "size": 1000 + number,
        "chain_id": digest(number + 2_000_000),
        "user": "1000:1000",
        "is_pinned": False,
    }
    return SimpleNamespace(**{**values, **changes})


@dataclass
class FakeImages:
    """An image service in memory, which a test can hold up or let fail."""

    known: list = field(default_factory=list)
    handlers: RuntimeHandlers = field(
        default_factory=lambda: RuntimeHandlers([RuntimeHandler(name="kata")])
    )
    pulls: list = field(default_factory=list)
    removed: list = field(default_factory=list)
    failure: Exception | None = None
    pulling: trio.Event = field(default_factory=trio.Event)
    go_on: trio.Event | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    config: object = None

    @property
    def catalog(self):
        return self

    def images(self):
        return self.known

    def resolve(self, text):
        for image in self.known:
            if text in (image.id, *image.repo_tags, *image.repo_digests):
                return image
        raise NotFound("image is not in the store", image=text)

    async def pull(self, image, **options):
        self.pulls.append((image, options))
        self.pulling.set()
        if self.failure is not None:
            raise self.failure
        if self.go_on is not None:
            try:
                await self.go_on.wait()
            except trio.Cancelled:
                self.cancelled.set()
                raise
        return self.resolve(image)

    async def find(self, image):
        return self.resolve(image)

    async def documents(self, image):
        return {"schemaVersion": 2}, self.config

    async def remove_image(self, text):
        self.removed.append(text)

    def filesystem_usage(self):
        return [
            SimpleNamespace(timestamp_ns=7, mountpoint="/store", used_bytes=5, inodes_used=3),
            SimpleNamespace(timestamp_ns=8, mountpoint="/other", used_bytes=6, inodes_used=4),
        ]


@contextlib.asynccontextmanager
async def serving(path, images, *, is_open: bool = True, keeper: Keeper | None = None):
    """A server on a socket; it ends with the block."""
    server = CriServer(path, Handlers(images).methods(), keeper=keeper)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        if is_open:
            server.open()
        yield server
        nursery.cancel_scope.cancel()


@contextlib.contextmanager
def client_of(path) -> Iterator[Client]:
    client = Client(path)
    try:
        yield client
    finally:
        client.close()
