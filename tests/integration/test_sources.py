"""Sources over what real programs write: skopeo, umoci, buildah and a registry."""

import json

import pytest

from imgvol import limits
from imgvol.layers.compression import iter_decoded
from imgvol.oci.digest import Digest
from imgvol.oci.image_config import parse_image_config
from imgvol.oci.manifest import Index, Manifest, parse_manifest, select_manifests
from imgvol.oci.platform import Platform, only
from imgvol.registry.credentials import NoCredentials
from imgvol.registry.hosts import RegistryOptions
from imgvol.sources.open import open_source
from imgvol.sources.parse import parse_image_argument
from support.images import Image, Layer, directory, file, push, symlink, write_layout
from support.programs import require, run
from support.registry import running_registry

pytestmark = pytest.mark.servers

IMAGE = Image(
    [
        Layer([directory("etc"), file("etc/motd", b"hello " * 50_000)], "gzip"),
        Layer([symlink("etc/link", "motd"), file("big", bytes(1 << 20))], "gzip"),
    ]
)
MATCHER = only(Platform("linux", "amd64"))


async def verified_diff_ids(text: str, **options) -> list[str]:
    """Reads an image to its last byte, checks all digests, and returns the diff IDs."""
    async with open_source(parse_image_argument(text), **options) as source:
        descriptor = await source.resolve()
        document = await read_manifest(source, descriptor)
        while isinstance(document, Index):
            document = await read_manifest(source, select_manifests(document, MATCHER)[0])
        assert isinstance(document, Manifest)
        raw = await source.read_document(document.config, max_size=limits.CONFIG_SIZE)
        config = parse_image_config(raw, expected=document.config.digest)
        for layer, diff_id in zip(document.layers, config.diff_ids, strict=True):
            with source.open_blob(layer) as reader:
                blob = b"".join(reader.iter_pieces())
            assert layer.digest.matches(blob)
            assert diff_id.matches(b"".join(iter_decoded([blob])))
            with source.open_blob(layer, offset=100) as reader:
                assert b"".join(reader.iter_pieces()) == blob[100:]
        return [str(diff_id) for diff_id in config.diff_ids]


async def read_manifest(source, descriptor):
    raw = await source.read_document(descriptor, max_size=limits.MANIFEST_SIZE)
    return parse_manifest(raw, media_type=descriptor.media_type, expected=descriptor.digest)


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    require("docker-registry", "skopeo")
    with running_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    return write_layout(tmp_path_factory.mktemp("layout"), {"v1": IMAGE})


def expected() -> list[str]:
    return [layer.diff_id for layer in IMAGE.layers]


@pytest.mark.parametrize(
    ("destination", "selector"),
    [
        ("oci:{}:v1", ":v1"),
        ("oci-archive:{}:v1", ":v1"),
        ("oci-archive:{}", ""),
        ("docker-archive:{}:example.com/app:v1", ":example.com/app:v1"),
        ("docker-archive:{}:example.com/app:v1", ":@0"),
        ("docker-archive:{}:example.com/app:v1", ""),
    ],
)
async def test_what_skopeo_writes(layout, tmp_path, destination, selector):
    require("skopeo")
    path = tmp_path / "copy"
    run(
        "skopeo", "--insecure-policy", "copy", "--quiet",
        f"oci:{layout}:v1", destination.format(path),
    )  # fmt: skip
    scheme = destination.partition(":")[0]
    assert await verified_diff_ids(f"{scheme}:{path}{selector}") == expected()


@pytest.mark.parametrize("program", ["gzip", "zstd"])
async def test_archive_of_skopeo_compressed_as_a_whole(layout, tmp_path, program):
    require("skopeo", program)
    path = tmp_path / "copy.tar"
    run(
        "skopeo", "--insecure-policy", "copy", "--quiet",
        f"oci:{layout}:v1", f"docker-archive:{path}:example.com/app:v1",
    )  # fmt: skip
    run(program, "-q", path)
    packed = next(tmp_path.glob("copy.tar.*"))
    assert await verified_diff_ids(f"docker-archive:{packed}") == expected()


async def test_several_images_in_one_docker_archive(layout, tmp_path, short_path):
    require("podman", "skopeo")
    other = Image([IMAGE.layers[0]], config={"Env": ["A=1"]})
    write_layout(tmp_path / "other", {"v2": other})
    store = (
        "--root",
        short_path / "root",
        "--runroot",
        short_path / "run",
        "--storage-driver",
        "vfs",
    )
    for source, name in [
        (f"{layout}:v1", "example.com/app:v1"),
        (f"{tmp_path}/other:v2", "example.com/app:v2"),
    ]:
        copy = f"containers-storage:[vfs@{short_path}/root+{short_path}/run]{name}"
        run("skopeo", "--insecure-policy", "copy", "--quiet", f"oci:{source}", copy)
    path = tmp_path / "both.tar"
    names = ("example.com/app:v1", "example.com/app:v2")
    run("podman", *store, "save", "--quiet", "--multi-image-archive", "-o", path, *names)
    assert await verified_diff_ids(f"docker-archive:{path}:{names[0]}") == expected()
    assert await verified_diff_ids(f"docker-archive:{path}:{names[1]}") == expected()[:1]


async def test_what_umoci_writes(tmp_path):
    require("umoci")
    layout = tmp_path / "layout"
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", f"{layout}:v1")
    (tmp_path / "file").write_bytes(b"content" * 1000)
    run("umoci", "insert", "--image", f"{layout}:v1", tmp_path / "file", "/file")
    run("umoci", "tag", "--image", f"{layout}:v1", "v2")
    diff_ids = await verified_diff_ids(f"oci:{layout}:v2")
    assert len(diff_ids) == 1
    assert await verified_diff_ids(f"oci:{layout}:v1") == diff_ids


@pytest.mark.parametrize("scheme", ["oci", "oci-archive", "docker-archive"])
async def test_what_buildah_writes(tmp_path, scheme):
    require("buildah")
    store = ("--root", tmp_path / "root", "--runroot", tmp_path / "run", "--storage-driver", "vfs")
    (tmp_path / "file").write_bytes(b"content" * 1000)
    container = run("buildah", *store, "from", "scratch").stdout.strip()
    run("buildah", *store, "add", container, tmp_path / "file", "/file")
    run("buildah", *store, "commit", "--quiet", container, "example.com/app:v1")
    path = tmp_path / "copy"
    run(
        "buildah",
        *store,
        "push",
        "--quiet",
        "example.com/app:v1",
        f"{scheme}:{path}:example.com/app:v1",
    )
    assert len(await verified_diff_ids(f"{scheme}:{path}")) == 1
    assert len(await verified_diff_ids(f"{scheme}:{path}:example.com/app:v1")) == 1


async def test_image_of_a_registry(layout, registry):
    reference = registry.reference("sources:v1")
    push(layout, "v1", reference)
    options = {"options": RegistryOptions(plain_http=True), "credentials": NoCredentials()}
    assert await verified_diff_ids(reference, **options) == expected()
    digest = Digest.of(IMAGE.manifest_bytes())
    assert await verified_diff_ids(f"{reference}@{digest}", **options) == expected()


async def test_skopeo_agrees_on_the_digest(layout):
    require("skopeo")
    shown = json.loads(run("skopeo", "inspect", f"oci:{layout}:v1").stdout)
    async with open_source(parse_image_argument(f"oci:{layout}:v1")) as source:
        assert str((await source.resolve()).digest) == shown["Digest"]
