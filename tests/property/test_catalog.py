"""Whatever is done to the records, the catalog is what a daemon that starts then would have."""

import tempfile
from functools import partial
from pathlib import Path

import trio
from hypothesis import given
from hypothesis import strategies as st

from imgvol.content.records import ImageRecord
from imgvol.content.records.layers import FaultKind, LayerFault
from imgvol.content.store import open_store
from imgvol.images.catalog import Catalog
from imgvol.oci.digest import Digest
from support.catalogs import AMD64, an_image, reloaded
from support.records import layer_record

LAYERS = [layer_record(name) for name in "ab"]
IMAGES = [
    an_image("one", layers=LAYERS[:1]),
    an_image("again", config="one", layers=LAYERS[:1], pulled_at=2.0),
    an_image("both", layers=LAYERS, pulled_at=3.0),
    an_image("foreign", platform="linux/arm64", layers=LAYERS[1:]),
    an_image("empty"),
]
TARGETS = [Digest.of(b"index 1"), Digest.of(b"index 2")]
NAMES = [
    "example.com/x:1",
    "example.com/x:2",
    "docker.io/library/y:latest",
    f"example.com/x@{TARGETS[0]}",
    "oci:/srv/x:v1",
]
OWNERS = ["user", "config", "rebuild"]
SUBJECTS = [*NAMES, *(str(image.manifest) for image in IMAGES)]
FAULT = LayerFault(kind=FaultKind.DAMAGED, reason="a bit")

images = st.sampled_from(IMAGES)
layers = st.sampled_from(LAYERS)
names = st.lists(st.sampled_from(NAMES), max_size=2)
subjects = st.lists(st.sampled_from(SUBJECTS), max_size=2)
owners = st.sampled_from(OWNERS)
pulling = st.tuples(st.just("pull"), images, st.sampled_from(NAMES), st.sampled_from(TARGETS))
STEPS = st.one_of(
    pulling,
    pulling,
    pulling,
    st.tuples(st.just("remove_names"), names, st.lists(images, max_size=1)),
    st.tuples(st.just("remove_image"), images),
    st.tuples(st.just("adopt_image"), images),
    st.tuples(st.just("pin"), subjects, owners),
    st.tuples(st.just("unpin"), subjects, owners),
    st.tuples(st.just("pin_only"), subjects, owners),
    st.tuples(st.just("forget_layer"), layers),
    st.tuples(st.just("add_layer"), layers),
    st.tuples(st.just("damage"), layers),
    st.tuples(st.just("sweep")),
    st.tuples(st.just("drop_dangling")),
)


async def take(records, kind, *arguments):
    match kind:
        case "pull":
            image, name, target = arguments
            for layer in image.layers:
                await records.add_layer(layer)
            await records.add_image(image, name, target)
        case "remove_names":
            removed, unnamed = arguments
            await records.remove_names(removed, [image.manifest for image in unnamed])
        case "damage":
            stored = await records.layer(arguments[0].digest)
            if stored is not None:
                await records.mark_damaged(stored, FAULT)
        case "forget_layer":
            await records.forget_layer(arguments[0].digest)
        case "sweep":
            await records.sweep(dict)
        case "remove_image":
            await records.remove_image(arguments[0].manifest)
        case _:
            await getattr(records, kind)(*arguments)


async def follow(steps, seen):
    with tempfile.TemporaryDirectory() as directory:
        async with open_store(Path(directory) / "store") as store:
            catalog = Catalog(store.images, AMD64)
            for step in steps:
                await take(store.records, *step)
                fresh = await reloaded(store.records)
                assert catalog.images() == fresh.images(), step
                durable = await store.records.images()
                assert {i.manifest: i for i in store.images} == {i.manifest: i for i in durable}
                for text in NAMES:
                    assert found(catalog, text) == found(fresh, text), (step, text)
                for image in catalog.images():
                    seen.add(image.is_pinned)
                    for text in (str(image.id), *image.repo_tags, *image.repo_digests):
                        assert catalog.resolve(text) == image


def found(catalog, text) -> list[ImageRecord]:
    return list(catalog.search(text, is_listed=False).images)


def test_after_every_change_the_catalog_is_what_the_records_say():
    seen = set()

    @given(st.lists(STEPS, max_size=12))
    def check(steps):
        trio.run(partial(follow, steps, seen))

    check()
    assert seen == {True, False}, "some images were pinned, some were not"
