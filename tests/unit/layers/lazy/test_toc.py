"""What the entries of a table of contents become."""

import json

import pytest

from imgvol import limits
from imgvol.errors import (
    ContentError,
    DigestMismatch,
    InvalidDocument,
    InvalidLayer,
    LimitExceeded,
    Unsupported,
)
from imgvol.layers.compression import Compression
from imgvol.layers.index import ROOT, LayerIndex, NodeType
from imgvol.layers.lazy.spans import LazyLayer
from support.lazy import describe_lazy, open_lazy
from support.toc_blobs import Body, chunked_blob, sha256

BOTH = pytest.mark.parametrize("compression", [Compression.GZIP, Compression.ZSTD])


def contents(body: Body) -> dict[bytes, object]:
    """Paths and contents (or targets) of all that is no directory."""
    found = describe_lazy(body.read(), bytes(body.data))
    return {path: what[3] for path, what in found.items() if len(what) == 4}


def refused(body: Body, kind: type[ContentError]) -> ContentError:
    with pytest.raises(kind) as caught:
        body.read()
    assert type(caught.value) is kind
    return caught.value


def record(layer: LazyLayer, name: bytes):
    index = LayerIndex(layer.index)
    return index.record(index.child(ROOT, name))


# --- content -------------------------------------------------------------------------------------


@BOTH
def test_files_have_their_bytes(compression):
    body = Body(compression)
    body.file("a", b"alpha")
    body.chunks("b", b"one", b"two", b"three")
    body.entry("reg", "empty")
    body.entry("reg", "empty2", size=0, digest=sha256(b""))
    body.file("large", bytes(limits.LARGE_FILE) + b"!")
    assert contents(body) == {
        b"/a": b"alpha",
        b"/b": b"onetwothree",
        b"/empty": b"",
        b"/empty2": b"",
        b"/large": bytes(limits.LARGE_FILE) + b"!",
    }


def test_holes_are_zeros_that_take_no_room():
    body = Body(Compression.ZSTD)
    body.chunks("a", b"", b"one", b"two", b"", b"three", b"")
    body.chunks("zeros", b"", b"")
    assert contents(body) == {
        b"/a": bytes(100) + b"onetwo" + bytes(100) + b"three" + bytes(100),
        b"/zeros": bytes(200),
    }
    layer = body.read()
    assert layer.table.data_size == len(b"onetwothree")
    index = LayerIndex(layer.index)
    node = index.child(ROOT, b"a")
    assert [(e.offset, e.size) for e in index.extents(node)] == [(100, 6), (206, 5)]


def test_files_packed_into_one_span_are_told_apart():
    body = Body()
    offset = body.span(b"headeralphaheaderbeta")
    for name, content, inner in (("a", b"alpha", 6), ("b", b"beta", 17)):
        body.entry(
            "reg",
            name,
            size=len(content),
            offset=offset,
            innerOffset=inner,
            chunkDigest=sha256(content),
        )
    assert contents(body) == {b"/a": b"alpha", b"/b": b"beta"}
    assert body.read().table.span_count == 1


def test_chunks_may_come_without_name_and_the_last_without_size():
    body = Body()
    _, second = body.chunks("a", b"one", b"two")
    second["name"] = ""
    del second["chunkSize"]
    assert contents(body) == {b"/a": b"onetwo"}


def test_the_entry_order_of_the_blob_does_not_matter():
    body = Body()
    body.file("a", b"alpha")
    body.file("b", b"beta")
    body.entries.reverse()
    assert contents(body) == {b"/a": b"alpha", b"/b": b"beta"}


def test_end_offsets_keep_headers_from_being_fetched():
    body = Body(Compression.ZSTD)
    entry = body.file("a", b"alpha")
    entry["endOffset"] = len(body.data)
    body.span(b"a header")
    body.file("b", b"beta")
    table = body.read().table
    assert table.compressed_range(0) == (0, entry["endOffset"])
    assert contents(body) == {b"/a": b"alpha", b"/b": b"beta"}


def test_the_last_of_two_files_of_one_name_wins():
    body = Body()
    body.file("a", b"alpha")
    body.file("./a", b"beta")
    assert contents(body) == {b"/a": b"beta"}


def test_landmarks_are_hidden_and_say_what_to_prefetch():
    body = Body()
    body.file("first", b"1")
    body.file("second", b"2")
    body.file(".prefetch.landmark", b"\x0f")
    body.file("rest", b"3")
    body.file("etc/.prefetch.landmark", b"kept")
    layer = body.read()
    assert list(layer.table.prefetch) == [0, 1]
    assert contents(body).keys() == {b"/first", b"/second", b"/rest", b"/etc/.prefetch.landmark"}


def test_no_prefetch_landmark_is_hidden_and_means_none():
    body = Body()
    body.file("first", b"1")
    body.file("/.no.prefetch.landmark", b"\x0f")
    layer = body.read()
    assert list(layer.table.prefetch) == []
    assert contents(body).keys() == {b"/first"}


def test_what_stargz_reserves_is_reserved_in_the_tables_of_others_too():
    """Their tar has it as well, and is shown without it, whatever an image's annotations say."""
    body = Body(Compression.ZSTD)
    body.file("first", b"1")
    body.file(".prefetch.landmark", b"\x0f")
    body.file("stargz.index.json", b"{}")
    blob, annotations = chunked_blob(body)
    layer = open_lazy(blob, annotations)
    assert describe_lazy(layer, blob).keys() == {b"/", b"/first"}


def test_only_files_of_the_root_are_reserved():
    body = Body()
    body.chunks("./stargz.index.json", b"{", b"}")
    body.file("sub/stargz.index.json", b"{}")
    body.entry("symlink", ".no.prefetch.landmark", linkName="x")
    assert contents(body).keys() == {b"/sub/stargz.index.json", b"/.no.prefetch.landmark"}


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"chunkOffset": 1}, InvalidLayer),
        ({"chunkSize": 4}, InvalidLayer),
        ({"chunkSize": 6}, InvalidLayer),
        ({"size": 6}, InvalidLayer),  # of several chunks
        ({"size": 1 << 62}, InvalidLayer),
        ({"offset": 1 << 40}, InvalidLayer),
        ({"innerOffset": 1 << 40}, LimitExceeded),
        ({"chunkType": "ones"}, Unsupported),
        ({"chunkDigest": "sha512:" + "0" * 128}, Unsupported),
        ({"chunkDigest": "sha256:" + "A" * 64}, Unsupported),
        ({"chunkDigest": "sha256:" + "0" * 63 + " "}, Unsupported),
        ({"chunkDigest": ""}, Unsupported),
        ({"chunkDigest": 5}, InvalidDocument),
        ({"offset": -1}, InvalidDocument),
        ({"offset": "0"}, InvalidDocument),
        ({"offset": 1.0}, InvalidDocument),
        ({"offset": True}, InvalidDocument),
        ({"size": 1 << 63}, InvalidDocument),
        ({"Offset": 0}, InvalidDocument),
        ({"chunkdigest": ""}, InvalidDocument),
    ],
)
def test_lies_about_content_are_refused(change, kind):
    body = Body()
    body.file("before", b"b")
    first, _ = body.chunks("a", b"alpha", b"beta")
    first |= change
    refused(body, kind)


def test_content_that_is_used_twice_is_refused():
    body = Body()
    body.file("a", b"alpha")
    body.entries.append(body.entries[0] | {"name": "b"})
    error = refused(body, InvalidLayer)
    assert "overlap" in error.message


def test_a_chunk_without_a_file_is_refused():
    for names in (["chunk"], ["dir", "chunk"], ["symlink", "chunk"]):
        body = Body()
        for number, name in enumerate(names):
            body.entry(name, str(number), linkName="x")
        refused(body, InvalidLayer)


def test_a_chunk_of_another_file_is_refused():
    body = Body()
    body.chunks("a", b"one", b"two")[1]["name"] = "b"
    refused(body, InvalidLayer)


def test_an_empty_file_with_chunks_is_refused():
    body = Body()
    first, _ = body.chunks("a", b"one", b"two")
    first["size"] = 0
    refused(body, InvalidLayer)


def test_files_without_digests_are_refused_as_a_whole():
    body = Body()
    body.file("a", b"alpha")
    body.file("b", b"beta", digest="")
    error = refused(body, Unsupported)
    assert error.fields["path"] == b"b"


def test_a_files_digest_does_not_stand_for_those_of_its_chunks():
    body = Body()
    del body.chunks("a", b"one", b"two")[1]["chunkDigest"]
    refused(body, Unsupported)


def test_without_digests_content_is_taken_when_asked_for():
    body = Body()
    body.file("a", b"alpha")
    body.file("b", b"beta", digest="")
    del body.chunks("c", b"one", b"two")[1]["chunkDigest"]
    layer = body.read(may_lack_digests=True)
    assert not layer.table.is_pinned
    found = describe_lazy(layer, bytes(body.data))
    assert [found[path][3] for path in (b"/a", b"/b", b"/c")] == [b"alpha", b"beta", b"onetwo"]


def test_what_has_a_digest_is_verified_beside_what_has_none():
    body = Body()
    body.file("a", b"alpha", digest=sha256(b"other"))
    body.file("b", b"beta", digest="")
    layer = body.read(may_lack_digests=True)
    with pytest.raises(DigestMismatch):
        describe_lazy(layer, bytes(body.data))


def test_a_table_without_gaps_is_pinned_though_gaps_were_allowed():
    body = Body()
    body.file("a", b"alpha")
    assert body.read(may_lack_digests=True).table.is_pinned


def test_a_file_with_two_digests_is_refused():
    body = Body()
    body.file("a", b"alpha", chunkDigest=sha256(b"other"))
    refused(body, InvalidLayer)


# --- attributes ----------------------------------------------------------------------------------


def test_attributes_are_those_of_a_tar():
    body = Body()
    body.entry("dir", "d/", mode=0o40755, uid=3, gid=4_000_000_000)
    body.entry("symlink", "s", linkName="né", mode=0o777)
    body.entry("char", "c", devMajor=1, devMinor=3, mode=0o20666)
    body.entry("block", "b", devMajor=8, devMinor=1)
    body.entry("fifo", "f", mode=0o4600)
    layer = body.read()
    assert (record(layer, b"d").mode, record(layer, b"d").gid) == (0o755, 4_000_000_000)
    assert (record(layer, b"c").major, record(layer, b"c").minor) == (1, 3)
    assert record(layer, b"b").type is NodeType.BLOCK
    assert record(layer, b"f").mode == 0o4600
    index = LayerIndex(layer.index)
    assert index.symlink_target(index.child(ROOT, b"s")) == "né".encode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:01.5Z", 1_500_000_000),
        ("2023-11-14T22:13:20.123456789Z", 1_700_000_000_123_456_789),
        ("2023-11-15T00:13:20.1+02:00", 1_700_000_000_100_000_000),
        ("0001-01-01T00:00:00Z", 0),
        ("1969-12-31T23:59:59Z", 0),
        (None, 0),
    ],
)
def test_times_are_rfc_3339(text, expected):
    body = Body()
    body.entry("fifo", "f", modtime=text)
    assert record(body.read(), b"f").mtime_ns == expected


@pytest.mark.parametrize(
    "text",
    ["now", "2023-13-01T00:00:00Z", "2023-01-01", "2023-01-01T00:00:00", 5],
)
def test_other_times_are_refused(text):
    body = Body()
    body.entry("fifo", "f", modtime=text)
    refused(body, InvalidDocument)


def test_extended_attributes_are_base64():
    body = Body()
    body.entry("fifo", "f", xattrs={"user.b": "AP8=", "user.a": "eA==", "user.none": ""})
    index = LayerIndex(body.read().index)
    assert index.xattrs(index.child(ROOT, b"f")) == ((b"user.a", b"x"), (b"user.b", b"\0\xff"))


@pytest.mark.parametrize("value", ["A", "AP8", "A P8=", "ÿÿÿÿ", 5, ["AP8="]])
def test_other_extended_attributes_are_refused(value):
    body = Body()
    body.entry("fifo", "f", xattrs={"user.a": value})
    refused(body, InvalidDocument)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"type": "socket"}, Unsupported),
        ({"type": None}, Unsupported),
        ({"type": ["reg"]}, Unsupported),
        ({"name": 1}, InvalidDocument),
        ({"name": "lost\ufffd"}, Unsupported),
        ({"type": "symlink", "linkName": "\ufffd"}, Unsupported),
        ({"xattrs": {"user.\ufffd": "eA=="}}, Unsupported),
        ({"xattrs": ["x"]}, InvalidDocument),
        ({"type": "symlink", "linkName": ""}, InvalidLayer),
        ({"type": "symlink", "linkName": "x" * 5000}, LimitExceeded),
        ({"name": "x" * 256}, LimitExceeded),
        ({"name": "a\0b"}, InvalidLayer),
        ({"name": ".wh."}, InvalidLayer),
        ({"mode": -1}, InvalidDocument),
        ({"uid": 1 << 32}, InvalidLayer),
        ({"type": "char", "devMajor": 1 << 20}, InvalidLayer),
        ({"type": "hardlink", "linkName": "/"}, InvalidLayer),
    ],
)
def test_what_no_layer_can_have_is_refused(fields, kind):
    body = Body()
    body.entry("dir", "d")
    body.entries.append({"type": "fifo", "name": "f"} | fields)
    error = refused(body, kind)
    # A link waits for the end of the table.
    assert error.fields["entry"] == 1


def test_whiteouts_and_opaque_marks_are_found():
    body = Body()
    body.entry("reg", "d/.wh.gone")
    body.entry("reg", "o/.wh..wh..opq")
    index = LayerIndex(body.read().index)
    assert index.whiteout_count == 1
    assert index.is_opaque(index.child(ROOT, b"o"))


# --- links ---------------------------------------------------------------------------------------


def test_links_may_come_before_their_targets():
    body = Body()
    body.entry("hardlink", "c", linkName="b")
    body.entry("hardlink", "./b", linkName="/a")
    body.file("a", b"alpha")
    body.entry("hardlink", "d", linkName="c")
    layer = body.read()
    assert contents(body) == dict.fromkeys((b"/a", b"/b", b"/c", b"/d"), b"alpha")
    assert record(layer, b"a").nlink == 4


def test_a_link_that_comes_early_finds_its_target_through_symbolic_links():
    body = Body()
    body.entry("hardlink", "x", linkName="lib/a")
    body.entry("symlink", "lib", linkName="usr/lib")
    body.file("usr/lib/a", b"alpha")
    assert contents(body)[b"/x"] == b"alpha"


def test_what_comes_after_a_waiting_link_replaces_it():
    body = Body()
    body.entry("hardlink", "b", linkName="a")
    body.file("b", b"beta")
    body.file("a", b"alpha")
    assert contents(body) == {b"/a": b"alpha", b"/b": b"beta"}


def test_links_to_nothing_here_are_left_to_the_merge():
    body = Body()
    body.entry("hardlink", "b", linkName="lower/a")
    index = LayerIndex(body.read().index)
    assert [path for _, path in index.foreign_links()] == [b"/lower/a"]


@pytest.mark.parametrize("links", ["ab bc cb", "xy yz zx", "ab ba"])
def test_links_in_a_circle_are_refused(links):
    body = Body()
    for name, target in links.split():
        body.entry("hardlink", name, linkName=target)
    assert "circle" in refused(body, InvalidLayer).message


def test_a_link_to_itself_says_nothing():
    body = Body()
    body.entry("hardlink", "a", linkName="b")
    body.entry("hardlink", "a", linkName="./a")
    body.file("b", b"beta")
    assert contents(body) == {b"/a": b"beta", b"/b": b"beta"}


def test_long_chains_of_early_links_take_linear_time():
    body = Body()
    count = 20_000
    for number in range(count):
        body.entry("hardlink", f"{number}", linkName=f"{number + 1}")
    body.file(f"{count}", b"end")
    assert record(body.read(), b"0").nlink == count + 1


def test_too_many_entries_are_refused(monkeypatch):
    monkeypatch.setattr(limits, "TAR_ENTRIES", 10)
    body = Body()
    for _ in range(11):
        body.entry("dir", "same")
    refused(body, LimitExceeded)


def test_an_error_says_which_entry_it_is_about():
    body = Body()
    body.file("a", b"alpha")
    body.entry("dir", "d", mode="x")
    assert refused(body, InvalidDocument).fields["entry"] == 1


def test_a_table_that_is_cut_off_is_refused_wherever_it_is_cut():
    body = Body()
    body.file("a", b"alpha")
    body.chunks("b", b"one", b"two")
    toc = body.toc
    for end in range(len(toc)):
        with pytest.raises(InvalidDocument):
            body.read(toc[:end])
    assert json.loads(toc)
