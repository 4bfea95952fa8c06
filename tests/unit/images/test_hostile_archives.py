"""Archives that are cut off, lie, or are made to hurt: refused as a whole, and nothing is left."""

import tarfile

import pytest

from imgvol import limits
from imgvol.errors import (
    ContentError,
    DigestMismatch,
    InvalidArgument,
    InvalidDocument,
    InvalidReference,
    LimitExceeded,
    NotFound,
    Unsupported,
)
from support.bundles import Bundle
from support.images import OCI, Image, Layer, directory, file, sha256, symlink, to_json
from support.importing import assert_empty, import_into, open_service, refused

LAYERS = [
    Layer([directory("etc"), file("etc/a", b"a" * 70_000), symlink("b", "etc/a")], "none"),
    Layer([file("etc/b", bytes(range(256)) * 40)], "gzip"),
]
ONE = Image(LAYERS)
APP = "docker.io/library/app:1"


def layout(image=ONE):
    bundle = Bundle()
    bundle.list(bundle.manifest(image), APP)
    return bundle


def saved(image=ONE):
    bundle = Bundle()
    bundle.save(image, "app:1")
    return bundle


def blob_of(layer):
    return f"blobs/sha256/{layer.digest.partition(':')[2]}"


def flipped(data: bytes) -> bytes:
    """Other bytes in the content of a file."""
    return data[:4000] + bytes([data[4000] ^ 1]) + data[4001:]


def unfinished(bundle) -> bytes:
    """An archive without its end."""
    data = bundle.tar().rstrip(b"\0")
    return data + bytes(-len(data) % 512)


@pytest.mark.fault("F96")
@pytest.mark.parametrize("make", [layout, saved])
async def test_cut_off_anywhere(tmp_path, make):
    whole = make().tar().rstrip(b"\0")
    for part in range(20):
        path = tmp_path / "cut.tar"
        path.write_bytes(whole[: len(whole) * part // 20])
        await refused(tmp_path / "s", path, ContentError)


@pytest.mark.fault("F96")
async def test_a_layer_that_is_not_what_its_digest_says(tmp_path):
    bundle = layout()
    bundle.members[blob_of(LAYERS[0])] = flipped(LAYERS[0].blob)
    await refused(tmp_path, bundle, DigestMismatch)
    await refused(tmp_path, bundle, DigestMismatch, link=True)


async def test_a_layer_that_is_not_what_its_diff_id_says(tmp_path):
    bundle = saved()
    path = next(name for name in bundle.members if name.endswith("layer.tar"))
    bundle.members[path] = flipped(bundle.members[path])
    await refused(tmp_path, bundle, DigestMismatch)


async def test_one_bad_image_refuses_the_good_ones_beside_it(tmp_path):
    bundle, bad = layout(), Layer([file("x", b"x" * 3000)], "none")
    bundle.list(bundle.manifest(Image([bad])), "example.com/bad:1")
    bundle.members[blob_of(bad)] = flipped(bad.blob)
    await refused(tmp_path, bundle, DigestMismatch)


async def test_a_document_that_is_not_what_its_digest_says(tmp_path):
    bundle = layout()
    name = f"blobs/sha256/{sha256(ONE.config_bytes()).partition(':')[2]}"
    bundle.members[name] = ONE.config_bytes().replace(b"amd64", b"arm64")
    await refused(tmp_path, bundle, DigestMismatch)


async def test_a_blob_of_another_size(tmp_path):
    bundle = layout()
    bundle.members[blob_of(LAYERS[1])] += b"more"
    await refused(tmp_path, bundle, DigestMismatch, "another size")


@pytest.mark.fault("F96")
async def test_what_a_manifest_json_names_has_to_be_there(tmp_path):
    for name, match in [(".json", "lacks its image config"), ("layer.tar", "lacks a layer")]:
        bundle = saved()
        gone = next(member for member in bundle.members if member.endswith(name))
        del bundle.members[gone]
        await refused(tmp_path, bundle, InvalidDocument, match)


@pytest.mark.fault("F96")
async def test_links_in_a_circle_and_to_nowhere(tmp_path):
    for target, match in [("a/layer.tar", "too many links"), ("../none", "lacks a layer")]:
        bundle = Bundle()
        bundle.members |= {"a/layer.tar": f"../{target}", "b": LAYERS[1].tar}
        bundle.save(ONE, "app:1", layers=["a/layer.tar", "b"])
        await refused(tmp_path, bundle, InvalidDocument, match)


@pytest.mark.fault("F96")
@pytest.mark.parametrize("up", ["../../../../etc/passwd", "/etc/passwd", "a/../../etc/passwd"])
async def test_names_that_lead_out_are_names_inside(tmp_path, up):
    bundle = Bundle()
    bundle.save(ONE, "app:1", layers=[up, up])
    await refused(tmp_path, bundle, InvalidDocument, "lacks a layer")
    bundle.members["link"] = up
    bundle.items[0]["Layers"] = ["link", "link"]
    await refused(tmp_path, bundle, InvalidDocument, "lacks a layer")
    bundle.items[0]["Config"] = up
    await refused(tmp_path, bundle, InvalidDocument, "lacks its image config")


async def test_links_of_a_directory_are_not_followed(tmp_path):
    bundle = layout()
    root = tmp_path / "layout"
    for name, data in {**bundle.documents(), **bundle.members}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    victim = root / blob_of(LAYERS[0])
    victim.rename(tmp_path / "elsewhere")
    victim.symlink_to(tmp_path / "elsewhere")
    await refused(tmp_path, root, InvalidDocument, "symbolic links")


@pytest.mark.fault("F96")
async def test_two_images_with_one_name(tmp_path):
    bundle = layout()
    bundle.list(bundle.manifest(Image(LAYERS[1:])), APP)
    await refused(tmp_path, bundle, InvalidDocument, "same name")


async def test_a_name_with_the_digest_of_another_image_is_not_given(tmp_path):
    wanted = f"docker.io/library/app@{sha256(b'another')}"
    bundle = layout()
    bundle.list(bundle.manifest(Image(LAYERS[1:])), wanted)
    report, found = await import_into(tmp_path / "store", bundle.write(tmp_path / "a.tar"))
    assert set(found) == {APP}
    assert {one.what for one in report.passed_over} == {wanted}


@pytest.mark.parametrize("version", ["1.0.1", "2.0.0", ""])
async def test_layouts_of_another_version(tmp_path, version):
    bundle = layout()
    bundle.version = version
    await refused(tmp_path, bundle, Unsupported, "unknown version")


async def test_what_is_no_archive_of_images(tmp_path):
    bundle = Bundle(members={"etc/passwd": b"root"})
    error = await refused(tmp_path, bundle, InvalidDocument, "neither oci-layout nor manifest.json")
    assert "docker export" in error.hint
    bundle = Bundle(members={"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'})
    await refused(tmp_path, bundle, InvalidDocument, "no index.json")
    await refused(tmp_path, tmp_path / "none", NotFound)


async def test_documents_that_are_no_json(tmp_path):
    for name in ("oci-layout", "index.json", "manifest.json"):
        bundle = saved() if name == "manifest.json" else layout()
        path = tmp_path / "a.tar"
        documents = {**bundle.documents(), name: b"{"}
        path.write_bytes(Bundle(members={**bundle.members, **documents}).tar())
        await refused(tmp_path, path, InvalidDocument)


@pytest.mark.fault("F96")
async def test_documents_that_are_bombs(tmp_path):
    huge = b'{"schemaVersion":2,"manifests":[' + b" " * limits.MANIFEST_SIZE + b"]}"
    deep = b'{"schemaVersion":2,"manifests":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    many = to_json({"manifests": [0] * (limits.JSON_VALUES + 1)})
    for bomb in (huge, deep, many):
        documents = {**layout().documents(), "index.json": bomb}
        bundle = Bundle(members={**layout().members, **documents})
        await refused(tmp_path, bundle, ContentError)
    items = [{"Config": "c", "RepoTags": [], "Layers": []}] * (limits.ARCHIVE_IMAGES + 1)
    error = await refused(tmp_path, Bundle(items=items), LimitExceeded)
    assert error.fields["limit"] == "ARCHIVE_IMAGES"


async def test_indexes_nested_beyond_the_limit(tmp_path):
    bundle = Bundle()
    descriptor = bundle.manifest(ONE)
    for _ in range(limits.INDEX_DEPTH):
        descriptor = bundle.index([descriptor])
    bundle.list(descriptor, APP)
    _, found = await import_into(tmp_path / "good", bundle.write(tmp_path / "good.tar"))
    assert set(found) == {APP}
    bundle.entries.clear()
    bundle.list(bundle.index([descriptor]), APP)
    error = await refused(tmp_path, bundle, LimitExceeded)
    assert error.fields["limit"] == "INDEX_DEPTH"


@pytest.mark.parametrize(
    ("limit", "value"),
    [
        ("ARCHIVE_IMAGES", 1),
        ("ARCHIVE_DOCUMENTS", 3),
        ("ARCHIVE_DOCUMENTS_SIZE", 1000),
        ("ARCHIVE_NAMES", 1),
        ("ARCHIVE_ENTRIES", 5),
    ],
)
async def test_more_than_a_limit_allows(tmp_path, monkeypatch, limit, value):
    monkeypatch.setattr(limits, limit, value)
    bundle = layout()
    bundle.list(bundle.manifest(Image(LAYERS[1:])), "example.com/two:1")
    error = await refused(tmp_path, bundle, LimitExceeded)
    assert error.fields["limit"] == limit


async def test_a_hundred_thousand_members(tmp_path):
    path = tmp_path / "a.tar"
    header = tarfile.TarInfo("x").tobuf()
    path.write_bytes(unfinished(layout()) + header * (limits.ARCHIVE_ENTRIES - 10) + bytes(1024))
    _, found = await import_into(tmp_path / "store", path)
    assert set(found) == {APP}


@pytest.mark.fault("F96")
async def test_a_terabyte_of_nothing(tmp_path):
    path = tmp_path / "a.tar"
    info = tarfile.TarInfo("blobs/x")
    info.size = 1 << 39
    path.write_bytes(unfinished(layout()) + info.tobuf(tarfile.GNU_FORMAT))
    await refused(tmp_path, path, ContentError)
    with open(path, "r+b") as archive:
        archive.truncate(1 << 40)
    # The file is that long, and no blob of the images is: what follows the end is not read.
    assert (await import_into(tmp_path / "store", path))[1].keys() == {APP}


async def test_schema_1_and_encrypted_layers_are_told_of(tmp_path):
    old = Bundle()
    manifest = to_json({"schemaVersion": 1, "fsLayers": [], "history": []})
    old.list(old.blob(manifest, "application/vnd.docker.distribution.manifest.v1+json"), APP)
    await refused(tmp_path, old, Unsupported, "schema 1")

    secret = Layer([file("secret", b"s")], "gzip")
    secret.media_type = f"{OCI}.layer.v1.tar+gzip+encrypted"
    await refused(tmp_path, layout(Image([secret])), Unsupported, "encrypted")

    bundle = layout()
    bundle.list(bundle.manifest(Image([secret])), "example.com/secret:1")
    report, found = await import_into(tmp_path / "beside", bundle.write(tmp_path / "a.tar"))
    assert set(found) == {APP}
    (told,) = report.passed_over
    assert (told.what, told.is_whole) == ("example.com/secret:1", True)
    assert "encrypted" in told.reason


async def test_an_artifact_beside_images_does_not_take_their_place(tmp_path):
    bundle = Bundle()
    empty = bundle.blob(b"{}", f"{OCI}.empty.v1+json".replace("image.", ""))
    signature = bundle.blob(b"signature", "application/vnd.signature")
    document = {"schemaVersion": 2, "config": empty, "layers": [signature]}
    document["mediaType"] = f"{OCI}.manifest.v1+json"
    artifact = bundle.blob(to_json(document), f"{OCI}.manifest.v1+json")
    attestation = {**artifact, "platform": {"os": "unknown", "architecture": "unknown"}}
    bundle.list(bundle.index([bundle.manifest(ONE), artifact]), APP)
    bundle.list(bundle.index([attestation, bundle.manifest(ONE)]), "example.com/two:2")
    report, found = await import_into(tmp_path / "store", bundle.write(tmp_path / "a.tar"))
    assert {image.platform for image in report.images} == {"linux/amd64"}
    assert set(found) == {APP, "example.com/two:2"}
    assert [one.is_whole for one in report.passed_over] == [False]


async def test_base_names_and_platforms_that_are_none(tmp_path):
    path = layout().write(tmp_path / "a.tar")
    for base in ("app:1", f"app@{sha256(b'')}", "up/UPPER"):
        await refused(tmp_path, path, InvalidReference, base_name=base)
    await refused(tmp_path, path, InvalidArgument, platforms=["linux/amd64/v1/x/y"])


async def test_an_empty_index_is_no_error(tmp_path):
    documents = {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": to_json({"schemaVersion": 2, "manifests": []}),
    }
    path = Bundle(members=documents).write(tmp_path / "a.tar")
    report, _ = await import_into(tmp_path / "store", path)
    assert (report.images, report.passed_over) == ((), ())
    assert_empty(tmp_path / "store")


@pytest.mark.fault("F96")
async def test_names_of_before_survive_an_archive_that_is_refused(tmp_path):
    await import_into(tmp_path / "store", layout().write(tmp_path / "a.tar"))
    lie = Layer([file("x", b"x" * 3000)], "none")
    bad = layout(Image([lie]))
    bad.members[blob_of(lie)] = flipped(lie.blob)
    with pytest.raises(ContentError):
        await import_into(tmp_path / "store", bad.write(tmp_path / "bad.tar"))
    async with open_service(tmp_path / "store") as (service, store):
        image = await service.find(APP, platform="linux/amd64")
        assert str(image.id) == sha256(ONE.config_bytes())
        assert len(await store.records.layers()) == 2


async def test_every_refusal_names_the_archive(tmp_path):
    lie = Layer([file("x", b"x" * 3000)], "none")
    bad = layout(Image([lie]))
    bad.members[blob_of(lie)] = flipped(lie.blob)
    error = await refused(tmp_path, bad, DigestMismatch)
    assert error.fields["archive"] == str(tmp_path / "bad.tar")
    assert "bad.tar" in str(error)
