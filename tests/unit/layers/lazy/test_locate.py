"""Which tables of contents are found, where, and with what trust."""

import gzip
import json
import struct

import pytest
import zstandard

from imgvol import limits
from imgvol.errors import DigestMismatch, InvalidLayer, LimitExceeded, Unsupported
from imgvol.layers.compression import Compression
from imgvol.layers.lazy import estargz, zstd_chunked
from imgvol.layers.lazy.estargz import TOC_DIGEST
from imgvol.layers.lazy.locate import ExternalToc, Format, NeedTail, TocRange, find_toc, open_layer
from imgvol.layers.lazy.zstd_chunked import CONTAINERS, STARGZ
from imgvol.oci.digest import Digest
from imgvol.oci.manifest import Manifest, parse_manifest
from imgvol.oci.media_types import OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST
from support.lazy import describe_lazy, locate, open_lazy
from support.toc_blobs import (
    EXTERNAL_FOOTER,
    Body,
    chunked_blob,
    external_blob,
    gzip_footer,
    legacy_footer,
    sha256,
    skippable,
    stargz_blob,
    stargz_footer,
    tar_of,
)

FAMILIES = pytest.mark.parametrize("family", [CONTAINERS, STARGZ], ids=["containers", "stargz"])


def body(compression: Compression = Compression.GZIP) -> Body:
    made = Body(compression)
    made.file("a", b"alpha")
    made.chunks("b", b"one", b"two")
    return made


def content_of(blob: bytes, annotations: dict[str, str]) -> bytes:
    return describe_lazy(open_lazy(blob, annotations), blob)[b"/b"][3]


# --- footers -------------------------------------------------------------------------------------


def test_the_three_gzip_footers_are_told_apart():
    assert len(stargz_footer(77)) == estargz.FOOTER_SIZE == 51
    assert len(legacy_footer(77)) == estargz.LEGACY_FOOTER_SIZE == 47
    assert len(EXTERNAL_FOOTER) == estargz.EXTERNAL_FOOTER_SIZE == 46
    for before in (b"", b"x" * 100):
        assert estargz.parse_footer(before + stargz_footer(0xABC)) == (51, 0xABC)
        assert estargz.parse_footer(before + legacy_footer(0xABC)) == (47, 0xABC)
        assert estargz.parse_footer(before + EXTERNAL_FOOTER) == (46, None)


def test_gzip_footers_are_valid_empty_gzip_members():
    for footer in (stargz_footer(5), legacy_footer(5), EXTERNAL_FOOTER):
        assert gzip.decompress(footer) == b""


@pytest.mark.parametrize("footer", [stargz_footer(99), legacy_footer(99), EXTERNAL_FOOTER])
def test_every_byte_of_a_gzip_footer_counts(footer):
    good = estargz.parse_footer(footer)
    for at in range(len(footer)):
        changed = bytearray(footer)
        changed[at] ^= 0x80
        assert estargz.parse_footer(bytes(changed)) is None
        assert estargz.parse_footer(footer[at + 1 :]) is None
    assert good is not None


@pytest.mark.parametrize("number", [b"+000000000000001", b"000000000000000G", b"0x00000000000001"])
def test_an_offset_that_is_no_number_is_no_footer(number):
    assert estargz.parse_footer(gzip_footer(b"SG\x16\0" + number + b"STARGZ")) is None


def test_both_zstd_footers_are_read():
    numbers = struct.pack("<4Q", 1000, 200, 3000, 1)
    assert zstd_chunked.parse_footer(b"x" + numbers + b"GnUlInUx") == (1000, 200, 3000)
    more = struct.pack("<3Q", 4, 5, 6)
    assert zstd_chunked.parse_footer(b"x" + numbers + more + b"GNUlInUx") == (1000, 200, 3000)
    for tail in (b"", b"GnUlInUx", numbers[1:] + b"GnUlInUx", numbers + b"GNUlInUx"):
        assert zstd_chunked.parse_footer(tail) is None
    with pytest.raises(Unsupported):
        zstd_chunked.parse_footer(struct.pack("<4Q", 1000, 200, 3000, 2) + b"GnUlInUx")


# --- eStargz -------------------------------------------------------------------------------------


def test_estargz_is_found_through_its_footer():
    blob, annotations = stargz_blob(body())
    need = find_toc(annotations, len(blob))
    assert need == NeedTail(len(blob))
    found = find_toc(annotations, len(blob), blob[-51:])
    assert isinstance(found, TocRange)
    assert found.format is Format.ESTARGZ
    assert content_of(blob, annotations) == b"onetwo"


def test_a_large_blob_needs_a_small_tail():
    annotations = {TOC_DIGEST: sha256(b"")}
    assert find_toc(annotations, 1 << 40) == NeedTail(limits.TOC_TAIL_SIZE)


def test_the_legacy_footer_is_read_too():
    blob, annotations = stargz_blob(body(), footer=legacy_footer)
    assert content_of(blob, annotations) == b"onetwo"


def test_a_table_of_contents_in_another_image_is_read_from_there():
    blob, annotations, toc = external_blob(body())
    found = locate(blob, annotations)
    assert isinstance(found, ExternalToc)
    assert (found.blob_size, found.data_end) == (len(blob), len(blob) - 46)
    assert describe_lazy(open_layer(found, toc), blob)[b"/b"][3] == b"onetwo"


def test_an_external_table_of_contents_is_worth_what_pins_it():
    blob, annotations, toc = external_blob(body())
    other = body()
    other.file("more", b"more")
    _, _, wrong = external_blob(other)
    for data, error in ((wrong, DigestMismatch), (b"", InvalidLayer), (toc[:-40], InvalidLayer)):
        with pytest.raises(error):
            open_lazy(blob, annotations, data)
    assert locate(blob, {}) is None


def companion(*layers: tuple[str, bytes]) -> Manifest:
    raw = json.dumps(
        {
            "schemaVersion": 2,
            "config": {"mediaType": OCI_CONFIG, "digest": sha256(b"{}"), "size": 2},
            "layers": [
                {
                    "mediaType": OCI_LAYER_GZIP,
                    "digest": sha256(toc),
                    "size": len(toc),
                    "annotations": {"containerd.io/snapshot/stargz/layer.digest": layer},
                }
                for layer, toc in layers
            ],
        }
    ).encode()
    manifest = parse_manifest(raw, media_type=OCI_MANIFEST)
    assert isinstance(manifest, Manifest)
    return manifest


def test_the_layers_of_a_companion_say_whose_they_are():
    one, two = Digest.of(b"one"), Digest.of(b"two")
    found = companion((str(two), b"toc of two"), (str(one), b"toc of one"), ("latest", b""))
    for layer, toc in ((one, b"toc of one"), (two, b"toc of two")):
        descriptor = estargz.external_layer(found, layer)
        assert descriptor is not None
        assert descriptor.digest == Digest.of(toc)
    assert estargz.external_layer(found, Digest.of(b"three")) is None


def test_without_annotation_nothing_is_looked_for():
    blob, _ = stargz_blob(body())
    assert find_toc({}, len(blob)) is None
    assert find_toc({"org.example": "x"}, len(blob), blob) is None


def test_an_annotation_without_footer_is_refused():
    with pytest.raises(InvalidLayer, match="does not have"):
        locate(gzip.compress(b"plain"), {TOC_DIGEST: sha256(b"")})


def test_an_empty_blob_has_no_footer():
    with pytest.raises(InvalidLayer, match="does not have"):
        locate(b"", {TOC_DIGEST: sha256(b"")})


def test_another_table_than_the_pinned_one_is_a_mismatch():
    blob, annotations = stargz_blob(body())
    with pytest.raises(DigestMismatch):
        open_lazy(blob, annotations | {TOC_DIGEST: sha256(b"other")})


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:" + "Z" * 64, "md5:" + "0" * 32])
def test_a_malformed_digest_is_refused(digest):
    with pytest.raises(InvalidLayer):
        find_toc({TOC_DIGEST: digest}, 1000)


@pytest.mark.parametrize("offset", [(1 << 64) - 1, 1 << 40, 10_000])
def test_an_offset_outside_of_the_blob_is_refused(offset):
    blob, annotations = stargz_blob(body(), footer=lambda _: stargz_footer(offset))
    with pytest.raises(InvalidLayer, match="outside"):
        locate(blob, annotations)


def test_a_table_that_is_too_large_is_not_even_fetched():
    with pytest.raises(LimitExceeded):
        find_toc({TOC_DIGEST: sha256(b"")}, 1 << 40, stargz_footer(0))


NO_TABLES = {
    "nothing": b"",
    "no gzip": b"not gzip",
    "empty gzip": gzip.compress(b""),
    "no tar": gzip.compress(b"not tar" * 100),
    "another file": gzip.compress(tar_of("other", b"{}")),
    "a cut tar": gzip.compress(tar_of("stargz.index.json", b"{}" * 1000)[:700]),
    "a cut gzip": gzip.compress(tar_of("stargz.index.json", b"{}"))[:20],
}


@pytest.mark.parametrize("data", NO_TABLES.values(), ids=NO_TABLES)
def test_what_is_no_table_of_contents_is_refused(data):
    with pytest.raises(InvalidLayer):
        estargz.extract_json(data)


def test_a_table_that_unpacks_to_too_much_is_refused(monkeypatch):
    monkeypatch.setattr(limits, "TOC_SIZE", 10_000)
    with pytest.raises(LimitExceeded):
        estargz.extract_json(gzip.compress(tar_of("stargz.index.json", bytes(10_001))))
    bomb = gzip.compress(tar_of("first", bytes(5 * limits.MIB)))
    with pytest.raises(LimitExceeded):
        estargz.extract_json(bomb)
    with pytest.raises(LimitExceeded):
        zstd_chunked.extract_json(b"", 10_001)


# --- zstd:chunked --------------------------------------------------------------------------------


@FAMILIES
def test_zstd_chunked_is_found_without_its_footer(family):
    blob, annotations = chunked_blob(body(Compression.ZSTD), family)
    found = find_toc(annotations, len(blob))
    assert isinstance(found, TocRange)
    assert found.format is Format.ZSTD_CHUNKED
    assert content_of(blob, annotations) == b"onetwo"


@FAMILIES
def test_zstd_chunked_is_found_through_its_footer(family):
    blob, annotations = chunked_blob(body(Compression.ZSTD), family)
    del annotations[family.position]
    assert isinstance(find_toc(annotations, len(blob)), NeedTail)
    assert content_of(blob, annotations) == b"onetwo"


@FAMILIES
def test_zstd_chunked_without_checksum_is_refused(family):
    blob, annotations = chunked_blob(body(Compression.ZSTD), family)
    del annotations[family.checksum]
    with pytest.raises(Unsupported, match="without a digest"):
        locate(blob, annotations)


def test_stargz_pins_the_json_too():
    made = body(Compression.ZSTD)
    blob, annotations = chunked_blob(made, STARGZ)
    annotations[TOC_DIGEST] = sha256(made.toc)
    assert content_of(blob, annotations) == b"onetwo"
    for key in (TOC_DIGEST, STARGZ.checksum):
        with pytest.raises(DigestMismatch):
            open_lazy(blob, annotations | {key: sha256(b"other")})
    # Either pin is enough, and so is the footer for the position.
    for key in (STARGZ.checksum, STARGZ.position):
        less = {name: value for name, value in annotations.items() if name != key}
        assert content_of(blob, less) == b"onetwo"
    assert content_of(blob, {TOC_DIGEST: sha256(made.toc)}) == b"onetwo"


def test_two_tables_of_contents_are_refused():
    made = body(Compression.ZSTD)
    blob, annotations = chunked_blob(made, CONTAINERS)
    _, others = chunked_blob(made, STARGZ)
    for more in (others, {TOC_DIGEST: sha256(made.toc)}, {STARGZ.position: "1:2:3:1"}):
        with pytest.raises(InvalidLayer, match="two tables"):
            find_toc(annotations | more, len(blob))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", InvalidLayer),
        ("100:10:10", InvalidLayer),
        ("100:10:10:1:1", InvalidLayer),
        ("100:-10:10:1", InvalidLayer),
        ("100:10:10:٣", InvalidLayer),
        ("100:10: 10:1", InvalidLayer),
        ("100:10:10:1\n", InvalidLayer),
        ("100:10:10:2", Unsupported),
        ("7:10:10:1", InvalidLayer),
        ("100:0:10:1", InvalidLayer),
        ("100:901:10:1", InvalidLayer),
        ("9999999999999999999:1:1:1", InvalidLayer),
        ("9" * 400 + ":1:1:1", InvalidLayer),
    ],
)
def test_positions_that_cannot_be_are_refused(text, kind):
    with pytest.raises(kind):
        find_toc({CONTAINERS.position: text, CONTAINERS.checksum: sha256(b"")}, 1000)


def test_a_large_position_is_refused_before_anything_is_fetched():
    annotations = {CONTAINERS.checksum: sha256(b"")}
    annotations[CONTAINERS.position] = f"8:{limits.TOC_SIZE + 1}:5:1"
    with pytest.raises(LimitExceeded):
        find_toc(annotations, 1 << 40)


def test_a_table_of_another_size_than_announced_is_refused():
    data = zstandard.ZstdCompressor().compress(bytes(1000))
    assert zstd_chunked.extract_json(data, 1000) == bytes(1000)
    for size in (0, 999, 1001, 10_000):
        with pytest.raises(InvalidLayer):
            zstd_chunked.extract_json(data, size)
    for damaged in (data[:-1], data + b"x", b"", skippable(b"")):
        with pytest.raises(InvalidLayer):
            zstd_chunked.extract_json(damaged, 1000)


def test_content_that_reaches_into_the_table_is_refused():
    made = body(Compression.ZSTD)
    made.file("late", b"x", offset=len(made.data) + 30)
    blob, annotations = chunked_blob(made)
    with pytest.raises(InvalidLayer, match="outside"):
        open_lazy(blob, annotations)


def test_a_range_carries_what_is_needed_to_open_it_later():
    blob, annotations = chunked_blob(body(Compression.ZSTD))
    found = locate(blob, annotations)
    layer = open_layer(found, blob[found.start : found.end])
    assert layer.table.blob_size == len(blob)
    with pytest.raises(DigestMismatch):
        open_layer(found, blob[found.start : found.end - 1])
