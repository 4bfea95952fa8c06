"""Image streams: what keeps an image that is shown while it is pulled."""

import gc
import weakref

import pytest

from imgvol.content.reachability import Thing, ThingKind
from imgvol.content.store import open_store
from imgvol.errors import NotFound, RegistryUnavailable, RemoteError
from imgvol.images.collection import Collector
from imgvol.images.pull import Puller, PullProgress
from imgvol.images.resolve import resolve_image, wanted_platform
from imgvol.images.streams import ImageStream, Showing
from imgvol.images.views import Views
from support import images
from support.sources import MemorySource

IMAGE = images.Image([images.Layer([images.file("a", b"a")], "gzip")])


async def opened(store, views):
    """A stream of the image, the source and the image's documents."""
    source = MemorySource(IMAGE)
    resolved = await resolve_image(source, wanted_platform("linux/amd64"))
    stream = ImageStream(views, Showing.ARRIVING)
    await stream.open(resolved)
    return stream, source, resolved


async def test_an_image_that_has_just_come_is_kept_though_it_is_removed_at_once(tmp_path):
    async with open_store(tmp_path) as store:
        views, collector = Views(store), Collector(store)
        stream, source, resolved = await opened(store, views)
        image = await Puller(store).pull(source, resolved, "app:1", PullProgress(), stream=stream)
        layer = Thing(ThingKind.LAYER, image.layers[0].digest)
        # Before the stream has heard of its end.
        await store.records.remove_image(image.manifest)
        assert layer not in (await collector.collect()).removed
        stream.succeed(image)
        assert layer not in (await collector.collect()).removed
        stream.abandon()
        assert layer in (await collector.collect()).removed


@pytest.mark.usefixtures("no_collector")
async def test_a_stream_goes_with_its_view(tmp_path):
    async with open_store(tmp_path) as store:
        views = Views(store)
        stream, source, resolved = await opened(store, views)
        image = await Puller(store).pull(source, resolved, "app:1", PullProgress(), stream=stream)
        stream.succeed(image)
        stream.abandon()
        gone = weakref.ref(stream)
        assert not gc.isenabled()
        del stream
        assert gone() is None


@pytest.mark.parametrize(
    ("failure", "kind"),
    [(NotFound("no such blob"), RemoteError), (RegistryUnavailable("x"), RegistryUnavailable)],
)
async def test_readers_are_not_told_that_a_name_is_missing(tmp_path, failure, kind):
    async with open_store(tmp_path) as store:
        stream, _, _ = await opened(store, Views(store))
        stream.fail(failure)
        assert stream.failure is failure
        with pytest.raises(kind):
            stream.view.tree.lookup(stream.view.tree.root, b"a")
        stream.abandon()
