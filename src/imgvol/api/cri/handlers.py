"""The methods of the CRI: what each does in trio, and how its result becomes a message.

A method has two halves. `work` runs in trio, with all its rules; it returns records that never
change. `encode` makes messages of them where gRPC is served, and takes no time of the loop that
answers the kernel.
"""

import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import Message

from imgvol import limits
from imgvol.api.cri import messages
from imgvol.api.cri.generated import runtime_pb2 as pb
from imgvol.api.cri.messages import Found
from imgvol.api.cri.services import Images
from imgvol.content.records import ImageRecord
from imgvol.errors import InvalidArgument, NotFound
from imgvol.images.catalog import CatalogImage
from imgvol.images.pull import PullProgress
from imgvol.images.readiness import Readiness
from imgvol.images.service import PullOptions
from imgvol.images.usage import FilesystemUsage
from imgvol.oci.reference import parse_docker_reference
from imgvol.registry.auth_config import parse_auth_config

log = logging.getLogger(__name__)

_IMAGES: Final = "/runtime.v1.ImageService/"
_RUNTIME: Final = "/runtime.v1.RuntimeService/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One method of a service.

    Attributes:
        path: As gRPC has it: `/package.Service/Method`.
        request: What a request is.
        work: Does it, in trio.
        encode: Makes messages of the result; one, unless the method streams.
        streams: Whether the answer is a stream.
    """

    path: str
    request: type[Message]
    work: Callable[[Any], Awaitable[Any]]
    encode: Callable[[Any], Iterator[Message]]
    streams: bool = False

    @property
    def name(self) -> str:
        """Without the service: what logs and metrics call it."""
        return self.path.rpartition("/")[2]


class Handlers:
    """The image service's methods, and the two of the runtime service that clients begin with.

    Args:
        images: The image service.
        readiness: How much of an image has to be here when its pull returns; a runtime handler may
            want something else.
    """

    def __init__(self, images: Images, *, readiness: Readiness = Readiness.LAZY) -> None:
        self._images = images
        self._readiness = readiness

    def methods(self) -> Sequence[Method]:
        """All of them."""
        return (
            Method(
                path=f"{_IMAGES}ListImages",
                request=pb.ListImagesRequest,
                work=self.list_images,
                encode=_one(messages.image_list),
            ),
            Method(
                path=f"{_IMAGES}StreamImages",
                request=pb.StreamImagesRequest,
                work=self.list_images,
                encode=messages.image_batches,
                streams=True,
            ),
            Method(
                path=f"{_IMAGES}ImageStatus",
                request=pb.ImageStatusRequest,
                work=self.image_status,
                encode=_one(messages.image_status),
            ),
            Method(
                path=f"{_IMAGES}PullImage",
                request=pb.PullImageRequest,
                work=self.pull_image,
                encode=_one(lambda image: pb.PullImageResponse(image_ref=str(image.id))),
            ),
            Method(
                path=f"{_IMAGES}RemoveImage",
                request=pb.RemoveImageRequest,
                work=self.remove_image,
                encode=_one(lambda _: pb.RemoveImageResponse()),
            ),
            Method(
                path=f"{_IMAGES}ImageFsInfo",
                request=pb.ImageFsInfoRequest,
                work=self.filesystem_info,
                encode=_one(messages.filesystem_info),
            ),
            Method(
                path=f"{_RUNTIME}Version",
                request=pb.VersionRequest,
                work=_nothing,
                encode=_one(lambda _: messages.version()),
            ),
            Method(
                path=f"{_RUNTIME}Status",
                request=pb.StatusRequest,
                work=_nothing,
                encode=_one(lambda _: messages.runtime_status()),
            ),
        )

    async def list_images(
        self, request: pb.ListImagesRequest | pb.StreamImagesRequest
    ) -> Sequence[CatalogImage]:
        """Every image, or the one that the filter names.

        Raises:
            Conflict: The filter is the beginning of several IDs.
        """
        wanted = request.filter.image
        if not wanted.image:
            return tuple(self._images.catalog.images())
        image = self._find(wanted)
        return () if image is None else (image,)

    async def image_status(self, request: pb.ImageStatusRequest) -> Found:
        """The image of a name or an ID; none is no error."""
        image = self._find(request.image)
        if image is None or not request.verbose:
            return Found(image=image)
        try:
            record = await self._images.find(str(image.id))
            _, config = await self._images.documents(record)
        except NotFound:
            return Found(image=None)  # removed in the meantime
        return Found(image=image, config=config, is_verbose=True)

    async def pull_image(self, request: pb.PullImageRequest) -> ImageRecord:
        """Pulls an image from a registry, whether it is here or not.

        Raises:
            InvalidReference: No name of an image in a registry. Local files have names elsewhere
                in imgvol; who writes a pod must not read them.
            ImgvolError: As `ImageService.pull`.
        """
        self._check_handler(request.image)
        reference = parse_docker_reference(_text(request.image))
        pod = request.sandbox_config.metadata
        log.info("pulling %s for pod %r of %r", reference, pod.name, pod.namespace)
        return await self._images.pull(
            str(reference),
            platform=None,
            options=PullOptions(),
            progress=PullProgress(),
            readiness=self._readiness,
            handler=request.image.runtime_handler,
            credentials=parse_auth_config(
                username=request.auth.username,
                password=request.auth.password,
                auth=request.auth.auth,
                server_address=request.auth.server_address,
                identity_token=request.auth.identity_token,
                registry_token=request.auth.registry_token,
                registry=reference.domain,
            ),
        )

    async def remove_image(self, request: pb.RemoveImageRequest) -> None:
        """Removes an image with all its names; none is fine."""
        self._check_handler(request.image)
        await self._images.remove_image(_text(request.image))

    async def filesystem_info(
        self,
        request: pb.ImageFsInfoRequest,  # noqa: ARG002 - it is empty
    ) -> Sequence[FilesystemUsage]:
        """What images take of their disks."""
        return tuple(self._images.filesystem_usage())

    def _find(self, wanted: pb.ImageSpec) -> CatalogImage | None:
        self._check_handler(wanted)
        try:
            return self._images.catalog.resolve(_text(wanted))
        except NotFound:
            return None

    def _check_handler(self, wanted: pb.ImageSpec) -> None:
        """Raises InvalidArgument for a runtime handler that is not configured."""
        self._images.handlers.get(wanted.runtime_handler[: limits.NAME_LENGTH])


def _text(wanted: pb.ImageSpec) -> str:
    text = wanted.image
    if not text:
        raise InvalidArgument("no image is named in the request")
    if len(text) > limits.REFERENCE_LENGTH:
        raise InvalidArgument("the name of an image is too long", image=f"{text[:64]}…")
    return text


def _one(encode: Callable[[Any], Message]) -> Callable[[Any], Iterator[Message]]:
    """The same for a method whose answer is one message."""

    def encode_one(result: object) -> Iterator[Message]:
        yield encode(result)

    return encode_one


async def _nothing(request: Message) -> None:
    """The answer is known without any work."""
