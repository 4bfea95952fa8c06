"""Written layers: what they hold, in which order, and what cannot be written."""

import base64
import hashlib
import io
import json
import random
import subprocess
import tarfile

import pytest
import zstandard

from imgvol import limits
from imgvol.errors import InvalidArgument, InvalidLayer, LimitExceeded, Unsupported
from imgvol.layers.lazy import estargz, zstd_chunked
from imgvol.layers.lazy.locate import Format
from imgvol.layers.lazy.writing.crc64 import Crc64
from imgvol.layers.tar import TarParser
from support.framings import iter_framings
from support.images import (
    Entry,
    directory,
    file,
    hardlink,
    opaque,
    sparse,
    symlink,
    tar_bytes,
    whiteout,
    with_checksum,
)
from support.lazy import decompress, describe_lazy, describe_tar, open_lazy, rich_archive
from support.programs import require
from support.tars import GNU, header, pax, special
from support.written import FORMATS, Written, write_layer

ESTARGZ, ZSTD = FORMATS


def names(tar: bytes) -> list[str]:
    parser = TarParser()
    return [member.name.decode() for member in parser.feed(tar)]


def check(archive: bytes, format_: Format, **options) -> Written:
    """Writes a layer and reads it again, every way that there is."""
    written = write_layer(archive, format_, **options)
    tar = decompress(written.blob)
    assert written.diff_id(archive) == f"sha256:{hashlib.sha256(tar).hexdigest()}"
    assert written.result.unpacked_size == len(tar)
    lazy = open_lazy(written.blob, written.annotations)
    assert lazy.table.is_pinned
    shown = describe_lazy(lazy, written.blob)
    assert shown == describe_tar(tar)
    if written.result.diff_id is None:
        assert tar == archive
    return written


def frame(written: Written, annotation: str) -> bytes:
    """What a frame holds whose position an annotation tells."""
    offset, size, raw_size = map(int, written.annotations[annotation].split(":")[:3])
    data = (
        zstandard.ZstdDecompressor()
        .decompressobj()
        .decompress(written.blob[offset : offset + size])
    )
    assert len(data) == raw_size
    return data


def entries_of(written: Written) -> list[dict]:
    return json.loads(frame(written, zstd_chunked.CONTAINERS.position))["entries"]


@pytest.mark.parametrize("format_", FORMATS)
def test_a_layer_with_everything_is_read_as_it_was(format_):
    archive = rich_archive()
    written = check(archive, format_)
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        assert written.result.files == sum(member.isreg() for member in opened)
    # The same again, also when it arrives otherwise; and the same files, in other chunks.
    pieces = [archive[i : i + 70_001] for i in range(0, len(archive), 70_001)]
    assert write_layer(pieces, format_) == written
    other = check(archive, format_, chunk_size=limits.WRITTEN_CHUNK_MIN, level=1)
    assert other.blob != written.blob


@pytest.mark.parametrize("format_", FORMATS)
def test_any_framing_gives_the_same_blob(format_):
    archive = tar_bytes([directory("a"), file("a/b", b"x" * 1000), hardlink("c", "a/b")])
    whole = write_layer(archive, format_)
    for pieces in iter_framings(archive):
        assert write_layer(pieces, format_) == whole


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(
    "archive", [b"", bytes(1024), tar_bytes([])], ids=["nothing", "end", "empty"]
)
def test_a_layer_without_members_can_be_written(archive, format_):
    if format_ is ZSTD and not archive:
        written = write_layer(archive, format_)
        assert written.result.unpacked_size == 0
    else:
        check(archive, format_)


@pytest.mark.parametrize("format_", FORMATS)
def test_an_archive_without_its_end_is_kept_as_it_is(format_):
    archive = tar_bytes([file("a", b"x" * 100)])[: 512 + 100]
    check(archive, format_)


def test_padding_and_what_follows_the_archive_stay_in_a_tar_that_is_kept():
    archive = bytearray(tar_bytes([file("a", b"x" * 100), file("b", b"y")]))
    archive[512 + 100 : 512 + 110] = b"garbage..."
    archive += random.Random(1).randbytes(5000)
    written = check(bytes(archive), ZSTD)
    # No reader of tar-splits takes what follows the end for one.
    assert zstd_chunked.TAR_SPLIT not in written.annotations


def test_wanted_files_come_first_with_what_they_need():
    archive = tar_bytes(
        [
            directory("usr", mode=0o700),
            directory("usr/lib"),
            file("usr/lib/other", b"o" * 5000),
            file("usr/lib/target", b"t" * 3000),
            opaque("usr/lib"),
            whiteout("usr/lib/late"),
            hardlink("usr/lib/late", "usr/lib/target"),
            file("first", b"f"),
            directory("etc"),
        ]
    )
    wanted = [b"first", b"gone", b"etc", b"usr/lib/late", b"first"]
    for format_ in FORMATS:
        written = check(archive, format_, prioritized=wanted)
        assert written.result.prioritized == 2
        order = names(decompress(written.blob))
        assert (
            order[:9]
            == [
                "first",
                "usr",
                "usr/lib/.wh..wh..opq",
                "usr/lib",
                "usr/lib/target",
                "usr/lib/.wh.late",
                "usr/lib/late",
                ".prefetch.landmark",
                "usr/lib/other",
            ]
            or order.index(".prefetch.landmark") == 7
        )
        lazy = open_lazy(written.blob, written.annotations)
        assert len(lazy.table.prefetch) == 2  # first, and what both links mean
        unpacked = describe_tar(decompress(written.blob))
        assert unpacked.keys() == describe_tar(archive).keys()


def test_nothing_wanted_is_said_too():
    archive = tar_bytes([file("a", b"a")])
    written = check(archive, ESTARGZ, prioritized=[b"b"])
    assert names(decompress(written.blob)) == [".no.prefetch.landmark", "a", "stargz.index.json"]
    # And a tar that needs no other order keeps its diff ID.
    assert check(archive, ZSTD, prioritized=[b"b"]).result.diff_id is None


def test_what_cannot_be_moved_stays():
    archive = tar_bytes(
        [
            symlink("lib", "usr/lib"),
            file("lib/x", b"x"),
            directory("d"),
            file("d/f", b"1"),
            directory("d", mode=0o700),
            file("twice", b"1"),
            hardlink("link", "twice"),
            file("twice", b"2"),
        ]
    )
    written = check(archive, ESTARGZ, prioritized=[b"lib/x", b"d/f", b"twice"])
    assert written.result.prioritized == 0


def test_a_file_that_is_replaced_in_its_own_layer_is_left_out():
    archive = tar_bytes([file("a", b"old" * 999), file("b", b"b"), file("./a", b"new")])
    order = names(decompress(check(archive, ESTARGZ, prioritized=[b"a"]).blob))
    assert order == ["./a", ".prefetch.landmark", "b", "stargz.index.json"]
    # A tar that is kept has it twice; podman takes no tar-split of such.
    written = check(archive, ZSTD)
    assert zstd_chunked.TAR_SPLIT not in written.annotations


def test_what_an_earlier_conversion_added_is_replaced():
    archive = tar_bytes([file("a", b"a"), directory("stargz.index.json.d")])
    first = check(archive, ESTARGZ, prioritized=[b"a"])
    tar = decompress(first.blob)
    assert names(tar)[1] == ".prefetch.landmark"
    second = decompress(check(tar, ESTARGZ).blob)
    assert names(second) == [
        ".no.prefetch.landmark",
        "a",
        "stargz.index.json.d/",
        "stargz.index.json",
    ]
    # zstd:chunked keeps the tar, and what it wants first with it.
    kept = check(tar, ZSTD)
    assert len(open_lazy(kept.blob, kept.annotations).table.prefetch) == 1


def test_owners_names_are_told_once():
    def member(name, uid, uname):
        info = tarfile.TarInfo(name)
        info.uid, info.uname, info.gname = uid, uname, "group"
        return Entry(name=name, raw=info.tobuf(tarfile.USTAR_FORMAT))

    archive = tar_bytes([member("a", 1, "x"), member("b", 1, "x"), member("c", 2, "y")])
    tar = decompress(write_layer(archive, ESTARGZ).blob)
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        toc = json.load(opened.extractfile("stargz.index.json"))
    told = [(e["name"], e.get("userName"), e.get("groupName")) for e in toc["entries"][1:]]
    assert told == [("a", "x", "group"), ("b", None, None), ("c", "y", None)]


def test_holes_are_told_and_need_not_be_fetched():
    noise = random.Random(1).randbytes
    content = noise(100_000) + bytes(1_000_000) + noise(10) + bytes(200_000)
    written = check(tar_bytes([file("a", content), file("zeros", bytes(300_000))]), ZSTD)
    table = open_lazy(written.blob, written.annotations).table
    assert table.data_size < 400_000
    by_type = {e.get("chunkType", "data") for e in entries_of(written)}
    assert by_type == {"data", "zeros"}


def test_entries_of_containers_say_what_the_headers_say():
    times = {"atime": "1700000001.5", "ctime": "-2.25"}
    member = bytearray(file("a", b"a", mtime_ns=1_700_000_000_123_000_000, pax=times).member())
    member[-1024 + 100 : -1024 + 107] = b"0100644"
    block = with_checksum(member[-1024:])
    entry = Entry(name="a", raw=bytes(member[:-1024]) + block)
    written = check(tar_bytes([entry, file("old", mtime_ns=0)]), ZSTD)
    first, second = entries_of(written)
    assert first["mode"] == 0o100644
    assert first["modtime"] == "2023-11-14T22:13:20.123Z"
    assert first["accesstime"] == "2023-11-14T22:13:21.5Z"
    assert first["changetime"] == "1969-12-31T23:59:57.75Z"
    assert "modtime" not in second
    assert second["type"] == "reg"


def test_a_tar_split_puts_the_tar_together_again():
    archive = rich_archive()
    written = check(archive, ZSTD, chunk_size=1 << 16)
    toc = json.loads(frame(written, zstd_chunked.CONTAINERS.position))
    offset, size, _ = map(int, written.annotations[zstd_chunked.TAR_SPLIT].split(":"))
    assert toc["tarSplitDigest"] == (
        f"sha256:{hashlib.sha256(written.blob[offset : offset + size]).hexdigest()}"
    )
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        contents = [opened.extractfile(m).read() if m.isreg() else b"" for m in opened]
    rebuilt = b""
    files = iter(contents)
    lines = frame(written, zstd_chunked.TAR_SPLIT).splitlines()
    for position, line in enumerate(map(json.loads, lines)):
        assert line["position"] == position
        if line["type"] == 2:
            rebuilt += base64.b64decode(line["payload"])
        else:
            content = next(files)
            assert line["size"] == len(content)
            if content:
                checksum = Crc64()
                checksum.update(content)
                assert base64.b64decode(line["payload"]) == checksum.digest()
            rebuilt += content
    assert rebuilt == archive


def test_footers_say_what_the_annotations_say():
    written = check(rich_archive(), ZSTD)
    footer = zstd_chunked.parse_footer(written.blob)
    position = written.annotations[zstd_chunked.CONTAINERS.position]
    assert footer == zstd_chunked.parse_position(position)
    written = check(rich_archive(), ESTARGZ)
    assert estargz.parse_footer(written.blob).size == 51


def table_crc64(data: bytes) -> bytes:
    """Bit by bit, as ISO 3309 has it."""
    crc = (1 << 64) - 1
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xD800000000000000 if crc & 1 else 0)
    return (crc ^ (1 << 64) - 1).to_bytes(8, "big")


def test_crc64_is_that_of_the_definition():
    assert Crc64().digest() == table_crc64(b"")
    # The check value of CRC-64/GO-ISO.
    assert table_crc64(b"123456789").hex() == "b90956c775a41001"
    noise = random.Random(2)
    for size in [*range(1, 40), 63, 64, 65, 127, 128, 129, 1000, 4099]:
        data = noise.randbytes(size)
        cut = noise.randrange(size + 1)
        checksum = Crc64()
        checksum.update(data[:cut])
        checksum.update(memoryview(data)[cut:])
        assert checksum.digest() == table_crc64(data)


def test_crc64_of_long_data_is_that_of_its_parts():
    data = random.Random(3).randbytes(300_000)
    whole, parts = Crc64(), Crc64()
    whole.update(data)
    for start in range(0, len(data), 997):
        parts.update(data[start : start + 997])
    assert whole.digest() == parts.digest()


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (file("a\udcff"), "UTF-8"),
        (hardlink("a", "b\N{REPLACEMENT CHARACTER}"), "UTF-8"),
        (symlink("a", "b\udcff"), "UTF-8"),
        (sparse("a", 10_000, [(0, b"x"), (5000, b"y")]), "sparse"),
        (sparse("a", 10_000, [(0, b"x" * 512)], form="old"), "sparse"),
        (Entry(name="a", raw=header(b"a", uid=b"\xff" * 8)), "owner"),
    ],
)
def test_what_no_table_of_contents_can_tell_is_refused(format_, entry, text):
    with pytest.raises(Unsupported, match=text) as caught:
        write_layer(tar_bytes([file("good", b"x"), entry]), format_)
    assert caught.value.fields["path"]


@pytest.mark.parametrize("format_", FORMATS)
def test_a_hard_link_before_its_target_is_refused(format_):
    # To a tar it is one to a lower layer; tables of contents have no order.
    with pytest.raises(Unsupported, match="after it"):
        write_layer(tar_bytes([hardlink("a", "b"), file("b", b"x")]), format_)
    check(tar_bytes([hardlink("a", "below"), file("b", b"x")]), format_)


@pytest.mark.parametrize("format_", FORMATS)
def test_damaged_archives_are_refused(format_):
    archive = tar_bytes([file("a", b"x" * 5000)])
    with pytest.raises(InvalidLayer, match="ends inside"):
        write_layer(archive[:2000], format_)
    with pytest.raises(InvalidLayer, match="bad tar"):
        write_layer(b"x" * 5000, format_)


@pytest.mark.parametrize("format_", FORMATS)
def test_endless_headers_are_refused(format_):
    headers = special(b"L", b"x" * limits.MIB) * 9
    with pytest.raises(LimitExceeded, match="TAR_HEADERS_SIZE"):
        write_layer(headers + tar_bytes([file("a")]), format_)


def test_a_table_of_contents_that_nobody_would_read_is_refused(monkeypatch):
    monkeypatch.setattr(limits, "TOC_SIZE", 2000)
    archive = tar_bytes([file(f"file-{number}", b"x") for number in range(100)])
    for format_ in FORMATS:
        with pytest.raises(LimitExceeded, match="TOC_SIZE"):
            write_layer(archive, format_)


@pytest.mark.parametrize(
    "options", [{"chunk_size": 1}, {"chunk_size": 1 << 30}, {"level": 20}, {"level": -1}]
)
def test_options_out_of_range_are_refused(options):
    for format_ in FORMATS:
        with pytest.raises(InvalidArgument):
            write_layer(b"", format_, **options)


@pytest.mark.parametrize(
    "head",
    [
        pax((b"comment", b"global"), flag=b"g"),
        special(b"L", b"a/name"),
    ],
    ids=["global", "gnu"],
)
def test_special_headers_stay_with_their_member(head):
    archive = head + header(b"x", size=1, magic=GNU) + b"1" + bytes(511 + 1024)
    written = check(archive, ZSTD)
    # A global header is a member to podman, and none to others.
    assert (zstd_chunked.TAR_SPLIT in written.annotations) is (b"global" not in head)
    check(archive, ESTARGZ)


def test_odd_layouts_get_no_tar_split():
    star = bytes(131) + b"%011o " % 5 + b"%011o " % 6 + bytes(8) + b"tar\0"
    for odd in (
        header(b"x", b"7"),
        header(b"x", tail=star),
        header(b"x", magic=GNU, tail=b"%011o\0" % 5),
        header(b"x", b"1", linkname=b"y", size=5),
        header(b"x", mode=b"\xff" * 8),
    ):
        written = write_layer(odd + bytes(1024), ZSTD)
        assert zstd_chunked.TAR_SPLIT not in written.annotations


def test_other_programs_read_the_blobs(tmp_path):
    require("gzip", "zstd", "tar")
    archive = rich_archive(is_lowest=True)
    for format_, program in ((ESTARGZ, "gzip"), (ZSTD, "zstd")):
        blob = tmp_path / program
        blob.write_bytes(write_layer(archive, format_).blob)
        with blob.open("rb") as given:
            subprocess.run([program, "-t"], stdin=given, check=True, capture_output=True)
        with blob.open("rb") as given:
            plain = subprocess.run(
                [program, "-dc"], stdin=given, check=True, capture_output=True
            ).stdout
        listed = subprocess.run(["tar", "-t"], input=plain, check=True, capture_output=True)
        ours = names(plain)
        assert len(listed.stdout.splitlines()) == len(ours)
        assert set(names(archive)) <= set(ours)
