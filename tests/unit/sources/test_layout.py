import gzip
import json
import tarfile
from pathlib import Path

import pytest
import trio

from imgvol import limits
from imgvol.errors import (
    Conflict,
    DigestMismatch,
    InvalidArgument,
    InvalidDocument,
    LimitExceeded,
    NotFound,
    Unsupported,
)
from imgvol.oci.digest import Digest
from imgvol.oci.manifest import Index, parse_manifest
from imgvol.oci.platform import Platform
from imgvol.sources.open import open_source
from imgvol.sources.parse import parse_image_argument
from support.images import Image, Layer, file, sha256, to_json, write_layout, write_oci_archive

LAYER = Layer([file("a", b"1" * 300_000)], "none")
IMAGE = Image([LAYER, Layer([file("b", b"2")], "gzip")])
OTHER = Image([Layer([file("c", b"3")])], architecture="arm64")


@pytest.fixture(params=["oci", "oci-archive"])
def place(request, tmp_path):
    """Writes images and gives what to ask for; directory or archive."""

    def write(images, change=None) -> str:
        layout = write_layout(tmp_path / "layout", images)
        if change is not None:
            change(layout)
        if request.param == "oci":
            return f"oci:{layout}"
        with tarfile.open(tmp_path / "archive.tar", "w") as archive:
            archive.add(layout, ".")
        return f"oci-archive:{tmp_path}/archive.tar"

    return write


def open_image(text: str):
    return open_source(parse_image_argument(text))


def rewrite_index(change):
    def apply(layout: Path) -> None:
        index = json.loads((layout / "index.json").read_bytes())
        change(index)
        (layout / "index.json").write_bytes(to_json(index))

    return apply


async def test_whole_image(place):
    async with open_image(place({"v1": IMAGE})) as source:
        top = await source.resolve()
        raw = await source.read_document(top, max_size=limits.MANIFEST_SIZE)
        assert raw == IMAGE.manifest_bytes()
        manifest = parse_manifest(raw, media_type=top.media_type, expected=top.digest)
        config = await source.read_document(manifest.config, max_size=limits.CONFIG_SIZE)
        assert config == IMAGE.config_bytes()
        for layer, descriptor in zip(IMAGE.layers, manifest.layers, strict=True):
            for offset in (0, 1, layer.size):
                with source.open_blob(descriptor, offset=offset) as reader:
                    assert b"".join(reader.iter_pieces()) == layer.blob[offset:]
        assert source.describe().startswith("oci")


async def test_reader_outlives_its_source(place):
    async with open_image(place({"v1": IMAGE})) as source:
        top = await source.resolve()
        manifest = parse_manifest(
            await source.read_document(top, max_size=limits.MANIFEST_SIZE), media_type=None
        )
        reader = source.open_blob(manifest.layers[0])
    with reader:
        assert b"".join(reader.iter_pieces()) == LAYER.blob


@pytest.mark.parametrize(("selector", "image"), [(":v1", IMAGE), (":v2", OTHER), (":x/y:1", IMAGE)])
async def test_tag_chooses(place, selector, image):
    async with open_image(place({"v1": IMAGE, "v2": OTHER, "x/y:1": IMAGE}) + selector) as source:
        assert (await source.resolve()).digest.matches(image.manifest_bytes())


async def test_digest_chooses_also_what_the_index_does_not_list(place):
    hidden = OTHER.manifest_bytes()
    digest = sha256(hidden)

    def hide(layout):
        (layout / "blobs/sha256" / digest[7:]).write_bytes(hidden)

    listed = sha256(IMAGE.manifest_bytes())
    text = place({"v1": IMAGE}, hide)
    for wanted, size in [(listed, len(IMAGE.manifest_bytes())), (digest, len(hidden))]:
        async with open_image(f"{text}@{wanted}") as source:
            top = await source.resolve()
            assert (str(top.digest), top.size) == (wanted, size)
    async with open_image(f"{text}@sha256:{'0' * 64}") as source:
        with pytest.raises(NotFound) as caught:
            await source.resolve()
        assert listed in caught.value.hint


async def test_missing_tag_says_what_is_there(place):
    async with open_image(place({"b": IMAGE, "a": OTHER}) + ":c") as source:
        with pytest.raises(NotFound) as caught:
            await source.resolve()
    assert caught.value.hint == "It has tags: a, b."


async def test_long_list_of_tags_is_cut(place):
    tags = {f"t{n:02}": IMAGE for n in range(15)}
    async with open_image(place(tags) + ":c") as source:
        with pytest.raises(NotFound) as caught:
            await source.resolve()
    assert caught.value.hint.endswith("t09 and 5 more.")


async def test_full_names_of_containerd_choose_too(place):
    def name(index):
        index["manifests"][0]["annotations"]["io.containerd.image.name"] = (
            "docker.io/library/app:v1"
        )

    text = place({"v1": IMAGE, "v2": OTHER}, rewrite_index(name))
    for selector in ("docker.io/library/app:v1", "app:v1", "v1"):
        async with open_image(f"{text}:{selector}") as source:
            assert (await source.resolve()).digest.matches(IMAGE.manifest_bytes())


async def test_two_names_of_one_image_are_one_image(place):
    async with open_image(place({"v1": IMAGE, "v2": IMAGE})) as source:
        assert (await source.resolve()).digest.matches(IMAGE.manifest_bytes())


async def test_entries_that_differ_by_platform_are_one_image(place):
    def same_name(index):
        for entry in index["manifests"]:
            entry["annotations"] = {"org.opencontainers.image.ref.name": "v1"}

    text = place({"v1": IMAGE, "v2": OTHER}, rewrite_index(same_name))
    tops = []
    for selector in ("", ":v1"):
        async with open_image(text + selector) as source:
            top = await source.resolve()
            raw = await source.read_document(top, max_size=limits.MANIFEST_SIZE)
            tops.append(top)
        index = parse_manifest(raw, media_type=top.media_type, expected=top.digest)
        assert isinstance(index, Index)
        platforms = [entry.platform for entry in index.manifests]
        assert platforms == [Platform("linux", "amd64"), Platform("linux", "arm64")]
    assert tops[0] == tops[1]


async def test_several_images_need_a_choice(place):
    same = Image([Layer([file("d")])])

    async with open_image(place({"v1": IMAGE, "v2": same})) as source:
        with pytest.raises(Conflict) as caught:
            await source.resolve()
    assert "It has tags: v1, v2." in caught.value.hint


async def test_empty_layout(place):
    async with open_image(place({})) as source:
        with pytest.raises(NotFound, match="empty"):
            await source.resolve()


@pytest.mark.parametrize(
    ("name", "data", "error"),
    [
        ("oci-layout", None, NotFound),
        ("index.json", None, NotFound),
        ("oci-layout", b'{"imageLayoutVersion": "2.0.0"}', Unsupported),
        ("oci-layout", b"{}", InvalidDocument),
        ("oci-layout", b" " * 10_000, LimitExceeded),
        ("index.json", b"[]", InvalidDocument),
        ("index.json", IMAGE.manifest_bytes(), InvalidDocument),
        ("index.json", b'{"manifests": [{"digest": "sha256:../../x"}]}', InvalidDocument),
        ("index.json", b" " * (limits.MANIFEST_SIZE + 1), LimitExceeded),
    ],
    ids=lambda v: str(v)[:30],
)
async def test_damaged_layouts(place, name, data, error):
    def damage(layout):
        (layout / name).unlink()
        if data is not None:
            (layout / name).write_bytes(data)

    async with open_image(place({"v1": IMAGE}, damage)) as source:
        with pytest.raises(error):
            await source.resolve()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda blob: blob.unlink(), InvalidDocument),
        (lambda blob: blob.write_bytes(blob.read_bytes() + b" "), DigestMismatch),
        (lambda blob: blob.write_bytes(blob.read_bytes()[::-1]), DigestMismatch),
    ],
    ids=["missing", "longer", "other"],
)
async def test_damaged_documents(place, change, error):
    def damage(layout):
        change(layout / "blobs/sha256" / sha256(IMAGE.manifest_bytes())[7:])

    async with open_image(place({"v1": IMAGE}, damage)) as source:
        top = await source.resolve()
        with pytest.raises(error):
            await source.read_document(top, max_size=limits.MANIFEST_SIZE)


async def test_layer_of_another_size_is_refused_when_it_is_opened(place):
    def damage(layout):
        (layout / "blobs/sha256" / LAYER.digest[7:]).write_bytes(b"short")

    async with open_image(place({"v1": IMAGE}, damage)) as source:
        top = await source.resolve()
        manifest = parse_manifest(
            await source.read_document(top, max_size=limits.MANIFEST_SIZE), media_type=None
        )
        with pytest.raises(DigestMismatch, match="size"):
            source.open_blob(manifest.layers[0])


async def test_too_large_a_document_is_not_read(place):
    async with open_image(place({"v1": IMAGE})) as source:
        top = await source.resolve()
        with pytest.raises(LimitExceeded):
            await source.read_document(top, max_size=top.size - 1)


async def test_symbolic_link_in_the_place_of_a_blob(tmp_path):
    layout = write_layout(tmp_path / "layout", {"v1": IMAGE})
    blob = layout / "blobs/sha256" / sha256(IMAGE.manifest_bytes())[7:]
    blob.rename(tmp_path / "elsewhere")
    blob.symlink_to(tmp_path / "elsewhere")
    async with open_image(f"oci:{layout}") as source:
        top = await source.resolve()
        with pytest.raises(InvalidDocument, match="symbolic links"):
            await source.read_document(top, max_size=limits.MANIFEST_SIZE)


@pytest.mark.parametrize("scheme", ["oci", "oci-archive", "docker-archive"])
async def test_nothing_at_the_place(tmp_path, scheme):
    with pytest.raises(NotFound):
        async with open_image(f"{scheme}:{tmp_path}/none"):
            pass
    with pytest.raises(InvalidArgument, match="absolute"):
        async with open_image(f"{scheme}:none"):
            pass


async def test_documents_are_read_side_by_side(place):
    async with open_image(place({"v1": IMAGE})) as source:
        top = await source.resolve()
        seen = []

        async def read():
            seen.append(await source.read_document(top, max_size=limits.MANIFEST_SIZE))

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(read)
        assert set(seen) == {IMAGE.manifest_bytes()}


async def test_compressed_archive(tmp_path):
    path = write_oci_archive(tmp_path / "a.tar", {"v1": IMAGE})
    path.write_bytes(gzip.compress(path.read_bytes(), 1))
    argument = parse_image_argument(f"oci-archive:{path}:v1")
    async with open_source(argument, spool_directory=str(tmp_path)) as source:
        top = await source.resolve()
        assert top.digest == Digest.of(IMAGE.manifest_bytes())
        assert await source.read_document(top, max_size=top.size) == IMAGE.manifest_bytes()
