"""The catalog: what is listed, under which names, and what a text means."""

import pytest

from imgvol import limits
from imgvol.content.records import LeaseRecord, VolumeRecord
from imgvol.content.store import open_store
from imgvol.errors import Conflict, NotFound
from imgvol.images.catalog import Catalog
from imgvol.oci.digest import Digest
from support.catalogs import AMD64, an_image, reloaded
from support.records import layer_record

TARGET = Digest.of(b"an index")
OTHER = Digest.of(b"another index")
BUSYBOX = "docker.io/library/busybox:latest"


@pytest.fixture
async def store(tmp_path):
    async with open_store(tmp_path) as store:
        yield store


@pytest.fixture
def catalog(store):
    return Catalog(store.images, AMD64)


async def add(store, image, name, target=TARGET):
    for layer in image.layers:
        await store.records.add_layer(layer)
    return await store.records.add_image(image, name, target)


NAMES = ("busybox", "library/busybox", "docker.io/busybox", "docker.io/library/busybox")
SPELLINGS = [
    str(an_image("busybox").id),
    *NAMES,
    *(f"{name}:latest" for name in NAMES),
    *(f"{name}@{TARGET}" for name in NAMES),
]


@pytest.mark.parametrize(
    "text",
    [
        *SPELLINGS,
        an_image("busybox").id.encoded,
        an_image("busybox").id.encoded[: limits.SHORT_ID],
        f"sha256:{an_image('busybox').id.encoded[:20]}",
        "index.docker.io/busybox",
        f"busybox:1@{TARGET}",
    ],
)
async def test_every_spelling_means_the_same_image(store, catalog, text):
    assert len(set(SPELLINGS)) == 13
    image = await add(store, an_image("busybox", user="www-data"), BUSYBOX)
    await add(store, an_image("other"), "docker.io/library/other:latest", OTHER)
    found = catalog.resolve(text)
    assert found.id == image.id
    assert found.repo_tags == (BUSYBOX,)
    assert found.repo_digests == (f"docker.io/library/busybox@{TARGET}",)
    assert found.manifests == (image.manifest,)
    assert (found.size, found.user, found.is_pinned) == (image.size, "www-data", False)


@pytest.mark.parametrize(
    ("text", "as_name", "as_id"),
    [
        ("randomid", "nothing is called docker.io/library/randomid:latest", "12 or more digits"),
        ("busybox:2", "nothing is called docker.io/library/busybox:2", "12 or more digits"),
        ("0" * 64, "a whole digest is an ID", "no image has this ID"),
        ("deadbeefdead", "nothing is called docker.io/library/deadbeefdead", "no image has"),
        ("Not A Name!", "must be lowercase", "12 or more digits"),
        ("", "invalid reference format", "12 or more digits"),
        (str(an_image("busybox").manifest), "a whole digest is an ID", "no image has this ID"),
        (an_image("busybox").id.encoded[:11], "nothing is called", "12 or more digits"),
    ],
)
async def test_what_is_not_here_has_both_reasons(store, catalog, text, as_name, as_id):
    await add(store, an_image("busybox"), BUSYBOX)
    with pytest.raises(NotFound) as refused:
        catalog.resolve(text)
    assert as_name in refused.value.fields["as_name"]
    assert as_id in refused.value.fields["as_id"]


async def test_a_name_goes_before_the_beginning_of_an_id(store, catalog):
    image = await add(store, an_image("one"), "docker.io/library/one:latest")
    named = image.id.encoded[:13]
    other = await add(store, an_image("two"), f"docker.io/library/{named}:latest", OTHER)
    assert catalog.resolve(named).id == other.id
    assert catalog.resolve(f"sha256:{named}").id == image.id
    assert catalog.resolve(image.id.encoded).id == image.id


async def test_the_beginning_of_several_ids_is_refused(store, catalog, monkeypatch):
    ids = [Digest("sha256", f"{'ab' * 10}{digit:044}") for digit in range(2)]
    for image_id in ids:
        monkeypatch.setattr(Digest, "of", lambda _data, image_id=image_id: image_id)
        await add(store, an_image("x"), f"docker.io/library/x:{image_id.encoded[-1]}")
    monkeypatch.undo()
    assert len(catalog.images()) == 2
    with pytest.raises(Conflict, match="several images"):
        catalog.resolve("ab" * 8)
    assert catalog.resolve(ids[1].encoded).id == ids[1]


async def test_a_pull_by_digest_gives_no_tag(store, catalog):
    await add(store, an_image("x"), f"example.com/x@{TARGET}")
    (image,) = catalog.images()
    assert (image.repo_tags, image.repo_digests) == ((), (f"example.com/x@{TARGET}",))
    await add(store, an_image("x"), "example.com/x:1")
    (image,) = catalog.images()
    assert image.repo_tags == ("example.com/x:1",)
    assert image.repo_digests == (f"example.com/x@{TARGET}",)


async def test_tags_of_one_image_are_one_image_and_sorted(store, catalog):
    names = ["example.com/z:1", "docker.io/library/b:2", "docker.io/library/a:3"]
    for name in names:
        await add(store, an_image("x"), name)
    (image,) = catalog.images()
    assert image.repo_tags == tuple(sorted(names))
    assert len(image.repo_digests) == 3
    for name in (*image.repo_tags, *image.repo_digests, str(image.id)):
        assert catalog.resolve(name) == image


async def test_manifests_of_one_config_are_one_image(store, catalog):
    await add(store, an_image("gzip", config="c"), "example.com/x:gzip")
    later = await add(store, an_image("zstd", config="c", pulled_at=2.0), "example.com/x:zstd")
    (image,) = catalog.images()
    assert image.manifests == (later.manifest, an_image("gzip").manifest)
    assert image.repo_tags == ("example.com/x:gzip", "example.com/x:zstd")
    assert catalog.resolve(str(image.id)) == image


async def test_a_name_means_this_machines_platform_and_is_listed_there_only(store, catalog):
    amd64 = await add(store, an_image("amd64"), BUSYBOX)
    arm64 = await add(store, an_image("arm64", platform="linux/arm64"), BUSYBOX)
    assert catalog.resolve("busybox").id == amd64.id
    assert catalog.resolve(str(arm64.id)).repo_tags == ()
    # What was pulled for another platform on purpose is meant once it is the only one.
    await store.records.remove_names([], [amd64.manifest])
    assert catalog.resolve("busybox").id == arm64.id
    assert catalog.resolve(str(arm64.id)).repo_tags == (BUSYBOX,)


async def test_a_name_of_two_foreign_platforms_means_none(store, catalog):
    for platform in ("linux/arm64", "linux/s390x"):
        image = await add(store, an_image(platform, platform=platform), BUSYBOX)
        assert catalog.resolve(str(image.id)).id == image.id
    with pytest.raises(NotFound):
        catalog.resolve("busybox")


async def test_local_sources_are_names_but_no_references(store, catalog):
    image = await add(store, an_image("x"), "oci:/srv/images:v1")
    found = catalog.resolve("oci:/srv/images:v1")
    assert (found.id, found.repo_tags, found.repo_digests) == (image.id, (), ())
    assert catalog.names_of(found) == ("oci:/srv/images:v1",)


async def test_a_name_that_moved_lists_the_old_image_no_more(store, catalog):
    old = await add(store, an_image("old"), BUSYBOX)
    new = await add(store, an_image("new"), BUSYBOX, OTHER)
    assert catalog.resolve("busybox").id == new.id
    assert [image.id for image in catalog.images()] == [new.id]
    for text in (str(old.id), f"busybox@{TARGET}"):
        with pytest.raises(NotFound):
            catalog.resolve(text)


async def test_what_only_a_volume_or_a_lease_keeps_is_not_listed(store, catalog):
    image = await add(store, an_image("x"), BUSYBOX)
    lease = LeaseRecord(id="pod", created_at=1.0)
    await store.records.ensure_lease(lease, images=[image.manifest])
    await store.records.remove_names(["docker.io/library/busybox:latest"])
    await store.records.sweep(dict)
    assert store.images.get(image.manifest) is not None
    assert catalog.images() == ()
    with pytest.raises(NotFound):
        catalog.resolve(str(image.id))
    found = catalog.search(str(image.id), is_listed=False)
    assert [record.manifest for record in found.images] == [image.manifest]


async def test_an_image_without_a_layer_is_not_here_until_it_has_it_again(store, catalog):
    layer = layer_record("l")
    image = await add(store, an_image("x", layers=[layer]), BUSYBOX)
    await store.records.forget_layer(layer.digest)
    assert catalog.images() == ()
    await store.records.add_layer(layer)
    assert catalog.resolve("busybox").id == image.id


async def test_an_image_is_pinned_as_long_as_anybody_pins_any_of_its_names(store, catalog):
    image = await add(store, an_image("x"), "example.com/x:1")
    await add(store, an_image("x"), "example.com/x:2")
    records = store.records
    await records.pin(["example.com/x:1", "example.com/x:2"], "user")
    await records.pin_only(["example.com/x:2", "example.com/later:1"], "config")
    steps = [
        (records.unpin, (["example.com/x:1", "example.com/x:2"], "user"), True),
        (records.pin_only, ([], "config"), False),
        (records.pin, ([str(image.manifest)], "rebuild"), True),
        (records.remove_names, (["example.com/x:1", "example.com/x:2"],), True),
        (records.unpin, ([str(image.manifest)], "rebuild"), None),
    ]
    for step, arguments, is_pinned in steps:
        await step(*arguments)
        listed = [found.is_pinned for found in catalog.images()]
        assert listed == ([] if is_pinned is None else [is_pinned])
        assert (await reloaded(records)).images() == catalog.images()


async def test_a_pin_follows_its_name(store, catalog):
    await add(store, an_image("old"), BUSYBOX)
    await store.records.pin([BUSYBOX], "user")
    new = await add(store, an_image("new"), BUSYBOX, OTHER)
    assert [(image.id, image.is_pinned) for image in catalog.images()] == [(new.id, True)]


async def test_everybody_is_told_what_becomes_of_images(store, catalog):
    await add(store, an_image("before"), "example.com/before:1")
    told = []
    catalog.publish = told.append
    image = await add(store, an_image("x"), "example.com/x:1")
    await add(store, an_image("x"), "example.com/x:2")
    await add(store, an_image("x"), "example.com/x:2")
    await store.records.pin(["example.com/x:2"], "user")
    await store.records.remove_names(["example.com/x:1", "example.com/x:2"])
    assert [(event.kind, event.id, event.image) for event in told] == [
        ("image.created", image.id, "example.com/x:1"),
        ("image.updated", image.id, "example.com/x:1"),
        ("image.updated", image.id, "example.com/x:1"),
        ("image.removed", image.id, "example.com/x:1"),
    ]
    assert told[1].data["repo_tags"] == ["example.com/x:1", "example.com/x:2"]
    assert [event.data["is_pinned"] for event in told[1:3]] == [False, True]


async def test_a_transaction_that_fails_changes_nothing(store, catalog):
    await add(store, an_image("x"), BUSYBOX)
    before = catalog.images()

    def spoil(db):
        db.execute("DELETE FROM name")
        raise KeyError

    with pytest.raises(KeyError):
        await store.records._database.run(spoil)
    assert catalog.images() == before == (await reloaded(store.records)).images()


async def test_a_restart_keeps_what_was_known(tmp_path):
    async with open_store(tmp_path) as store:
        await add(store, an_image("x", user="1000:100"), BUSYBOX)
        await add(store, an_image("y"), f"example.com/y@{OTHER}", OTHER)
        await store.records.pin([BUSYBOX], "user")
        before = Catalog(store.images, AMD64).images()
        assert len(before) == 2
    async with open_store(tmp_path) as store:
        assert Catalog(store.images, AMD64).images() == before


async def test_a_mounted_image_that_lost_its_name_is_not_listed(store, catalog):
    image = await add(store, an_image("x"), BUSYBOX)
    await store.records.add_volume(
        VolumeRecord(
            id="v",
            sandbox="s",
            image=BUSYBOX,
            manifest=image.manifest,
            target=None,
            options="{}",
            patience=0.0,
            view_id=image.view_id,
            created_at=1.0,
            boot_id="b",
        )
    )
    await store.records.remove_names([BUSYBOX])
    await store.records.sweep(dict)
    assert catalog.images() == ()
    assert await store.records.image(image.manifest) is not None


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE image SET size = 7",
        "DELETE FROM image",
        "INSERT INTO image_layer SELECT manifest, 5, 'sha256:{lost}' FROM image",
        "UPDATE image_layer SET digest = 'sha256:{lost}'",
        "DELETE FROM image_layer",
        "UPDATE name SET name = 'example.com/x:2'",
        "UPDATE layer SET size = 7",
        "DELETE FROM layer",
        "UPDATE pin SET subject = 'nobody'",
        "DELETE FROM pin",
        "INSERT OR REPLACE INTO name SELECT name, platform, target, '{unnamed}' FROM name",
    ],
)
async def test_whoever_writes_and_whatever_is_known_at_once(store, catalog, statement):
    """Also of an image without a name, which nothing but its own row tells of."""
    await add(store, an_image("named", layers=[layer_record("l")]), "example.com/x:1")
    await add(store, an_image("unnamed"), "example.com/y:1")
    await store.records.remove_names(["example.com/y:1"])
    await store.records.pin(["example.com/x:1"], "user")
    before = set(store.images)

    statement = statement.format(unnamed=an_image("unnamed").manifest, lost="0" * 64)
    await store.records._database.run(lambda db: db.execute(statement))
    assert set(store.images) == set(await store.records.images()) != before
    assert catalog.images() == (await reloaded(store.records)).images()
