"""The tar parser, case by case. What is not said elsewhere behaves as in Go's archive/tar."""

import io
import tarfile

import pytest

from imgvol import limits
from imgvol.errors import InvalidLayer, LimitExceeded
from imgvol.layers.tar import MemberType, TarMember, TarParser
from support import framings
from support.tars import (
    END,
    GNU,
    USTAR,
    V7,
    base256,
    header,
    member,
    octal,
    padded,
    parse,
    pax,
    record,
    special,
)

SECOND = 1_000_000_000


def members_of(archive: bytes) -> list[TarMember]:
    return framings.in_every_framing(archive, parse)


def only_member_of(archive: bytes) -> TarMember:
    (found,) = members_of(archive)
    return found


def error_of(archive: bytes) -> InvalidLayer:
    with pytest.raises(InvalidLayer) as caught:
        members_of(archive)
    return caught.value


# --- the shape of an archive --------------------------------------------------------------------


def test_members_come_in_order_with_the_places_of_their_payloads():
    archive = member(b"a", b"x" * 700) + member(b"b", b"") + member(b"c", b"z" * 512) + END
    found = members_of(archive)
    assert [(m.name, m.size, m.payload_offset, m.payload_size) for m in found] == [
        (b"a", 700, 512, 700),
        (b"b", 0, 2048, 0),
        (b"c", 512, 2560, 512),
    ]
    assert archive[found[2].payload_offset :][:512] == b"z" * 512


def test_member_is_reported_before_its_payload():
    parser = TarParser()
    found = parser.feed(header(size=1 << 30))
    assert [m.payload_size for m in found] == [1 << 30]
    assert parser.offset == 512


def test_all_fields_of_a_ustar_header():
    block = header(
        b"name",
        b"3",
        mode=0o104755,
        uid=1000,
        gid=100,
        mtime=1,
        major=7,
        minor=9,
        tail=b"some/prefix",
    )
    assert only_member_of(block + END) == TarMember(
        name=b"some/prefix/name",
        type=MemberType.CHAR,
        mode=0o4755,
        uid=1000,
        gid=100,
        mtime_ns=SECOND,
        devmajor=7,
        devminor=9,
        payload_offset=512,
    )


def test_empty_input_and_end_blocks_alone_are_empty_archives():
    assert members_of(b"") == []
    assert members_of(END) == []
    assert members_of(END + bytes(10 * 512)) == []


@pytest.mark.parametrize("end", [b"", bytes(512)], ids=["none", "one"])
def test_end_blocks_may_be_missing(end):
    assert only_member_of(member(b"a", b"x") + end).name == b"a"


def test_padding_of_the_last_payload_may_be_missing():
    assert only_member_of(header(size=3) + b"abc").size == 3
    assert only_member_of(header(size=3) + b"abc\0\0").size == 3


def test_what_follows_the_end_is_counted_and_ignored():
    archive = member(b"a") + END
    junk = b"\xff" * 700 + member(b"b") + END
    assert [m.name for m in members_of(archive + junk)] == [b"a"]
    parser = TarParser()
    parser.feed(archive + junk)
    assert parser.offset == len(archive + junk)


def test_data_after_a_single_zero_block_is_an_error():
    error = error_of(member(b"a") + bytes(512) + member(b"b") + END)
    assert "zero block" in error.message


@pytest.mark.parametrize(
    ("archive", "inside"),
    [
        (header()[:-1], "header"),
        (member(b"a") + b"\0", "header"),
        (member(b"a") + bytes(512) + b"x", "header"),
        (header(size=512), "content"),
        (header(size=512) + bytes(511), "content"),
        (header(size=513) + bytes(512), "content"),
        (special(b"L", b"name")[:512], "extended header"),
        (special(b"x", record(b"path", b"a"))[:520], "extended header"),
    ],
)
def test_truncation_is_an_error_at_the_end(archive, inside):
    error = error_of(archive)
    assert inside in error.message
    assert error.fields["offset"] == len(archive)


def test_special_header_without_a_member_is_ignored_at_the_end():
    assert members_of(pax((b"path", b"a"))) == []
    assert members_of(special(b"L", b"a") + END) == []


@pytest.mark.parametrize("checksum", [b"000000\0 ", b"", b"9" * 8, base256(0, 8)])
def test_wrong_checksum_is_an_error_with_the_place_of_the_header(checksum):
    """Python's tarfile silently ends the archive there."""
    broken = bytearray(header(b"b", checksum=checksum or None))
    if not checksum:
        broken[3] ^= 1
    error = error_of(member(b"a", b"x") + broken + END)
    assert error.fields["offset"] == 1024
    assert "checksum" in error.message or "octal" in error.message


def test_base256_checksum_is_an_error():
    block = header()
    right = int(block[148:154], 8)
    error_of(header(checksum=base256(right, 8)) + END)


def test_sun_checksum_over_signed_bytes_is_accepted():
    name = b"caf\xe9\xff"
    unsigned = int(header(name)[148:154], 8)
    block = header(name, checksum=b"%06o\0 " % (unsigned - 2 * 256))
    assert only_member_of(block + END).name == name
    error_of(header(name, checksum=b"%06o\0 " % (unsigned - 256)) + END)


def test_checksum_of_the_heaviest_block_possible():
    """The sum is taken in parts that must not wrap: all bytes as high as they can be."""
    heavy = dict.fromkeys(("mode", "uid", "gid"), b"7" * 8)
    found = header(
        b"\xff" * 100, linkname=b"\xff" * 100, magic=b"\xff" * 8, tail=b"\xff" * 167, **heavy
    )
    assert only_member_of(found + END).name == b"\xff" * 100


def test_failed_parser_stays_failed():
    parser = TarParser()
    with pytest.raises(InvalidLayer) as first:
        parser.feed(b"x" * 512)
    for call in (lambda: parser.feed(header() + END), parser.finish):
        with pytest.raises(InvalidLayer) as again:
            call()
        assert (str(again.value), again.value.fields) == (str(first.value), first.value.fields)


# --- types --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(MemberType))
def test_types(kind):
    found = only_member_of(header(b"n", kind.value, linkname=b"l", major=1, minor=2) + END)
    is_link = kind in (MemberType.HARDLINK, MemberType.SYMLINK)
    is_device = kind in (MemberType.CHAR, MemberType.BLOCK)
    assert found.type is kind
    assert found.linkname == (b"l" if is_link else b"")
    assert (found.devmajor, found.devminor) == ((1, 2) if is_device else (0, 0))


@pytest.mark.parametrize("kind", [kind for kind in MemberType if kind is not MemberType.FILE])
@pytest.mark.parametrize(
    "size", [5, base256(1 << 40, 12), base256(-5, 12)], ids=["5", "huge", "negative"]
)
def test_header_only_types_have_no_payload_whatever_their_size(kind, size):
    found = members_of(header(b"a", kind.value, size=size, linkname=b"t") + member(b"b") + END)
    assert [(m.name, m.size, m.payload_size) for m in found] == [(b"a", 0, 0), (b"b", 0, 0)]


def test_contiguous_type_is_a_regular_file():
    found = members_of(header(b"a", b"7", size=3) + padded(b"abc") + member(b"b") + END)
    assert [(m.type, m.size) for m in found] == [(MemberType.FILE, 3), (MemberType.FILE, 0)]


def test_old_type_is_a_directory_when_the_name_ends_in_a_slash():
    found = members_of(header(b"d/", b"\0", size=99) + header(b"f", b"\0", size=1) + padded(b"x"))
    assert [(m.type, m.size) for m in found] == [(MemberType.DIRECTORY, 0), (MemberType.FILE, 1)]


def test_old_type_looks_at_the_long_name():
    assert only_member_of(special(b"L", b"d/") + header(b"f", b"\0")).type is MemberType.DIRECTORY
    assert only_member_of(pax((b"path", b"f")) + header(b"d/", b"\0")).type is MemberType.FILE


def test_regular_type_stays_a_file_when_the_name_ends_in_a_slash():
    assert only_member_of(member(b"d/", b"x")).type is MemberType.FILE


@pytest.mark.parametrize("flag", [b"Z", b"V", b"M", b"D", b"N", b"X", b"A", b"8", b"\xff", b" "])
def test_unknown_types_are_rejected(flag):
    assert "unknown type" in error_of(member(b"a") + header(b"b", flag) + END).message


# --- layouts ------------------------------------------------------------------------------------


def test_prefix_belongs_to_ustar_only():
    assert only_member_of(header(tail=b"p") + END).name == b"p/file"
    assert only_member_of(header(tail=b"p", magic=V7) + END).name == b"file"
    assert only_member_of(header(magic=GNU, tail=bytes(24) + b"p") + END).name == b"file"


def test_v7_header_has_no_device_numbers():
    block = header(b"tty", b"3", magic=V7, major=b"garbage!", minor=b"garbage!")
    found = only_member_of(block + END)
    assert (found.type, found.devmajor, found.devminor) == (MemberType.CHAR, 0, 0)


def test_star_prefix_is_shorter_and_followed_by_times():
    tail = b"p" * 131 + octal(1, 12) + octal(2, 12) + bytes(8) + b"tar\0"
    assert only_member_of(header(tail=tail) + END).name == b"p" * 131 + b"/file"
    error_of(header(tail=tail.replace(octal(2, 12), b"no number\0\0\0")) + END)


def test_gnu_header_with_the_prefix_that_old_go_wrote():
    """golang.org/issue/12594: Go before 1.8 wrote a prefix where GNU's layout has times."""
    assert only_member_of(header(magic=GNU, tail=b"usr/lib") + END).name == b"usr/lib/file"
    assert only_member_of(header(magic=GNU, tail=b"usr/\xe9") + END).name == b"file"
    times = octal(1_700_000_000, 12) + base256(-1, 12)
    assert only_member_of(header(magic=GNU, tail=times) + END).name == b"file"


def test_names_fill_their_fields_and_end_at_a_nul():
    found = members_of(
        header(b"n" * 100, b"2", linkname=b"l" * 100, tail=b"p" * 155) + header(b"a\0junk") + END
    )
    assert [(m.name, m.linkname) for m in found] == [
        (b"p" * 155 + b"/" + b"n" * 100, b"l" * 100),
        (b"a", b""),
    ]


def test_names_are_bytes():
    name = bytes(range(1, 100))
    assert only_member_of(header(name) + END).name == name
    assert only_member_of(pax((b"path", b"\xff\xfe/\n=")) + header()).name == b"\xff\xfe/\n="


# --- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"0000017\0", 15),
        (b"00000017", 15),
        (b"     17 ", 15),
        (b" 17\0\0\0\0\0", 15),
        (b"\0\0 17 \0 ", 15),
        (b"17\0junk\0", 15),
        (b"        ", 0),
        (bytes(8), 0),
        (base256(15, 8), 15),
        (base256(1 << 40, 8), 1 << 40),
        (base256(-1, 8), -1),
        (base256(-(1 << 40), 8), -(1 << 40)),
    ],
)
def test_numbers(field, value):
    assert only_member_of(header(uid=field) + END).uid == value


@pytest.mark.parametrize(
    "field", [b"8", b"0x10", b"0o17", b"1_7", b"+17", b"-1", b"17 17", b"17 \0x", b"1\xb2", b"x"]
)
def test_what_is_no_number_is_rejected(field):
    for name in ("mode", "uid", "gid", "size", "mtime", "major", "minor"):
        error_of(header(**{name: field}) + END)


def test_base256_numbers_have_64_bits_at_most():
    largest, smallest = base256((1 << 63) - 1, 12), base256(-(1 << 63), 12)
    assert only_member_of(header(mtime=largest) + END).mtime_ns == ((1 << 63) - 1) * SECOND
    assert only_member_of(header(mtime=smallest) + END).mtime_ns == -(1 << 63) * SECOND
    for number in (1 << 63, -(1 << 63) - 1, 1 << 80):
        error_of(header(mtime=base256(number, 12)) + END)


def test_owners_beyond_21_bits():
    found = only_member_of(header(uid=base256(4_294_967_295, 8), gid=base256(1 << 21, 8)) + END)
    assert (found.uid, found.gid) == (4_294_967_295, 1 << 21)
    records = pax((b"uid", b"4000000000"), (b"gid", b"2147483648"))
    found = only_member_of(records + header(uid=1, gid=1) + END)
    assert (found.uid, found.gid) == (4_000_000_000, 2_147_483_648)


@pytest.mark.parametrize("value", [1 << 31, (1 << 32) - 1, 1 << 32, (1 << 32) + 1, -1])
def test_owners_never_wrap_cve_2024_40635(value):
    """An owner beyond 32 bits that wraps to 0 makes root of anybody. The index checks the range."""
    assert only_member_of(header(uid=base256(value, 8)) + END).uid == value
    assert only_member_of(pax((b"uid", b"%d" % value)) + header() + END).uid == value


@pytest.mark.parametrize("number", [1 << 32, -1])
def test_device_numbers_have_32_bits(number):
    error_of(header(b"d", b"4", major=base256(number, 8)) + END)
    error_of(header(b"d", b"3", minor=base256(number, 8)) + END)
    assert only_member_of(header(b"f", b"0", minor=base256(number, 8)) + END).devminor == 0


def test_negative_time_of_a_header():
    assert only_member_of(header(mtime=base256(-10, 12)) + END).mtime_ns == -10 * SECOND


@pytest.mark.parametrize("flag", [b"0", b"\0", b"7", b"x", b"g", b"L", b"K", b"S"])
def test_negative_size_is_rejected_cve_2025_8194(flag):
    """A negative size moves a careless reader backwards, so that it never ends."""
    error_of(header(b"a", flag, size=base256(-512, 12), magic=GNU) + END)


# --- GNU long names -----------------------------------------------------------------------------


def test_gnu_long_name_and_link_end_at_a_nul():
    name, target = b"n" * 300, b"t" * 5000
    archive = special(b"L", name + b"\0junk") + special(b"K", target) + header(b"n", b"2")
    found = only_member_of(archive + END)
    assert (found.name, found.linkname) == (name, target)


def test_long_names_serve_one_member_only():
    found = members_of(special(b"L", b"long") + header(b"a") + header(b"b") + END)
    assert [m.name for m in found] == [b"long", b"b"]


def test_empty_long_name_changes_nothing():
    assert only_member_of(special(b"L", b"") + header(b"a") + END).name == b"a"
    assert only_member_of(special(b"L", b"\0") + header(b"a") + END).name == b"a"


def test_long_name_beats_pax_path():
    archive = special(b"L", b"gnu") + pax((b"path", b"pax")) + header(b"a")
    assert only_member_of(archive).name == b"gnu"


@pytest.mark.parametrize("flag", [b"L", b"K", b"x", b"g"])
def test_special_bodies_are_bounded_before_they_arrive(flag):
    """CPython PR 151498: the long name's size in the header was allocated at once."""
    parser = TarParser()
    with pytest.raises(LimitExceeded) as caught:
        parser.feed(header(b"a", flag, size=limits.TAR_SPECIAL_SIZE + 1))
    assert caught.value.fields["limit"] == "TAR_SPECIAL_SIZE"


def test_special_body_of_the_largest_size_is_accepted():
    name = b"n" * limits.TAR_SPECIAL_SIZE
    assert parse([special(b"L", name) + header() + END])[0].name == name


# --- PAX ----------------------------------------------------------------------------------------


def test_pax_path_and_linkpath():
    archive = pax((b"path", b"p" * 200), (b"linkpath", b"l" * 200)) + header(b"a", b"1")
    found = only_member_of(archive)
    assert (found.name, found.linkname) == (b"p" * 200, b"l" * 200)


def test_last_pax_header_of_several_wins_whole():
    archive = pax((b"path", b"a"), (b"uid", b"7")) + pax((b"path", b"b")) + header(uid=1) + END
    found = only_member_of(archive)
    assert (found.name, found.uid) == (b"b", 1)


def test_last_record_of_several_with_one_key_wins():
    assert only_member_of(pax((b"path", b"a"), (b"path", b"b")) + header()).name == b"b"
    assert only_member_of(pax((b"path", b"a"), (b"path", b"")) + header(b"own")).name == b"own"


def test_global_pax_header_is_ignored():
    archive = pax((b"uid", b"7"), (b"path", b"g"), flag=b"g") + member(b"a") + member(b"b") + END
    assert [(m.name, m.uid) for m in members_of(archive)] == [(b"a", 0), (b"b", 0)]


def test_global_pax_header_uses_up_what_came_before_it():
    """As in Go, where it is a member of its own."""
    archive = (
        pax((b"path", b"x")) + special(b"L", b"l") + pax((b"a", b"b"), flag=b"g") + header(b"a")
    )
    assert only_member_of(archive).name == b"a"


def test_global_pax_header_is_checked():
    error_of(special(b"g", b"99 path=a\n") + header())


def test_empty_pax_value_leaves_the_field_of_the_header():
    keys = [b"path", b"size", b"uid", b"mtime", b"SCHILY.xattr.user.a"]
    archive = pax(*((key, b"") for key in keys)) + member(b"own", b"abc", uid=7) + END
    found = only_member_of(archive)
    assert (found.name, found.size, found.uid, found.xattrs) == (b"own", 3, 7, ())
    assert found.mtime_ns == 1_700_000_000 * SECOND


def test_empty_pax_body_is_accepted():
    assert only_member_of(special(b"x", b"") + header(b"a")).name == b"a"


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        (b"1700000000.123456789", 1_700_000_000_123_456_789),
        (b"1700000000.1234567", 1_700_000_000_123_456_700),
        (b"1700000000.9999999999", 1_700_000_000_999_999_999),
        (b"1.", SECOND),
        (b"0.000000001", 1),
        (b"-1.5", -1_500_000_000),
        (b"-0.5", -500_000_000),
        (b"+2.5", 2_500_000_000),
        (b"9223372036854775807.5", ((1 << 63) - 1) * SECOND + SECOND // 2),
    ],
)
def test_pax_time_is_exact(text, nanoseconds):
    assert only_member_of(pax((b"mtime", text)) + header() + END).mtime_ns == nanoseconds


@pytest.mark.parametrize(
    "text", [b".5", b"1e9", b"1.5.5", b"1,5", b" 1", b"nan", b"1.-5", b"1_0", b"-"]
)
@pytest.mark.parametrize("key", [b"mtime", b"atime", b"ctime"])
def test_pax_time_that_is_not_decimal_is_rejected(key, text):
    error_of(pax((key, text)) + header())


@pytest.mark.parametrize(
    "text", [b"0x1", b"1_0", b" 1", b"1 ", b"1.0", b"--1", b"+", b"1" * 20, b"9" * 5000]
)
@pytest.mark.parametrize("key", [b"uid", b"gid", b"size"])
def test_pax_number_that_is_not_decimal_is_rejected(key, text):
    error_of(pax((key, text)) + header())


@pytest.mark.parametrize("seconds", [b"0", b"-1", b"+1", b"1700000000", b"9" * 17, b"9" * 18])
def test_pax_time_of_nine_digits_behind_the_point_is_exact(seconds):
    text = seconds + b".123456789"
    part = -123456789 if seconds.startswith(b"-") else 123456789
    found = only_member_of(pax((b"mtime", text)) + header() + END)
    assert found.mtime_ns == int(seconds) * SECOND + part


@pytest.mark.parametrize(
    "text", [b".123456789", b"1 .123456789", b"1_0.123456789", b"1.12345678x", b"1.1234.6789"]
)
def test_pax_time_of_nine_digits_has_to_be_decimal(text):
    error_of(pax((b"mtime", text)) + header())


def test_pax_number_may_have_leading_zeros():
    assert only_member_of(pax((b"uid", b"0" * 6000 + b"7")) + header()).uid == 7


def test_pax_size_says_where_the_payload_ends_cve_2025_62518():
    """TARmageddon: a reader that seeks by the header's size finds members inside of a payload."""
    inner = member(b"smuggled", b"x")
    size = b"%d" % len(inner)
    archive = pax((b"size", size)) + header(b"outer", size=0) + inner + member(b"next") + END
    found = members_of(archive)
    assert [(m.name, m.size) for m in found] == [(b"outer", len(inner)), (b"next", 0)]
    archive = pax((b"size", b"0")) + header(b"outer", size=1024) + inner + END
    assert [m.name for m in members_of(archive)] == [b"outer", b"smuggled"]


def test_pax_size_of_header_only_types_is_ignored():
    archive = pax((b"size", b"1024")) + header(b"d", b"5") + member(b"a") + END
    assert [(m.name, m.size) for m in members_of(archive)] == [(b"d", 0), (b"a", 0)]


def test_pax_size_cannot_be_negative():
    error_of(pax((b"size", b"-1")) + header() + END)


def test_pax_size_does_not_excuse_a_negative_size_in_the_header():
    error_of(pax((b"size", b"1")) + header(size=base256(-1, 12)) + padded(b"x") + END)


def test_extended_attributes_are_exact_and_sorted():
    value = b"\x01\0\0\x02=\n\xff\0"
    archive = pax(
        (b"SCHILY.xattr.user.z", b"last"),
        (b"SCHILY.xattr.security.capability", value),
        (b"LIBARCHIVE.xattr.user.z", b"bGFzdA"),
        (b"SCHILY.acl.access", b"user::rw-"),
        (b"RHT.security.selinux", b"x"),
    )
    assert only_member_of(archive + header() + END).xattrs == (
        (b"security.capability", value),
        (b"user.z", b"last"),
    )


def test_extended_attribute_needs_a_name():
    error_of(pax((b"SCHILY.xattr.", b"x")) + header() + END)


@pytest.mark.parametrize(
    "body", [b"0 path=a\n", b"00000 a=b\n", b"1 a=b\n", b"4 =\n\n", b"-9 a=b\n"]
)
def test_record_that_does_not_cover_itself_is_rejected_cve_2019_20907(body):
    """A length of 0 had Python's tarfile go round for ever."""
    error_of(special(b"x", body) + header() + END)


@pytest.mark.parametrize(
    "body",
    [
        b"12 path=ab\n",  # longer than the body
        b"10 path=ab\n",  # cuts off its newline
        b"11 path=ab ",  # no newline
        b"path=ab\n",  # no length
        b"x11 path=a\n",
        b"8 path\n\n",  # no equals sign
        b"7 =ab\n\n"[:7],  # no key
        b"11 path=ab\n\0",  # something behind
        b"11 path=ab\n11 path=ab",
        b"99999999999999999999 path=a\n",
        b"1_1 path=ab\n",
        b" 11 path=ab\n",
    ],
)
def test_malformed_records_are_rejected(body):
    error_of(special(b"x", body) + header() + END)


@pytest.mark.parametrize("key", [b"path", b"linkpath", b"uname", b"gname", b"a\0b"])
def test_nul_in_a_name_is_rejected(key):
    error_of(pax((key, b"a\0b")) + header() + END)


def test_long_runs_without_structure_take_linear_time_cve_2024_6232():
    """Backtracking over a header took Python minutes; a megabyte must take no time at all."""
    size = limits.TAR_SPECIAL_SIZE
    for body in (
        b"1" * size,
        b" " * size,
        b"0" * (size - 8) + b"9 a=b\n\n",
        b"5 a=\n" * (size // 5),
    ):
        framings.outcome(lambda body=body: parse([special(b"x", body) + header() + END]))


def test_stream_that_ends_early_ends_the_parser_cve_2026_11972():
    """A reader that waited for the rest of a cut stream never came back."""
    archive = special(b"L", b"n" * 600) + pax((b"path", b"a")) + member(b"a", b"x" * 600) + END
    for length in range(len(archive)):
        framings.outcome(lambda length=length: parse([archive[:length]]))


def test_many_extended_headers_hold_one_at_a_time_cve_2022_2879():
    """Go read PAX bodies without a bound; ten of the largest must not add up."""
    body = record(b"comment", b"c" * 1_000_000)
    parser = TarParser()
    for _ in range(10):
        parser.feed(special(b"x", body))
    assert [m.name for m in parser.feed(header(b"a"))] == [b"a"]


# --- limits -------------------------------------------------------------------------------------


def test_member_larger_than_any_layer_is_rejected():
    for archive in (header(size=base256(1 << 62, 12)), pax((b"size", b"1" + b"0" * 18)) + header()):
        with pytest.raises(LimitExceeded) as caught:
            members_of(archive)
        assert caught.value.fields["limit"] == "TAR_SIZE"


def test_layer_larger_than_the_limit_is_rejected(monkeypatch):
    monkeypatch.setattr(limits, "TAR_SIZE", 4096)
    with pytest.raises(LimitExceeded):
        parse([END, bytes(4096)])


def test_number_of_members_is_limited(monkeypatch):
    monkeypatch.setattr(limits, "TAR_ENTRIES", 3)
    assert len(parse([header() * 3 + END])) == 3
    with pytest.raises(LimitExceeded) as caught:
        parse([header() * 4 + END])
    assert caught.value.fields == {"limit": "TAR_ENTRIES", "allowed": 3}


# --- archives of tools --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_of_python_tarfile(kind):
    buffer = io.BytesIO()
    name = "d" * 90 + "/" + ("n" * 90 if kind == tarfile.USTAR_FORMAT else "n" * 200)
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        info = tarfile.TarInfo(name)
        info.size, info.mtime = 3, 12
        archive.addfile(info, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "t" * 99
        archive.addfile(link)
    data = buffer.getvalue()
    file, symlink = members_of(data)
    assert (file.name, file.size, file.mtime_ns) == (name.encode(), 3, 12 * SECOND)
    assert data[file.payload_offset :][:3] == b"abc"
    assert (symlink.type, symlink.linkname) == (MemberType.SYMLINK, b"t" * 99)


def test_members_of_a_bare_ustar_magic_without_version():
    """Go looks at the magic only; some tools leave the version blank."""
    assert only_member_of(header(magic=b"ustar\0\0\0", tail=b"p") + END).name == b"p/file"
    assert only_member_of(header(magic=USTAR[:7] + b"\xff", tail=b"p") + END).name == b"p/file"
