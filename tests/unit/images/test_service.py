"""The image service beside pulling: what it tells of images that are here."""

import threading

from imgvol.content.store import open_store
from imgvol.images import local
from imgvol.images.leases import Leases
from imgvol.images.pull import Puller, PullProgress
from imgvol.images.resolve import resolve_image, wanted_platform
from imgvol.images.service import ImageService
from imgvol.images.views import Views
from support import images
from support.sources import MemorySource


async def test_documents_are_parsed_where_they_keep_no_view_waiting(tmp_path, monkeypatch):
    """Four megabytes are allowed; the event loop answers the kernel."""
    threads = []
    parse_json = local.parse_json

    def watched(*arguments, **options):
        threads.append(threading.current_thread())
        return parse_json(*arguments, **options)

    monkeypatch.setattr(local, "parse_json", watched)
    async with open_store(tmp_path) as store:
        source = MemorySource(images.Image([images.Layer([images.file("a")], "none")]))
        resolved = await resolve_image(source, wanted_platform("linux/amd64"))
        image = await Puller(store).pull(source, resolved, "x", PullProgress())
        manifest, config = await ImageService(
            store, Views(store), leases=Leases(store.records)
        ).documents(image)
    assert manifest["config"]["digest"] == str(image.id)
    assert config["rootfs"]["diff_ids"] == [str(image.layers[0].diff_id)]
    assert len(threads) == 2
    assert threading.current_thread() not in threads
