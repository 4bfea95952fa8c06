"""Layers that are here under other blobs' digests: what is not fetched, what is never shared."""

from dataclasses import dataclass, replace

import trio

from imgvol.content.rebuild import rebuild_database
from imgvol.content.records import FaultKind, LayerFault
from imgvol.content.store import open_store
from imgvol.images.collection import Collector
from imgvol.images.ingest import LayerProgress
from imgvol.images.pull import Puller, PullProgress, things_of
from imgvol.images.resolve import resolve_image, wanted_platform
from imgvol.images.views import Views
from imgvol.oci.digest import Digest
from imgvol.view.paths import resolve
from support import images
from support.sources import MemorySource

LARGE = bytes(range(256)) * 5000  # has a file of its own
CONTENT = [images.file("secret", b"of the victim"), images.file("large", LARGE)]


@dataclass(frozen=True)
class Claiming(images.Image):
    """An image whose config does not say what its layers are."""

    def config_bytes(self) -> bytes:
        return images.to_json({"architecture": "amd64", "os": "linux", "config": {}})


async def pull(store, image, name):
    source = MemorySource(image)
    resolved = await resolve_image(source, wanted_platform("linux/amd64"))
    return source, await Puller(store).pull(source, resolved, name, PullProgress())


async def content(store, record, path: bytes) -> bytes:
    async with Views(store).hold(record) as view:
        return bytes(await view.read(resolve(view.tree, path), 0, 10_000_000))


def layer_of(*entries, compression="gzip"):
    return images.Layer(entries or CONTENT, compression)


async def test_the_same_tar_in_another_blob_is_not_fetched(tmp_path):
    first, second = layer_of(), layer_of(compression="zstd")
    assert first.digest != second.digest
    async with open_store(tmp_path) as store:
        _, one = await pull(store, images.Image([first]), "one")
        source, two = await pull(store, images.Image([second], config={"User": "x"}), "two")
        assert source.opened == []
        assert two.manifest != one.manifest
        assert two.layers == one.layers
        assert two.view_id == one.view_id == two.chain_id
        assert await content(store, two, b"/secret") == b"of the victim"
        usage = await store.usage()
        assert (usage.layers, usage.shared_layers) == (1, 1)
        assert usage.shared_bytes == second.size
        # Once more: it was here, nothing was saved.
        await pull(store, images.Image([second], config={"User": "x"}), "two")
        assert (await store.usage()).shared_layers == 1
        assert store.pins.snapshot() == {}


async def test_removing_the_first_image_leaves_the_second_its_layer(tmp_path):
    async with open_store(tmp_path) as store:
        _, one = await pull(store, images.Image([layer_of()]), "one")
        image = images.Image([layer_of(compression="zstd")], config={"User": "x"})
        _, two = await pull(store, image, "two")
        await store.records.remove_image(one.manifest)
        await Collector(store).collect()
        assert await store.records.image(one.manifest) is None
        assert await content(store, two, b"/large") == LARGE


async def test_a_layer_is_held_while_it_stands_in_for_another(tmp_path):
    slow = layer_of(images.file("slow", b"x" * 5000))
    image = images.Image([layer_of(compression="zstd"), slow])
    async with open_store(tmp_path) as store:
        _, one = await pull(store, images.Image([layer_of()]), "one")
        source = MemorySource(image)
        resolved = await resolve_image(source, wanted_platform("linux/amd64"))
        token = trio.lowlevel.current_trio_token()
        collected = []

        async def remove_first() -> None:
            await store.records.remove_image(one.manifest)
            collected.append(await Collector(store).collect())

        def on_piece(_position: int) -> None:
            if not collected:
                trio.from_thread.run(remove_first, trio_token=token)

        source.on_piece = on_piece
        two = await Puller(store).pull(source, resolved, "two", PullProgress())
        assert collected
        assert source.opened == [Digest.parse(slow.digest)]
        assert await content(store, two, b"/secret") == b"of the victim"


async def test_what_a_blob_holds_is_nobodys_claim(tmp_path):
    """The claimed tar is here, so the claim is granted, from there; the blob stays unknown."""
    victim = layer_of()
    own = layer_of(images.file("secret", b"of the liar"))
    lying = layer_of(images.file("secret", b"of the liar"))
    lying.diff_id = victim.diff_id
    async with open_store(tmp_path) as store:
        await pull(store, images.Image([victim]), "victim")
        source, deceiver = await pull(store, images.Image([lying]), "lying")
        # As the config asks: what has that diff ID, proven.
        assert source.opened == []
        assert await content(store, deceiver, b"/secret") == b"of the victim"
        assert await store.records.layer(Digest.parse(lying.digest)) is None

        _, honest = await pull(store, images.Image([own]), "honest")
        assert await content(store, honest, b"/secret") == b"of the liar"
        assert await content(store, deceiver, b"/secret") == b"of the victim"
        assert honest.view_id != deceiver.view_id


async def test_an_image_without_diff_ids_gets_what_its_blob_holds(tmp_path):
    victim = layer_of()
    lying = layer_of(images.file("secret", b"of the liar"))
    lying.diff_id = victim.diff_id
    async with open_store(tmp_path) as store:
        await pull(store, images.Image([victim]), "victim")
        await pull(store, images.Image([lying]), "lying")
        source, plain = await pull(store, Claiming([lying]), "plain")
        assert source.opened == [Digest.parse(lying.digest)]
        assert await content(store, plain, b"/secret") == b"of the liar"


async def test_a_damaged_layer_stands_in_for_nothing(tmp_path):
    async with open_store(tmp_path) as store:
        _, one = await pull(store, images.Image([layer_of()]), "one")
        fault = LayerFault(kind=FaultKind.DAMAGED, reason="a bit was wrong")
        assert await store.records.mark_damaged(one.layers[0], fault)
        second = layer_of(compression="zstd")
        source, two = await pull(store, images.Image([second]), "two")
        assert source.opened == [Digest.parse(second.digest)]
        assert await content(store, two, b"/large") == LARGE


async def obtain(store, image, name):
    """As an import does: every blob is read."""
    source = MemorySource(image)
    resolved = await resolve_image(source, wanted_platform("linux/amd64"))
    progress = [LayerProgress(digest=layer.digest, size=layer.size) for layer in image.layers]
    record = await Puller(store).obtain(source, resolved, progress, in_place=False)
    for digest, raw in resolved.documents:
        await store.put_blob(digest, raw)
    assert things_of(resolved)
    return await store.records.add_image(record, name, resolved.target)


def data_of(store, layer):
    return store.layout.layer(Digest.parse(layer.digest)) / "data"


async def test_two_blobs_of_one_tar_that_were_both_read_are_one_data_file(tmp_path):
    first, second = layer_of(), layer_of(compression="zstd")
    async with open_store(tmp_path) as store:
        await obtain(store, images.Image([first]), "one")
        two = await obtain(store, images.Image([second], config={"User": "x"}), "two")
        assert data_of(store, first).samefile(data_of(store, second))
        assert (await store.usage()).linked_size >= len(LARGE)
        assert await store.check() == []
        assert await content(store, two, b"/secret") == b"of the victim"
        assert await content(store, two, b"/large") == LARGE


async def test_a_data_file_that_has_changed_is_not_shared(tmp_path):
    first, second = layer_of(), layer_of(compression="zstd")
    async with open_store(tmp_path) as store:
        await obtain(store, images.Image([first]), "one")
        path = data_of(store, first)
        path.write_bytes(path.read_bytes().replace(b"victim", b"VICTIM"))
        image = replace(images.Image([second]), config={"User": "x"})
        two = await obtain(store, image, "two")
        assert not path.samefile(data_of(store, second))
        assert await content(store, two, b"/secret") == b"of the victim"


async def test_a_rebuilt_database_knows_both_images(tmp_path):
    """From files alone: the second image's blob has no layer, its diff ID has."""
    async with open_store(tmp_path) as store:
        _, one = await pull(store, images.Image([layer_of()]), "one")
        image = images.Image([layer_of(compression="zstd")], config={"User": "x"})
        _, two = await pull(store, image, "two")
        layout = store.layout
    for path in (layout.database, layout.database_copy):
        path.unlink()
    await rebuild_database(layout)
    async with open_store(tmp_path) as store:
        found = {image.manifest: image for image in store.images}
        assert found.keys() == {one.manifest, two.manifest}
        assert found[two.manifest].layers[0].digest == one.layers[0].digest
        assert await content(store, found[two.manifest], b"/secret") == b"of the victim"
