"""Archives of images: what comes in, under which names, and what leaves nothing behind."""

from imgvol.errors import InvalidDocument, NoMatchingPlatform
from imgvol.images.importing import NO_NAME
from imgvol.images.pull import PullProgress
from imgvol.view.paths import resolve
from support import images
from support.bundles import Bundle
from support.images import Image, Layer, directory, file, sha256
from support.importing import assert_empty, import_into, names_of, open_service, refused

LARGE = bytes(range(256)) * 8192
BASE = Layer([directory("etc"), file("etc/base", b"base"), file("large", LARGE)], "none")
TOP = Layer([file("etc/top", b"top")], "gzip")
ONE = Image([BASE, TOP])
TWO = Image([BASE, Layer([file("etc/two", b"two")], "zstd")], config={"Env": ["A=1"]})
ARM = Image([Layer([file("arm", b"arm")], "gzip")], architecture="arm64")
APP = "docker.io/library/app:1"


def layout(*, name=APP, tag=""):
    bundle = Bundle()
    bundle.list(bundle.manifest(ONE), name, tag)
    return bundle


def saved():
    bundle = Bundle()
    bundle.save(ONE, "app:1")
    return bundle


async def test_all_images_and_all_names_come_in_and_are_read(tmp_path):
    bundle = Bundle()
    one = bundle.manifest(ONE)
    bundle.list(one, APP)
    bundle.list(one, "docker.io/library/app:latest")
    bundle.list(bundle.index([bundle.manifest(TWO), bundle.manifest(ARM)]), "example.com/two:2")
    path = bundle.write(tmp_path / "a.tar")
    report, _ = await import_into(tmp_path / "store", path)
    assert names_of(report) == {
        (APP, "linux/amd64"),
        ("docker.io/library/app:latest", "linux/amd64"),
        ("example.com/two:2", "linux/amd64"),
        ("example.com/two:2", "linux/arm64"),
    }
    assert report.passed_over == ()
    path.unlink()
    async with open_service(tmp_path / "store") as (service, _):
        image = await service.find("app:1", platform="linux/amd64")
        assert str(image.id) == sha256(ONE.config_bytes())
        assert image.is_stored
        async with service.open_view(image) as view:
            assert bytes(await view.read(resolve(view.tree, b"/large"), 0, 1 << 30)) == LARGE
        arm = await service.find("example.com/two:2", platform="linux/arm64")
        assert str(arm.id) == sha256(ARM.config_bytes())


async def test_what_docker_saves_links_included(tmp_path):
    bundle = saved()
    shared = f"{BASE.diff_id.partition(':')[2]}/layer.tar"
    bundle.members["two/layer.tar"] = f"../{shared}"
    bundle.members["three/layer.tar"] = f"={shared}"
    bundle.members["top.tar"] = TWO.layers[1].tar
    bundle.save(TWO, "two:1", "two:2", layers=["two/layer.tar", "top.tar"])
    again = Image(TWO.layers, config={"Env": ["A=2"]})
    bundle.save(again, "three", layers=["three/layer.tar", "top.tar"])
    report, found = await import_into(tmp_path / "store", bundle.write(tmp_path / "a.tar"))
    assert set(found) == {
        APP,
        *(f"docker.io/library/{n}" for n in ("two:1", "two:2", "three:latest")),
    }
    assert str(found["docker.io/library/three:latest"].id) == sha256(again.config_bytes())
    assert report.passed_over == ()


async def test_a_layout_is_read_as_one_even_beside_a_manifest_json(tmp_path):
    bundle = layout(name="example.com/layout:1")
    bundle.save(TWO, "docker:1")
    _, found = await import_into(tmp_path / "store", bundle.write(tmp_path / "a.tar"))
    assert set(found) == {"example.com/layout:1"}


async def test_a_directory_is_a_layout_too(tmp_path):
    path = images.write_layout(tmp_path / "layout", {"v1": ONE})
    _, found = await import_into(tmp_path / "store", path, base_name="example.com/app")
    assert set(found) == {"example.com/app:v1"}


async def test_blobs_of_other_platforms_may_be_missing(tmp_path):
    bundle = Bundle()
    arm = bundle.manifest(ARM, without=[0])
    absent = {**bundle.manifest(TWO), "digest": sha256(b"absent")}
    bundle.list(bundle.index([bundle.manifest(ONE), arm, absent]), APP)
    report, _ = await import_into(tmp_path / "store", bundle.write(tmp_path / "a.tar"))
    assert names_of(report) == {(APP, "linux/amd64")}
    assert [(one.what, one.is_whole) for one in report.passed_over] == [
        (f"{APP} for linux/arm64", False),
        (f"{APP} for linux/amd64", False),
    ]


async def test_an_image_of_which_nothing_is_complete_is_told_of(tmp_path):
    bundle = layout()
    bundle.list(bundle.manifest(ARM, without=[0]), "example.com/broken:1")
    report, found = await import_into(tmp_path / "store", bundle.write(tmp_path / "a.tar"))
    assert set(found) == {APP}
    (missing,) = report.passed_over
    assert (missing.what, missing.is_whole) == ("example.com/broken:1", True)
    assert "lacks a layer" in missing.reason


async def test_an_archive_without_one_complete_image_is_refused(tmp_path):
    bundle = Bundle()
    bundle.list(bundle.manifest(ONE, without=[1]), APP)
    await refused(tmp_path, bundle, InvalidDocument, "lacks a layer")


async def test_only_wanted_platforms(tmp_path):
    bundle = Bundle()
    bundle.list(bundle.index([bundle.manifest(ONE), bundle.manifest(ARM)]), APP)
    path = bundle.write(tmp_path / "a.tar")
    report, _ = await import_into(tmp_path / "store", path, platforms=["linux/arm64"])
    assert names_of(report) == {(APP, "linux/arm64")}
    await refused(tmp_path / "other", path, NoMatchingPlatform, platforms=["linux/s390x"])


async def test_names_come_from_the_archive_or_from_a_base_name(tmp_path):
    bundle = Bundle()
    bundle.list(bundle.manifest(ONE), tag="v1")
    bundle.list(bundle.manifest(TWO), "quay.io/two", tag="v2")
    bundle.list(bundle.manifest(ARM), tag="ghcr.io/arm:v3")
    path = bundle.write(tmp_path / "a.tar")
    report, found = await import_into(tmp_path / "one", path)
    assert set(found) == {"quay.io/two:latest", "ghcr.io/arm:v3"}
    assert [(o.what, o.reason, o.is_whole) for o in report.passed_over] == [("v1", NO_NAME, True)]
    report, found = await import_into(tmp_path / "two", path, base_name="app", digests=True)
    digest = sha256(ONE.manifest_bytes())
    assert {APP.replace(":1", ":v1"), f"docker.io/library/app@{digest}"} < set(found)
    assert f"docker.io/library/app@{sha256(TWO.manifest_bytes())}" in found
    assert report.passed_over == ()


async def test_what_has_no_name_comes_in_by_digest_or_with_a_pin(tmp_path):
    bundle = Bundle()
    bundle.save(ONE)
    path = bundle.write(tmp_path / "a.tar")
    report, found = await import_into(tmp_path / "one", path)
    assert (report.images, found) == ((), {})
    assert [(one.reason, one.is_whole) for one in report.passed_over] == [(NO_NAME, True)]
    assert_empty(tmp_path / "one")

    report, found = await import_into(tmp_path / "two", path, digests=True)
    (name,) = found
    assert name.startswith("docker.io/library/import-2")
    assert name.endswith(f"@{report.images[0].manifest}")

    async with open_service(tmp_path / "three") as (service, store):
        report = await service.importer.import_archive(
            str(path), pin_owner="preload", progress=PullProgress()
        )
        (image,) = report.images
        assert image.names == ()
        assert (await service.collect()).removed == ()
        assert (await service.find(str(image.id))).manifest == image.manifest
        await store.records.pin_only([], "preload")
        assert (await service.collect()).removed != ()
        assert await store.records.images() == []


async def test_a_pin_keeps_an_image_whose_name_moves_on(tmp_path):
    one, two = layout().write(tmp_path / "1.tar"), Bundle()
    two.list(two.manifest(TWO), APP)
    async with open_service(tmp_path / "store") as (service, _):
        importer, options = service.importer, {"progress": PullProgress()}
        first = await importer.import_archive(str(one), pin_owner="preload", **options)
        await importer.import_archive(str(two.write(tmp_path / "2.tar")), **options)
        assert (await service.find("app:1", platform="linux/amd64")).id != first.images[0].id
        assert (await service.find(str(first.images[0].id))).names == ()


async def test_a_name_of_another_image_is_its_own_no_more(tmp_path):
    two = Bundle()
    two.list(two.manifest(TWO), APP)
    async with open_service(tmp_path / "store") as (service, store):
        for number, bundle in enumerate((layout(), two)):
            path = bundle.write(tmp_path / f"{number}.tar")
            await service.importer.import_archive(str(path), progress=PullProgress())
        (image,) = await store.records.images()
        assert str(image.id) == sha256(TWO.config_bytes())
        assert len(await store.records.layers()) == 2


async def test_linked_layers_are_read_where_they_lie(tmp_path):
    path = saved().write(tmp_path / "a.tar")
    async with open_service(tmp_path / "store") as (service, _):
        await service.importer.import_archive(str(path), link=True, progress=PullProgress())
        image = await service.find("app:1", platform="linux/amd64")
        assert [layer.format for layer in image.layers] == ["in place"] * 2
        async with service.open_view(image) as view:
            assert bytes(await view.read(resolve(view.tree, b"/large"), 0, 1 << 30)) == LARGE
        # Again without: then the store has them.
        await service.importer.import_archive(str(path), progress=PullProgress())
        assert (await service.find("app:1", platform="linux/amd64")).is_stored


async def test_progress_counts_every_layer_once(tmp_path):
    bundle = layout()
    bundle.list(bundle.manifest(TWO), "example.com/two:2")
    path = bundle.write(tmp_path / "a.tar")
    async with open_service(tmp_path / "store") as (service, _):
        progress = PullProgress()
        await service.importer.import_archive(str(path), progress=progress)
        assert {layer.digest for layer in progress.layers} == {
            layer.digest for layer in (*ONE.layers, *TWO.layers)
        }
        assert sum(layer.received for layer in progress.layers) == sum(
            layer.size for layer in progress.layers
        )
