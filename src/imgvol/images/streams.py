"""Images that are shown while they are pulled: a pull in the background, and the view it fills.

The view is there as soon as the manifest is: its layers follow, the upper ones first, each shown as
it comes (`content.streamed_layer`) or once it has been verified, as its user chooses (`Showing`),
and settled by the rules of `view.settling`. When all of them
have been verified the image is recorded like any other, and the view goes on over its layers with
the inodes that it has given. If a digest is not what it should be, or the pull fails for another
reason, the view fails: whoever asks for anything of it gets the error.

A stream belongs to the daemon, and ends early only when its view is closed.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from enum import Enum
from functools import partial

import trio

from imgvol import limits
from imgvol.content.layer import Layer
from imgvol.content.records import ImageRecord, LayerRecord
from imgvol.content.streamed_layer import StreamedLayer
from imgvol.errors import CallerError, ImgvolError, InternalError, RemoteError, Unsupported
from imgvol.images.ingest import LayerProgress
from imgvol.images.open_view import OpenView
from imgvol.images.pull import PullProgress, things_of
from imgvol.images.resolve import ResolvedImage
from imgvol.images.service import ImageService, PullOptions
from imgvol.images.settling import Settling
from imgvol.images.views import Views
from imgvol.oci.digest import Digest

log = logging.getLogger(__name__)


class Showing(Enum):
    """What is shown of an image that is being pulled; whoever looks for the rest waits."""

    VERIFIED = "verified"
    """Layers of which both digests have been checked."""

    ARRIVING = "arriving"
    """What has come of any layer, on the strength of the registry and the line to it."""


class _Pulse:
    """Something has come; apart from the stream, which its layers are not to keep."""

    def __init__(self) -> None:
        self._noted = trio.Event()

    def note(self) -> None:
        """It has."""
        self._noted.set()

    async def wait(self) -> None:
        """Until something comes that came after the last wait."""
        await self._noted.wait()
        self._noted = trio.Event()


class ImageStream:
    """One image on its way; see the module.

    Args:
        views: Where its view will be.
        showing: What is shown meanwhile.

    Attributes:
        resolved: The image's documents, once it is open.
        record: The image, once it is here.
        failure: Why the image has not come; None while it may.
        is_open: Set when there is a view, or a failure.
        is_over: Set when there is a record, or a failure.
        scope: Ends the pull.
    """

    def __init__(self, views: Views, showing: Showing) -> None:
        self._views = views
        self._showing = showing
        self._view: OpenView | None = None
        self._streamed: list[StreamedLayer] = []
        self.resolved: ResolvedImage | None = None
        self.record: ImageRecord | None = None
        self.failure: ImgvolError | None = None
        self.is_open = trio.Event()
        self.is_over = trio.Event()
        self._pulse = _Pulse()
        self.scope = trio.CancelScope()

    @property
    def view(self) -> OpenView:
        """Held by whoever opened the stream."""
        assert self._view is not None, "it is open, and has not failed before that"
        return self._view

    @property
    def manifest(self) -> Digest:
        """Of the image, once the stream is open."""
        assert self.resolved is not None
        return self.resolved.manifest.digest

    @property
    def settling(self) -> Settling:
        """Of its view."""
        assert self.view.settling is not None
        return self.view.settling

    # --- what a pull tells ----------------------------------------------------------------------

    async def open(self, resolved: ResolvedImage) -> None:
        """The image's layers are known.

        Raises:
            Unsupported: Nothing would tell what the layers have to be.
        """
        if not resolved.diff_ids:
            raise Unsupported(
                "only images whose config names their layers are shown while they are pulled",
                hint="Mount it with --wait=index.",
            )
        records = [
            LayerRecord(
                digest=descriptor.digest,
                diff_id=diff_id,
                media_type=descriptor.media_type,
                size=descriptor.size,
                unpacked_size=0,
                entries=0,
                is_complete=False,
            )
            for descriptor, diff_id in zip(resolved.layers, resolved.diff_ids, strict=True)
        ]
        self.resolved = resolved
        self._view, self._streamed = await self._views.open_settling(
            records, things_of(resolved), self._pulse.note
        )
        self._view.on_closed = self.scope.cancel
        self.is_open.set()

    def watch(self, position: int, progress: LayerProgress) -> StreamedLayer:
        """See PullStream."""
        layer = self._streamed[position]
        if self._showing is Showing.ARRIVING:
            layer.on_begin = partial(self.settling.tree.begin, position)
        layer.received = lambda: progress.received
        return layer

    async def take(self, position: int, record: LayerRecord) -> None:
        """See PullStream."""
        streamed = self._streamed[position]

        def end(layer: Layer) -> None:
            # From here on nobody asks what grew: early numbers are given on this thread only.
            final_nodes = streamed.grows.final_nodes() if streamed.grows else {}
            self.settling.tree.end(position, layer.index, final_nodes)
            streamed.succeed(layer, final_nodes)

        await self._views.take_layer(self.view, position, record, end)
        self._pulse.note()

    async def pulse(self) -> None:
        """Wakes who waits when something has come, and so often only; until it is over."""
        while not self.is_over.is_set():
            await self._pulse.wait()
            self._wake()
            await trio.sleep(limits.STREAM_PULSE)

    def _wake(self) -> None:
        for layer in self._streamed:
            layer.wake()
        if self._view is not None:
            self.settling.wake()

    # --- its end --------------------------------------------------------------------------------

    def abandon(self) -> None:
        """Nobody wants it any more."""
        self.scope.cancel()
        if self._view is not None:
            self._views.release(self._view)

    def succeed(self, record: ImageRecord) -> None:
        """All of the image is here, verified as far as that is promised."""
        self._views.keep_image(self.view, record)
        self.record = record
        self._end()

    def fail(self, error: ImgvolError) -> None:
        """The image does not come."""
        self.failure = error
        if self._view is not None:
            if isinstance(error, CallerError):
                # Who reads has asked for nothing wrong: not ENOENT, say, for a blob that has gone.
                error = RemoteError("the image does not come any more", reason=str(error))
            self.settling.tree.fail(error)
            for layer in self._view.layers:
                if isinstance(layer, StreamedLayer):
                    layer.failure = error
            for tell in self._views.on_failed:
                tell(self._view)
        self.is_open.set()
        self._end()

    def _end(self) -> None:
        self.is_over.set()
        # The pulse may be resting, and beats no more.
        self._wake()
        self._pulse.note()


class ImageStreams:
    """All of them. Made by `open_image_streams`; used on the event loop.

    Args:
        nursery: Where they live.
    """

    def __init__(self, images: ImageService, views: Views, nursery: trio.Nursery) -> None:
        self._images = images
        self._views = views
        self._nursery = nursery

    async def open(
        self,
        image: str,
        *,
        showing: Showing,
        platform: str | None,
        options: PullOptions,
        progress: PullProgress,
    ) -> ImageStream:
        """Begins to pull an image, and returns when its view is there. `Views.release` must follow.

        Args:
            image: A reference, or a local source.
            showing: What is shown until all of it is here.
            platform: For which platform; None: this machine's.
            options: How to reach the registry.
            progress: Told how far the pull is, for as long as that takes.

        Raises:
            ImgvolError: As a pull, before it has come to the layers.
        """
        stream = ImageStream(self._views, showing)

        async def pull() -> ImageRecord:
            return await self._images.pull_streaming(
                image, platform=platform, options=options, progress=progress, stream=stream
            )

        self._nursery.start_soon(_run, stream, image, pull)
        self._nursery.start_soon(stream.pulse)
        try:
            await stream.is_open.wait()
            if stream.failure is not None:
                raise stream.failure.anew()
        except BaseException:
            stream.abandon()
            raise
        return stream

    def follow(
        self, stream: ImageStream, follower: Callable[[ImageStream], Awaitable[None]]
    ) -> None:
        """Has something done when an image has come, or will not; it must not raise."""

        async def wait() -> None:
            await stream.is_over.wait()
            await follower(stream)

        self._nursery.start_soon(wait)


async def _run(stream: ImageStream, image: str, pull: Callable[[], Awaitable[ImageRecord]]) -> None:
    failure: ImgvolError = InternalError("the pull was given up", image=image)
    try:
        with stream.scope:
            stream.succeed(await pull())
    except ImgvolError as exc:
        failure = exc.anew()
        if stream.is_open.is_set():
            log.warning("%s has not come as a whole, and is not shown any more: %s", image, exc)
    finally:
        if stream.record is None:
            stream.fail(failure)


@asynccontextmanager
async def open_image_streams(images: ImageService, views: Views) -> AsyncIterator[ImageStreams]:
    """The streams of one daemon; what is left of them is cancelled at its end."""
    async with trio.open_nursery() as nursery:
        yield ImageStreams(images, views, nursery)
        nursery.cancel_scope.cancel()
