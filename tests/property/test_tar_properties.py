"""The tar parser against other tools, against cuts anywhere, and against arbitrary bytes."""

import io
import random
import tarfile
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imgvol import limits
from imgvol.errors import InvalidLayer, LimitExceeded
from imgvol.layers.header import FormatError, parse_header
from imgvol.layers.tar import MemberType, TarMember
from support import framings, programs
from support.tars import END, GNU, header, member, parse, pax, special

TARFILE_TYPES = {
    tarfile.REGTYPE: MemberType.FILE,
    tarfile.AREGTYPE: MemberType.FILE,
    tarfile.LNKTYPE: MemberType.HARDLINK,
    tarfile.SYMTYPE: MemberType.SYMLINK,
    tarfile.CHRTYPE: MemberType.CHAR,
    tarfile.BLKTYPE: MemberType.BLOCK,
    tarfile.DIRTYPE: MemberType.DIRECTORY,
    tarfile.FIFOTYPE: MemberType.FIFO,
}
SECOND = 1_000_000_000

texts = st.text(
    st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=120
).filter(lambda text: not text.endswith("/"))
xattrs = st.dictionaries(
    st.text("abc._", min_size=1, max_size=20), st.text(min_size=1, max_size=20), max_size=3
)


@st.composite
def infos(draw: st.DrawFn) -> tuple[tarfile.TarInfo, bytes]:
    kind = draw(st.sampled_from(sorted(TARFILE_TYPES.keys() - {tarfile.AREGTYPE})))
    info = tarfile.TarInfo(draw(texts))
    info.type = kind
    info.mode = draw(st.integers(0, 0o7777))
    info.uid, info.gid = draw(st.tuples(st.integers(0, 1 << 32), st.integers(0, 0o7777777)))
    info.mtime = draw(st.integers(0, 1 << 34))
    if kind in (tarfile.LNKTYPE, tarfile.SYMTYPE):
        info.linkname = draw(texts)
    if kind in (tarfile.CHRTYPE, tarfile.BLKTYPE):
        info.devmajor, info.devminor = draw(st.tuples(st.integers(0, 4095), st.integers(0, 4095)))
    data = draw(st.binary(max_size=1100)) if kind == tarfile.REGTYPE else b""
    info.size = len(data)
    return info, data


def packed(entries, kind: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
        end = archive.offset
    # Without the rest of the last record, which would only cost time.
    return buffer.getvalue()[: end + 1024]


def as_tarfile_sees(info: tarfile.TarInfo) -> tuple:
    is_link = info.type in (tarfile.LNKTYPE, tarfile.SYMTYPE)
    is_device = info.type in (tarfile.CHRTYPE, tarfile.BLKTYPE)
    name = info.name.encode("utf-8", "surrogateescape")
    return (
        name.rstrip(b"/") + b"/" if info.isdir() else name,
        TARFILE_TYPES[info.type],
        info.mode & 0o7777,
        info.uid,
        info.gid,
        info.size if info.isreg() else 0,
        int(info.mtime) * SECOND,
        info.linkname.encode("utf-8", "surrogateescape") if is_link else b"",
        info.devmajor if is_device else 0,
        info.devminor if is_device else 0,
    )


@given(st.lists(infos(), max_size=5), st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_archives_of_tarfile_are_read_as_written(entries, kind):
    archive = packed(entries, kind)
    members = framings.in_every_framing(archive, parse)
    assert [m[:10] for m in members] == [as_tarfile_sees(info) for info, _ in entries]
    for found, (_, data) in zip(members, entries, strict=True):
        assert archive[found.payload_offset :][: found.payload_size] == data


@given(xattrs, st.binary(max_size=600))
def test_pax_attributes_of_tarfile_are_read_as_written(attributes, data):
    info = tarfile.TarInfo("f")
    info.size = len(data)
    info.pax_headers = {f"SCHILY.xattr.{name}": value for name, value in attributes.items()}
    (found,) = parse([packed([(info, data)], tarfile.PAX_FORMAT)])
    assert dict(found.xattrs) == {
        name.encode(): value.encode() for name, value in attributes.items()
    }


@pytest.mark.parametrize(
    ("program", "choice"),
    [("tar", f"--format={name}") for name in ("v7", "ustar", "oldgnu", "gnu", "posix")]
    + [("bsdtar", f"--format={name}") for name in ("v7", "ustar", "gnutar", "pax")],
)
def test_archives_of_other_tools_are_read_as_tarfile_reads_them(tmp_path, program, choice):
    programs.require(program)
    rng = random.Random(5)
    tree = tmp_path / "tree"
    for number in range(30):
        directory = tree.joinpath(*("d" * rng.randint(1, 20) for _ in range(rng.randint(0, 2))))
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{number}-é-{'n' * rng.randint(1, 30)}"
        match number % 5:
            case 0:
                path.symlink_to("t" * rng.randint(1, 99))
            case 1:
                path.mkdir(mode=0o700)
            case 2:
                path.hardlink_to(_file(directory / f"{number}-twin", b"twin"))
            case _:
                _file(path, rng.randbytes(rng.randint(0, 2000)))
    if "v7" not in choice and "ustar" not in choice:
        _file(tree / ("long" * 50), b"x")
    target = tmp_path / "archive.tar"
    programs.run(program, choice, "-cf", target, "-C", tree, ".")
    archive = target.read_bytes()
    members = parse([archive[i : i + 777] for i in range(0, len(archive), 777)])
    with tarfile.open(target) as reference:
        expected = reference.getmembers()
    assert [without_fraction(m)[:10] for m in members] == [as_tarfile_sees(i) for i in expected]
    for found, info in zip(members, expected, strict=True):
        if info.isreg():
            assert found.payload_offset == info.offset_data


def without_fraction(found: TarMember) -> TarMember:
    """tarfile turns times into floats: what is exact in both are the seconds."""
    return found._replace(mtime_ns=found.mtime_ns // SECOND * SECOND)


def _file(path, data: bytes):
    path.write_bytes(data)
    return path


# --- hostile input ------------------------------------------------------------------------------


def survives(archive: bytes) -> list[TarMember] | tuple[type, str]:
    """Parses anything: the only errors that come out are about the content."""
    found = framings.outcome(lambda: framings.in_every_framing(archive, parse))
    if isinstance(found, tuple):
        assert found[0] in (InvalidLayer, LimitExceeded)
    return found


VALID = (
    pax((b"mtime", b"-1.5"), (b"path", b"a/b"), (b"SCHILY.xattr.user.a", b"x\0y"))
    + member(b"n", b"hello", uid=5)
    + special(b"L", b"long" * 40)
    + special(b"K", b"link" * 40)
    + header(b"x", b"2")
    + pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9"))
    + member(b"s", b"1\n4\n5\n".ljust(512, b"\0") + b"holes")
    + header(b"d/", b"\0", magic=bytes(8))
    + header(b"o", b"S", magic=GNU, tail=bytes(138) + b"00000000000\0")
    + END
)


def test_valid_archive_of_the_mutations_is_valid():
    assert [m.type.name for m in survives(VALID)] == [
        "FILE",
        "SYMLINK",
        "FILE",
        "DIRECTORY",
        "FILE",
    ]


@given(st.binary(max_size=2000))
@example(b"")
@example(bytes(512) + b"\xff" * 512)
def test_arbitrary_bytes_raise_nothing_else(data):
    survives(data)


# Where they start: name, mode, uid, size, mtime, type, link, magic, major, a time of GNU, a piece,
# extended, real size, STAR's trailer.
fields = st.sampled_from([0, 100, 108, 124, 136, 156, 157, 257, 329, 345, 386, 482, 483, 508])
contents = st.sampled_from([b"\xff" * 12, b"\x80" * 12, bytes(12), b" " * 12, b"7" * 12, b"-1"])


@given(st.integers(0, len(VALID) // 512 - 1), fields, contents | st.binary(max_size=12))
def test_mutated_headers_with_right_checksums_raise_nothing_else(number, start, content):
    block = bytearray(VALID[number * 512 :][:512])
    content = content[: 512 - start]
    block[start : start + len(content)] = content
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    survives(VALID[: number * 512] + block + VALID[(number + 1) * 512 :])


@given(st.integers(0, len(VALID)), st.integers(0, 600), st.binary(max_size=600))
def test_mutated_archives_raise_nothing_else(place, removed, inserted):
    survives(VALID[:place] + inserted + VALID[place + removed :])


# --- the short cut ------------------------------------------------------------------------------

PLAIN = (
    header(b"d/", b"5", mode=0o755, size=7)
    + member(b"d/a", b"x" * 700)
    + pax((b"mtime", b"1700000000.123456789"), (b"path", b"d/b"))
    + member(b"n", b"hello", uid=5)
    + header(b"d/l", b"2", linkname=b"a")
    + header(b"d/h", b"1", linkname=b"d/a", magic=GNU)
    + pax((b"mtime", b"1700000000.5"), (b"SCHILY.xattr.user.a", b"v"), (b"size", b"3"))
    + member(b"\xc3\xa9", b"end")
    + END
)
BY_STEPS = [PLAIN[i : i + 1] for i in range(len(PLAIN))]


def in_pieces(archive: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(archive), *(cut % (len(archive) + 1) for cut in cuts)})
    return [archive[begin:end] for begin, end in pairwise(places)]


@given(st.lists(st.integers(0, len(PLAIN)), max_size=6))
def test_usual_members_are_the_same_by_the_short_cut_and_by_steps(cuts):
    assert parse(in_pieces(PLAIN, cuts)) == parse(BY_STEPS)


@given(
    st.integers(0, len(PLAIN) // 512 - 1),
    fields,
    contents | st.binary(max_size=12),
    st.lists(st.integers(0, len(PLAIN)), max_size=3),
)
def test_the_short_cut_takes_nothing_that_the_steps_refuse(number, start, content, cuts):
    block = bytearray(PLAIN[number * 512 :][:512])
    content = content[: 512 - start]
    block[start : start + len(content)] = content
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    archive = PLAIN[: number * 512] + block + PLAIN[(number + 1) * 512 :]
    by_steps = framings.outcome(lambda: parse([archive[i : i + 1] for i in range(len(archive))]))
    assert framings.outcome(lambda: parse(in_pieces(archive, cuts))) == by_steps


def test_limits_are_the_same_by_the_short_cut_and_by_steps(monkeypatch):
    monkeypatch.setattr(limits, "TAR_ENTRIES", 3)
    with pytest.raises(LimitExceeded) as short:
        parse([PLAIN])
    with pytest.raises(LimitExceeded) as steps:
        parse(BY_STEPS)
    assert str(short.value) == str(steps.value)
    monkeypatch.setattr(limits, "TAR_ENTRIES", 6)
    assert len(parse([PLAIN])) == len(parse(BY_STEPS)) == 6


@given(st.binary(min_size=512, max_size=512), st.booleans())
def test_a_checksum_is_what_adding_bytes_up_gives(block, is_signed):
    fields = bytearray(header())
    # Name, link name, user and group names may hold anything.
    for part in (slice(0, 100), slice(157, 257), slice(265, 329)):
        fields[part] = block[part]
    fields[148:156] = b" " * 8
    total = sum(fields) - 256 * is_signed * sum(byte >= 0x80 for byte in fields)
    fields[148:156] = b"%06o\0 " % total
    if total < 0:
        return
    assert parse_header(bytes(fields)).name == bytes(fields[:100]).partition(b"\0")[0]
    fields[148:156] = b"%06o\0 " % (total + 1)
    with pytest.raises(FormatError):
        parse_header(bytes(fields))


keys = st.sampled_from(
    [b"path", b"size", b"mtime", b"uid"]
    + [b"GNU.sparse." + name for name in (b"map", b"numblocks", b"major", b"minor", b"realsize")]
)
values = st.sampled_from([b"", b"0", b"1", b"-1", b"0,4,8,2", b"9" * 19, b"1.5"])


@given(st.lists(st.tuples(keys, values | st.binary(max_size=9)), max_size=5))
def test_records_of_every_kind_raise_nothing_else(records):
    survives(pax(*records) + member(b"n", b"2\n0\n4\n8\n2\n".ljust(518, b"\0")) + END)
