"""Which layers of an image are found to be lazy, and what stands in the way."""

import logging

import pytest
import trio

from imgvol.config import LazyTrust
from imgvol.content.records import Origin
from imgvol.errors import (
    InvalidDocument,
    NotFound,
    ProtocolError,
    RegistryUnavailable,
    Unauthorized,
)
from imgvol.images.finding import FoundLayer, open_finder
from imgvol.layers.lazy.soci_index import INDEX_V1
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.manifest import Manifest, parse_manifest
from imgvol.oci.media_types import OCI_INDEX, OCI_MANIFEST
from support import images
from support.lazy import decompress, describe_lazy, describe_tar
from support.soci import draft_of
from support.soci_images import soci_index
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


async def find_all(
    source: MemorySource,
    *,
    soci_referrers: bool = False,
    missing_digests: bool = False,
    reasons: list[str] | None = None,
):
    """What is found for each layer; None: it is to be pulled as a whole."""
    manifest = parse_manifest(source.manifest, media_type=None)
    assert isinstance(manifest, Manifest)
    trust = LazyTrust(soci_referrers=soci_referrers, missing_digests=missing_digests)
    finder = await open_finder(source, manifest, ORIGIN, trio.CapacityLimiter(4), trust)
    found = [None] * len(manifest.layers)

    async def find(position):
        lazy = await finder.find(manifest.layers[position])
        if isinstance(lazy, FoundLayer):
            found[position] = lazy
        elif reasons is not None:
            reasons.append(lazy.reason)

    async with trio.open_nursery() as nursery:
        for position in range(len(found)):
            nursery.start_soon(find, position)
    return found


async def test_a_layer_that_never_had_a_table_of_contents_has_no_reason_to_give():
    layer = images.Layer([images.file("a", b"1")])
    source = MemorySource(images.Image([layer]))
    reasons: list[str] = []
    assert await find_all(source, reasons=reasons) == [None]
    assert reasons == [""]


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
    reasons: list[str] = []
    assert await find_all(source, reasons=reasons) == [None, None]
    assert all("no such tag" in reason for reason in reasons)
    assert len(reasons) == 2
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


# --- SOCI ----------------------------------------------------------------------------------------


def soci_source(*, indexed: int = 1, version: int = 2) -> tuple[MemorySource, bytes]:
    """An image of two plain layers with a referring index for the first of them, and the index."""
    layers = [images.Layer([images.file(name, name.encode() * 5000)]) for name in ("one", "two")]
    source = MemorySource(images.Image(layers))
    ztocs = {
        layer.digest: draft_of(layer.tar, layer.blob, 4 << 20, version=version).to_bytes()
        for layer in layers[:indexed]
    }
    index = soci_index(ztocs, subject=source.manifest)
    for data in (index, *ztocs.values()):
        source.blobs[images.sha256(data)] = data
    source.referrers = [referrer(index)]
    return source, index


def referrer(index: bytes) -> Descriptor:
    return Descriptor(media_type=OCI_MANIFEST, digest=Digest.of(index), size=len(index))


@pytest.mark.parametrize("version", [1, 2])
async def test_referring_index_is_used_where_it_is_allowed(version):
    source, _ = soci_source(version=version)
    found, not_indexed = await find_all(source, soci_referrers=True)
    layer = source.image.layers[0]
    assert found.format == "SOCI v1"
    assert describe_lazy(found.layer, layer.blob) == describe_tar(layer.tar)
    assert not_indexed is None
    assert source.asked == [INDEX_V1]


async def test_nobody_asks_for_referrers_unless_allowed():
    source, _ = soci_source()
    assert await find_all(source) == [None, None]
    assert source.asked == []


async def test_first_of_several_referrers_is_taken():
    source, index = soci_source(indexed=2)
    other = soci_index({}, subject=source.manifest)
    source.blobs[images.sha256(other)] = other
    source.referrers = [referrer(index), referrer(other)]
    assert None not in await find_all(source, soci_referrers=True)
    source.referrers = [referrer(other), referrer(index)]
    assert await find_all(source, soci_referrers=True) == [None, None]


@pytest.mark.parametrize(
    "problem",
    [
        NotFound("gone"),
        Unauthorized("no"),
        ProtocolError("what?"),
        RegistryUnavailable("down"),
        InvalidDocument("no list"),
    ],
    ids=lambda problem: type(problem).__name__,
)
async def test_registry_that_does_not_tell_is_no_failure(problem, caplog):
    caplog.set_level(logging.INFO)
    source, _ = soci_source()
    source.referrers = problem
    assert await find_all(source, soci_referrers=True) == [None, None]
    assert [record.levelname for record in caplog.records] == ["INFO"]


@pytest.mark.parametrize("wrong", ["missing", "of another image", "unbound", "image"])
async def test_bad_referrer_makes_layers_ordinary_ones(wrong):
    source, index = soci_source()
    ztoc = {source.image.layers[0].digest: b"zTOC"}
    if wrong == "missing":
        del source.blobs[images.sha256(index)]
        source.referrers = [referrer(index)]
    else:
        other = {
            "of another image": soci_index(ztoc, subject=b"another manifest"),
            "unbound": soci_index(ztoc),
            "image": source.manifest,
        }[wrong]
        source.blobs[images.sha256(other)] = other
        source.referrers = [referrer(other)]
    assert await find_all(source, soci_referrers=True) == [None, None]


@pytest.mark.parametrize("is_missing", [True, False])
async def test_ztoc_that_cannot_be_used_makes_its_layer_an_ordinary_one(is_missing):
    source, _ = soci_source(indexed=2)
    first, second = source.image.layers
    ztoc = draft_of(first.tar, first.blob, 4 << 20).to_bytes()
    if is_missing:
        del source.blobs[images.sha256(ztoc)]
    else:
        source.blobs[images.sha256(ztoc)] = b"something else"
    found = await find_all(source, soci_referrers=True)
    assert found[0] is None
    assert describe_lazy(found[1].layer, second.blob) == describe_tar(second.tar)


async def test_table_of_contents_that_is_pinned_is_preferred():
    layer, beside = external_layer("one")
    source = source_of((layer, beside))
    ztoc = draft_of(layer.tar, layer.blob, 4 << 20).to_bytes()
    index = soci_index({layer.digest: ztoc}, subject=source.manifest)
    source.blobs |= {images.sha256(data): data for data in (index, ztoc)}
    source.referrers = [referrer(index)]
    (found,) = await find_all(source, soci_referrers=True)
    assert found.format == "eStargz (external)"
