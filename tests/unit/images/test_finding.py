"""Which layers of an image are found to be lazy, and what stands in the way."""

import logging

import pytest
import trio

from imgvol.content.records import Origin
from imgvol.errors import RegistryUnavailable
from imgvol.images.finding import open_finder
from imgvol.oci.manifest import Manifest, parse_manifest
from imgvol.oci.media_types import OCI_INDEX
from support import images
from support.lazy import decompress, describe_lazy, describe_tar
from support.sources import MemorySource
from support.stargz import TIME, Stargz
from support.toc_blobs import external_blob

ORIGIN = Origin(argument="example.com/test:1", plain_http=False, insecure=False, ca_file=None)


def external_layer(name: str) -> tuple[images.Layer, images.Layer]:
    """An eStargz layer of one file, and the layer of another image with its table of contents."""
    entries = [images.file(name, name.encode() * 100, mtime_ns=TIME)]
    blob, annotations, toc = external_blob(Stargz(entries).body)
    layer = images.Layer(decompress(blob))
    layer.blob, layer.size, layer.digest = blob, len(blob), images.sha256(blob)
    layer.annotations = annotations
    beside = images.Layer(decompress(toc))
    beside.blob, beside.size, beside.digest = toc, len(toc), images.sha256(toc)
    beside.annotations = {"containerd.io/snapshot/stargz/layer.digest": layer.digest}
    return layer, beside


def source_of(*pairs: tuple[images.Layer, images.Layer]) -> MemorySource:
    """An image beside which there is the one with its tables of contents."""
    source = MemorySource(images.Image([layer for layer, _ in pairs]))
    companion = images.Image([beside for _, beside in pairs])
    source.companions["-esgztoc"] = companion.manifest_bytes()
    source.blobs |= {beside.digest: beside.blob for _, beside in pairs}
    return source


async def find_all(source: MemorySource):
    manifest = parse_manifest(source.manifest, media_type=None)
    assert isinstance(manifest, Manifest)
    finder = await open_finder(source, manifest, ORIGIN, trio.CapacityLimiter(4))
    found = [None] * len(manifest.layers)

    async def find(position):
        found[position] = await finder.find(manifest.layers[position])

    async with trio.open_nursery() as nursery:
        for position in range(len(found)):
            nursery.start_soon(find, position)
    return found


# --- eStargz with its tables of contents in another image ----------------------------------------


async def test_tables_of_contents_are_found_in_the_companion_which_is_asked_for_once():
    pairs = [external_layer("one"), external_layer("two")]
    source = source_of(*pairs)
    found = await find_all(source)
    assert source.asked == ["-esgztoc"]
    for (layer, _), lazy in zip(pairs, found, strict=True):
        assert lazy.format == "eStargz (external)"
        assert describe_lazy(lazy.layer, layer.blob) == describe_tar(layer.tar)


async def test_layer_without_companion_is_pulled_whole(caplog):
    caplog.set_level(logging.INFO)
    source = source_of(external_layer("one"), external_layer("two"))
    source.companions.clear()
    assert await find_all(source) == [None, None]
    assert source.asked == ["-esgztoc"]
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]
    assert "is not read lazily: no such tag" in caplog.text


async def test_layer_that_the_companion_does_not_know_is_pulled_whole():
    known, unknown = external_layer("one"), external_layer("two")
    source = source_of(known)
    source.image = images.Image([known[0], unknown[0]])
    source.manifest = source.image.manifest_bytes()
    source.blobs[unknown[0].digest] = unknown[0].blob
    first, second = await find_all(source)
    assert first is not None
    assert second is None


async def test_table_of_contents_of_another_layer_is_refused():
    (one, beside_one), (two, beside_two) = external_layer("one"), external_layer("two")
    beside_one.annotations, beside_two.annotations = beside_two.annotations, beside_one.annotations
    assert await find_all(source_of((one, beside_one), (two, beside_two))) == [None, None]


@pytest.mark.parametrize("damage", ["blob", "index", "no manifest"])
async def test_damaged_companion_makes_the_layer_an_ordinary_one(damage):
    layer, beside = external_layer("one")
    source = source_of((layer, beside))
    if damage == "blob":
        source.blobs[beside.digest] = b"something else"
    elif damage == "index":
        source.companions["-esgztoc"] = images.to_json(
            {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
        )
    else:
        source.companions["-esgztoc"] = b"{}"
    assert await find_all(source) == [None]


async def test_registry_that_fails_is_no_missing_companion():
    source = source_of(external_layer("one"))

    async def fail(_suffix):
        raise RegistryUnavailable("down")

    source.read_companion = fail
    with pytest.raises(ExceptionGroup) as caught:
        await find_all(source)
    assert caught.group_contains(RegistryUnavailable)
