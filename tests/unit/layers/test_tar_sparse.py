"""Sparse members: four formats, one tuple of pieces."""

import time

import pytest

from imgvol import limits
from imgvol.errors import InvalidLayer, LimitExceeded
from imgvol.layers.tar import MemberType, TarMember
from support import framings, programs
from support.tars import END, GNU, header, member, octal, padded, parse, pax, record, special

DATA = b"abcdefgh"
PIECES = ((4096, 5), (8192, 3))
SIZE = 20_000


def content_of(found: TarMember, archive: bytes) -> bytes:
    stored = archive[found.payload_offset :][: found.payload_size]
    content = bytearray(found.size)
    position = 0
    for offset, size in found.sparse or ((0, found.size),):
        content[offset : offset + size] = stored[position : position + size]
        position += size
    return bytes(content)


def expected_content() -> bytes:
    content = bytearray(SIZE)
    content[4096:4101], content[8192:8195] = b"abcde", b"fgh"
    return bytes(content)


def old_gnu(*, pieces=PIECES, size=SIZE, stored=8, magic=GNU, extensions=()) -> bytes:
    numbers = b"".join(octal(offset, 12) + octal(length, 12) for offset, length in pieces)
    is_extended = b"\1" if extensions else b"\0"
    tail = bytes(41) + numbers.ljust(96, b"\0") + is_extended + octal(size, 12)
    return header(b"s", b"S", size=stored, magic=magic, tail=tail) + b"".join(extensions)


def extension(pieces, *, more: bool = False) -> bytes:
    numbers = b"".join(octal(offset, 12) + octal(length, 12) for offset, length in pieces)
    return padded(numbers.ljust(504, b"\0") + (b"\1" if more else b"\0"))


def format_0_0(pieces=PIECES) -> bytes:
    records = [record(b"GNU.sparse.size", b"%d" % SIZE), record(b"GNU.sparse.numblocks", b"2")]
    for offset, size in pieces:
        records.append(record(b"GNU.sparse.offset", b"%d" % offset))
        records.append(record(b"GNU.sparse.numbytes", b"%d" % size))
    return special(b"x", b"".join(records)) + header(b"s", size=len(DATA))


def format_0_1(text: bytes = b"4096,5,8192,3", count: bytes = b"2") -> bytes:
    records = pax(
        (b"GNU.sparse.size", b"%d" % SIZE),
        (b"GNU.sparse.numblocks", count),
        (b"GNU.sparse.map", text),
        (b"GNU.sparse.name", b"s"),
    )
    return records + header(b"GNUSparseFile.1/s", size=len(DATA))


def format_1_0(text: bytes = b"2\n4096\n5\n8192\n3\n", stored: int = 8) -> bytes:
    records = pax(
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.name", b"s"),
        (b"GNU.sparse.realsize", b"%d" % SIZE),
    )
    text = padded(text)
    return records + header(b"GNUSparseFile.1/s", size=len(text) + stored) + text


ALL = {
    "old": old_gnu(),
    "old extended": old_gnu(pieces=PIECES[:1], extensions=[extension(PIECES[1:])]),
    "old extended twice": old_gnu(
        pieces=(), extensions=[extension(PIECES[:1], more=True), extension(PIECES[1:])]
    ),
    "0.0": format_0_0(),
    "0.1": format_0_1(),
    "1.0": format_1_0(),
}


@pytest.mark.parametrize("start", ALL.values(), ids=ALL.keys())
def test_every_format_gives_the_same_file(start):
    archive = start + padded(DATA) + member(b"next") + END
    found, following = framings.in_every_framing(archive, parse)
    assert (found.name, found.type, found.size) == (b"s", MemberType.FILE, SIZE)
    assert (found.sparse, found.payload_size) == (PIECES, len(DATA))
    assert found.payload_offset == len(start)
    assert content_of(found, archive) == expected_content()
    assert following.name == b"next"


def test_pieces_without_bytes_are_left_out():
    archive = format_1_0(b"4\n0\n0\n4096\n5\n8192\n3\n20000\n0\n") + padded(DATA) + END
    assert framings.in_every_framing(archive, parse)[0].sparse == PIECES


def test_file_that_is_one_hole():
    for archive in (
        old_gnu(pieces=(), stored=0),
        old_gnu(pieces=((SIZE, 0),), stored=0),
        format_1_0(b"0\n", stored=0),
        format_1_0(b"1\n20000\n0\n", stored=0),
    ):
        (found,) = framings.in_every_framing(archive + END, parse)
        assert (found.size, found.sparse, found.payload_size) == (SIZE, (), 0)


def test_text_map_over_several_blocks():
    count = 300
    lines = [b"%d" % count] + [b"%d\n1" % (2 * i) for i in range(count)]
    archive = format_1_0(b"\n".join(lines) + b"\n", stored=count) + padded(b"x" * count) + END
    (found,) = framings.in_every_framing(archive, parse)
    assert found.sparse == tuple((2 * i, 1) for i in range(count))


def test_unknown_version_is_plain_data():
    records = pax((b"GNU.sparse.major", b"2"), (b"GNU.sparse.minor", b"0"))
    found = parse([records + member(b"s", DATA) + END])[0]
    assert (found.sparse, found.size) == (None, len(DATA))


BROKEN = {
    "overlapping": old_gnu(pieces=((0, 5), (4, 3))),
    "backwards": old_gnu(pieces=((8192, 5), (0, 3))),
    "beyond the end": old_gnu(pieces=((0, 5), (SIZE - 2, 3))),
    "more than stored": old_gnu(pieces=((0, 5), (10, 4))),
    "less than stored": old_gnu(pieces=((0, 5), (10, 2))),
    "not GNU": old_gnu(magic=b"ustar\x0000"),
    "0.0 out of order": special(b"x", record(b"GNU.sparse.numbytes", b"1")) + header(),
    "0.0 with a comma": special(b"x", record(b"GNU.sparse.offset", b"1,2")) + header(),
    "0.1 odd": format_0_1(b"4096,5,8192"),
    "0.1 wrong count": format_0_1(count=b"3"),
    "0.1 negative count": format_0_1(count=b"-2"),
    "0.1 no count": format_0_1(count=b""),
    "0.1 negative piece": format_0_1(b"4096,-5,8192,13"),
    "0.1 overflowing piece": format_0_1(b"9223372036854775807,5,9223372036854775807,3"),
    "0.1 no number": format_0_1(b"4096,5,8192,x"),
    "1.0 no number": format_1_0(b"2\n4096\n5\n8192\nx\n"),
    "1.0 negative count": format_1_0(b"-1\n"),
    "1.0 longer than its member": format_1_0(b"9\n1\n1\n", stored=0),
    "1.0 without a line": format_1_0(b"1" * 512, stored=0),
    "of a directory": pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"))
    + header(b"d", b"5"),
    "negative size": pax(
        (b"GNU.sparse.map", b"0,8"), (b"GNU.sparse.numblocks", b"1"), (b"GNU.sparse.size", b"-1")
    )
    + header(size=8),
}


@pytest.mark.parametrize("start", BROKEN.values(), ids=BROKEN.keys())
def test_map_that_makes_no_sense_is_rejected(start):
    with pytest.raises(InvalidLayer):
        framings.in_every_framing(start + padded(DATA) + END, parse)


def test_map_cut_off_is_an_error_at_the_end():
    for archive in (old_gnu(extensions=[extension(())])[:512], format_1_0()[:-512]):
        with pytest.raises(InvalidLayer, match="sparse map"):
            framings.in_every_framing(archive, parse)


# CVE-2025-58183 and CVE-2026-32288: Go read sparse maps without a bound, from little input.


def test_number_of_pieces_is_limited_cve_2025_58183():
    count = limits.TAR_SPARSE_PIECES + 1
    for archive in (format_1_0(b"%d\n" % count, stored=512), format_1_0(b"9223372036854775807\n")):
        with pytest.raises(LimitExceeded) as caught:
            parse([archive])
        assert caught.value.fields["limit"] == "TAR_SPARSE_PIECES"


def test_text_of_a_map_is_limited_cve_2025_58183():
    size = limits.TAR_SPECIAL_SIZE + 512
    with pytest.raises(LimitExceeded) as caught:
        parse([format_1_0(b"50000\n" + b"0" * size)])
    assert caught.value.fields["limit"] == "TAR_SPECIAL_SIZE"


def test_empty_extension_blocks_are_limited_cve_2026_32288():
    endless = extension((), more=True) * (limits.TAR_SPECIAL_SIZE // 512 + 1)
    with pytest.raises(LimitExceeded) as caught:
        parse([old_gnu(pieces=(), extensions=[endless])])
    assert caught.value.fields["limit"] == "TAR_SPECIAL_SIZE"


def test_largest_map_takes_linear_time():
    count = 80_000
    text = b"%d\n" % count + b"".join(b"%d\n1\n" % (2 * i) for i in range(count))
    records = pax(
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.realsize", b"%d" % (2 * count)),
    )
    text = padded(text)
    archive = records + header(b"s", size=len(text) + count) + text
    started = time.process_time()
    (found,) = parse([archive[i : i + 512] for i in range(0, len(archive), 512)] + [bytes(count)])
    assert len(found.sparse or ()) == count
    assert time.process_time() - started < 2


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0", "old"])
@pytest.mark.parametrize("pieces", [1, 3, 40])
def test_sparse_archives_of_gnu_tar(tmp_path, version, pieces):
    programs.require("tar")
    path = tmp_path / "holey"
    with path.open("wb") as file:
        for number in range(pieces):
            file.seek(number * 65_536 + 8192)
            file.write(b"%04d" % number * 1024)
        file.truncate(pieces * 65_536 + 100_000)
    choice = (
        ["--format=gnu"] if version == "old" else ["--format=pax", f"--sparse-version={version}"]
    )
    target = tmp_path / "archive.tar"
    programs.run("tar", *choice, "--sparse", "-cf", target, "-C", tmp_path, "holey")
    archive = target.read_bytes()
    (found,) = parse([archive[i : i + 1000] for i in range(0, len(archive), 1000)])
    assert found.name == b"holey"
    assert found.sparse is not None
    assert content_of(found, archive) == path.read_bytes()
