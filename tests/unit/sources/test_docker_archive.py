import gzip
import io
import json
import tarfile
import time
from contextlib import asynccontextmanager

import pytest
import trio
import zstandard

from imgvol import limits
from imgvol.errors import Conflict, InvalidDocument, LimitExceeded, NotFound
from imgvol.oci import media_types
from imgvol.oci.image_config import parse_image_config
from imgvol.oci.manifest import Manifest, parse_manifest
from imgvol.sources.open import open_source
from imgvol.sources.parse import parse_image_argument
from support.images import Image, Layer, file, sha256, to_json, write_docker_archive, write_layout

ONE, TWO = Layer([file("a", b"1" * 200_000)], "none"), Layer([file("b", b"2")], "none")
IMAGE = Image([ONE, TWO])
OTHER = Image([Layer([file("c", b"3")], "none")])


def write_archive(path, members) -> str:
    """Members by name: bytes, or the target of a symbolic link."""
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return f"docker-archive:{path}"


def manifest_json(*items) -> bytes:
    return to_json(
        [{"Config": config, "RepoTags": names, "Layers": layers} for config, names, layers in items]
    )


def open_image(text: str):
    return open_source(parse_image_argument(text))


@asynccontextmanager
async def opened(text: str):
    async with open_image(text) as source:
        top = await source.resolve()
        raw = await source.read_document(top, max_size=limits.MANIFEST_SIZE)
        manifest = parse_manifest(raw, media_type=top.media_type, expected=top.digest)
        assert isinstance(manifest, Manifest)
        yield source, manifest


def blob(source, descriptor, offset=0) -> bytes:
    with source.open_blob(descriptor, offset=offset) as reader:
        return b"".join(reader.iter_pieces())


async def test_what_docker_save_writes(tmp_path):
    path = write_docker_archive(tmp_path / "a.tar", IMAGE, "example.com/app:v1")
    async with opened(f"docker-archive:{path}") as (source, manifest):
        assert manifest.media_type == media_types.DOCKER_MANIFEST
        raw = await source.read_document(manifest.config, max_size=limits.CONFIG_SIZE)
        assert raw == IMAGE.config_bytes()
        diff_ids = parse_image_config(raw).diff_ids
        assert [layer.digest for layer in manifest.layers] == list(diff_ids)
        assert {layer.media_type for layer in manifest.layers} == {media_types.DOCKER_LAYER}
        assert [blob(source, layer) for layer in manifest.layers] == [ONE.tar, TWO.tar]
        assert blob(source, manifest.layers[0], 1000) == ONE.tar[1000:]


async def test_the_made_up_manifest_is_the_same_every_time(tmp_path):
    tops = set()
    for number, names in enumerate([["x:1"], ["y:2", "z:3"]]):
        path = write_docker_archive(tmp_path / f"{number}.tar", IMAGE, *names)
        async with open_image(f"docker-archive:{path}") as source:
            tops.add(await source.resolve())
            tops.add(await source.resolve())
    assert len(tops) == 1


@pytest.mark.parametrize(
    ("pack", "media_type"),
    [
        (lambda data: gzip.compress(data, 1), media_types.DOCKER_LAYER_GZIP),
        (zstandard.compress, media_types.DOCKER_LAYER_ZSTD),
    ],
    ids=["gzip", "zstd"],
)
async def test_compressed_layers_are_hashed(tmp_path, pack, media_type):
    layers = {"1.tar": pack(ONE.tar), "2.tar": pack(TWO.tar)}
    document = manifest_json(("c.json", None, list(layers)))
    members = {"manifest.json": document, "c.json": IMAGE.config_bytes(), **layers}
    async with opened(write_archive(tmp_path / "a.tar", members)) as (source, manifest):
        for layer, stored in zip(manifest.layers, layers.values(), strict=True):
            assert (str(layer.digest), layer.media_type) == (sha256(stored), media_type)
            assert blob(source, layer) == stored


async def test_layers_that_are_links_to_one_another(tmp_path):
    image = Image([ONE, ONE, TWO])
    layers = ["x/layer.tar", "y/layer.tar", "z/layer.tar"]
    members = {
        "x/layer.tar": ONE.tar,
        "y/layer.tar": "../x/layer.tar",
        "z/layer.tar": "/w/layer.tar",
        "w/layer.tar": TWO.tar,
        "c.json": image.config_bytes(),
        "manifest.json": manifest_json(("c.json", ["app"], layers)),
    }
    async with opened(write_archive(tmp_path / "a.tar", members)) as (source, manifest):
        assert [blob(source, layer) for layer in manifest.layers] == [ONE.tar, ONE.tar, TWO.tar]


@pytest.mark.parametrize(
    ("selector", "image"),
    [
        ("", None),
        (":app:v1", IMAGE),
        (":app", OTHER),
        (":docker.io/library/app:latest", OTHER),
        (":example.com/x:v1", IMAGE),
        (":@0", IMAGE),
        (":@1", OTHER),
        (":@2", None),
        (":none", None),
    ],
)
async def test_choosing_one_of_several(tmp_path, selector, image):
    members = {
        "1.json": IMAGE.config_bytes(),
        "2.json": OTHER.config_bytes(),
        "1": ONE.tar,
        "2": TWO.tar,
        "3": OTHER.layers[0].tar,
        "manifest.json": manifest_json(
            ("1.json", ["app:v1", "example.com/x:v1", "NOT A NAME"], ["1", "2"]),
            ("2.json", ["app:latest"], ["3"]),
        ),
    }
    text = write_archive(tmp_path / "a.tar", members) + selector
    if image is None:
        async with open_image(text) as source:
            with pytest.raises((NotFound, Conflict)) as caught:
                await source.resolve()
        expected = "It has images: app:v1, example.com/x:v1, NOT A NAME, app:latest."
        assert caught.value.hint.endswith(expected)
        return
    async with opened(text) as (_, manifest):
        assert str(manifest.config.digest) == sha256(image.config_bytes())


@pytest.mark.parametrize("compression", ["none", "gzip"])
async def test_archive_that_is_a_layout_too_keeps_its_manifest(tmp_path, compression):
    image = IMAGE.recompressed(compression)
    layout = write_layout(tmp_path / "layout", {"v1": image, "other": OTHER})
    layers = [f"blobs/sha256/{layer.digest[7:]}" for layer in image.layers]
    config = f"blobs/sha256/{sha256(image.config_bytes())[7:]}"
    (layout / "manifest.json").write_bytes(manifest_json((config, ["app:v1"], layers)))
    members = {
        str(item.relative_to(layout)): item.read_bytes()
        for item in layout.rglob("*")
        if item.is_file()
    }
    text = write_archive(tmp_path / "a.tar", members)
    async with opened(f"{text}:app:v1") as (source, manifest):
        assert manifest.raw == image.manifest_bytes()
        assert [blob(source, layer) for layer in manifest.layers] == [
            layer.blob for layer in image.layers
        ]
    # Without the layout's index, the blobs' names still say their digests.
    del members["index.json"]
    async with opened(write_archive(tmp_path / "b.tar", members)) as (source, manifest):
        assert manifest.raw != image.manifest_bytes()
        assert [str(layer.digest) for layer in manifest.layers] == [
            layer.digest for layer in image.layers
        ]
        assert blob(source, manifest.layers[0]) == image.layers[0].blob


CONFIG = IMAGE.config_bytes()
GOOD = {
    "manifest.json": manifest_json(("c.json", ["app"], ["1", "2"])),
    "c.json": CONFIG,
    "1": ONE.tar,
    "2": TWO.tar,
}


@pytest.mark.fault("F96")
@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"manifest.json": None}, NotFound),
        ({"manifest.json": b"[]"}, NotFound),
        ({"manifest.json": b"{}"}, InvalidDocument),
        ({"manifest.json": b"[1]"}, InvalidDocument),
        ({"manifest.json": b"[{}]"}, InvalidDocument),
        ({"manifest.json": b'[{"Config": "c.json", "Layers": "1"}]'}, InvalidDocument),
        ({"manifest.json": manifest_json(("c.json", None, ["1"]))}, InvalidDocument),
        ({"manifest.json": manifest_json(("c.json", None, ["1", "2", "2"]))}, InvalidDocument),
        ({"manifest.json": manifest_json(("c.json", None, ["1"] * 1000))}, LimitExceeded),
        ({"manifest.json": manifest_json(("../../etc/passwd", None, []))}, InvalidDocument),
        ({"manifest.json": manifest_json(("c.json", None, ["1", "../../../x"]))}, InvalidDocument),
        ({"manifest.json": b"[" * 100_000}, LimitExceeded),
        ({"manifest.json": b" " * (limits.MANIFEST_SIZE + 1)}, LimitExceeded),
        ({"c.json": None}, InvalidDocument),
        ({"c.json": b"no json"}, InvalidDocument),
        ({"c.json": "c.json"}, InvalidDocument),
        ({"2": None}, InvalidDocument),
        ({"2": "nowhere"}, InvalidDocument),
    ],
    ids=lambda v: str(v)[:50],
)
async def test_damaged_archives(tmp_path, change, error):
    members = {name: data for name, data in {**GOOD, **change}.items() if data is not None}
    async with open_image(write_archive(tmp_path / "a.tar", members)) as source:
        with pytest.raises(error):
            await source.resolve()


async def test_the_same_archive_undamaged(tmp_path):
    async with opened(write_archive(tmp_path / "a.tar", GOOD)) as (_, manifest):
        assert len(manifest.layers) == 2


async def test_damaged_layout_beside_it_does_not_matter(tmp_path):
    members = {**GOOD, "oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": b"broken"}
    async with opened(write_archive(tmp_path / "a.tar", members)) as (_, manifest):
        assert manifest.media_type == media_types.DOCKER_MANIFEST


async def test_cancelling_while_a_layer_is_hashed(tmp_path):
    # A compressed layer of 64 GiB, most of it a hole: it would take a minute to hash.
    size = 64 * limits.GIB
    path = tmp_path / "a.tar"
    one = Image([TWO])
    header = tarfile.TarInfo("1")
    header.size = size
    with open(path, "wb") as archive:
        archive.write(header.tobuf(tarfile.GNU_FORMAT) + gzip.compress(b"start"))
        archive.truncate(512 + size)
        archive.seek(512 + size)
        rest = {
            "c.json": one.config_bytes(),
            "manifest.json": manifest_json(("c.json", None, ["1"])),
        }
        write_archive(tmp_path / "rest.tar", rest)
        archive.write((tmp_path / "rest.tar").read_bytes())
    begin = time.perf_counter()
    async with open_image(f"docker-archive:{path}") as source:
        with trio.move_on_after(0.2) as scope:
            await source.resolve()
    assert scope.cancelled_caught
    assert time.perf_counter() - begin < 5


async def test_names_may_be_null(tmp_path):
    document = json.loads(GOOD["manifest.json"])
    document[0]["RepoTags"] = None
    members = {**GOOD, "manifest.json": to_json(document)}
    async with opened(write_archive(tmp_path / "a.tar", members)) as (_, manifest):
        assert str(manifest.config.digest) == sha256(CONFIG)
