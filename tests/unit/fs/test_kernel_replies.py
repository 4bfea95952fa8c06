"""What the kernel is told, taken apart again by the table that its header confirms."""

import stat
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvol.errors import MachineLacks
from imgvol.fs.kernel import negotiation, protocol, replies
from imgvol.fs.kernel.protocol import InitFlag, NotifyCode, OpenFlag
from imgvol.fs.kernel.requests import Init
from imgvol.fs.replies import ABSENT, FOR_EVER, Entry, FilesystemSize
from imgvol.layers.index import NodeType
from imgvol.view.chain import Attributes

u32 = st.integers(0, 2**32 - 1)
attributes = st.builds(
    Attributes,
    ino=st.integers(2, 2**63 - 1),
    type=st.just(NodeType.FILE),
    mode=st.integers(0, 0o7777).map(lambda bits: stat.S_IFREG | bits),
    nlink=u32,
    uid=u32,
    gid=u32,
    size=st.integers(0, 2**63 - 1),
    mtime_ns=st.integers(-(2**62), 2**62),
    rdev=u32,
)
names = st.binary(min_size=1, max_size=255)


def expected_attr(of: Attributes) -> tuple[int, ...]:
    seconds, rest = divmod(of.mtime_ns, 10**9)
    size = -(-of.size // 512)
    times = (seconds,) * 3 + (rest,) * 3
    return (of.ino, of.size, size, *times, of.mode, of.nlink, of.uid, of.gid, of.rdev, 4096, 0)


@given(attributes)
def test_entries_and_attributes(of):
    entry = protocol.ENTRY_OUT.unpack_from(replies.entry_out(Entry(of, entry_timeout=0)), 0)
    assert entry == (of.ino, 0, 0, FOR_EVER, 0, 0, *expected_attr(of))
    attr = protocol.ATTR_OUT.unpack_from(replies.attr_out(Entry(of)), 0)
    assert attr == (FOR_EVER, 0, *expected_attr(of))


def test_a_name_that_does_not_exist_is_inode_0_for_ever():
    nodeid, _, entry_valid, *_ = protocol.ENTRY_OUT.unpack_from(replies.entry_out(ABSENT), 0)
    assert (nodeid, entry_valid) == (0, FOR_EVER)


def listed(data: bytes, is_plus: bool):
    """The entries of a listing, as the kernel takes them apart."""
    found, at = [], 0
    fixed = protocol.DIRENTPLUS if is_plus else protocol.DIRENT
    while at < len(data):
        *before, ino, cookie, length, kind = fixed.unpack_from(data, at)
        name = data[at + fixed.size : at + fixed.size + length]
        found.append((name, ino, cookie, kind, tuple(before)))
        end = fixed.size + length
        at += end + -end % 8
    assert at == len(data)
    return found


@given(st.lists(st.tuples(names, attributes), max_size=12), st.integers(0, 2000), st.booleans())
def test_listings(entries, room, is_plus):
    part = replies.ListingPart(room, is_plus=is_plus)
    taken = 0
    for name, of in entries:
        if not part.add(name, Entry(of), taken + 1):
            break
        taken += 1
    assert len(part.data) <= room
    found = listed(bytes(part.data), is_plus)
    assert [(name, ino, cookie) for name, ino, cookie, _, _ in found] == [
        (name, of.ino, place + 1) for place, (name, of) in enumerate(entries[:taken])
    ]
    for (_, _, _, kind, before), (_, of) in zip(found, entries[:taken], strict=True):
        assert kind == stat.S_IFREG >> 12
        if is_plus:
            assert before == (of.ino, 0, FOR_EVER, FOR_EVER, 0, 0, *expected_attr(of))


def test_a_listing_is_filled_to_the_last_byte():
    size = len(replies.ListingPart(0, is_plus=False).data) + protocol.DIRENT.size + 8
    entry = Entry(Attributes(5, NodeType.DIRECTORY, stat.S_IFDIR, 1, 0, 0, 0, 0, 0))
    assert replies.ListingPart(size, is_plus=False).add(b"12345678", entry, 1)
    assert not replies.ListingPart(size - 1, is_plus=False).add(b"12345678", entry, 1)
    assert not replies.ListingPart(size, is_plus=False).add(b"123456789", entry, 1)


@given(u32.filter(bool), st.binary(max_size=30))
def test_replies_say_how_long_they_are(unique, body):
    whole = replies.reply(unique, body)
    assert protocol.OUT_HEADER.unpack_from(whole, 0) == (len(whole), 0, unique)
    assert whole[protocol.OUT_HEADER.size :] == body
    assert replies.header(unique, len(body)) + body == whole


def test_errors_are_negative():
    assert struct.unpack("=IiQ", replies.error_reply(9, 5)) == (16, -5, 9)


def test_open_and_statfs_and_lengths():
    opened = replies.open_out(OpenFlag.KEEP_CACHE | OpenFlag.NOFLUSH)
    assert protocol.OPEN_OUT.unpack_from(opened, 0) == (0, 2 | 32, 0)
    passed = replies.open_out(OpenFlag.PASSTHROUGH, 77)
    assert protocol.OPEN_OUT.unpack_from(passed, 0) == (0, 128, 77)
    size = protocol.STATFS_OUT.unpack_from(replies.statfs_out(FilesystemSize(10, 3)), 0)
    assert size == (10, 0, 0, 3, 0, 4096, 255, 4096)
    assert protocol.GETXATTR_OUT.unpack_from(replies.getxattr_out(77), 0) == (77,)


@given(st.integers(1, 2**63 - 1), names)
def test_notifications(inode, name):
    data = replies.inval_entry(inode, name)
    assert protocol.OUT_HEADER.unpack_from(data, 0) == (len(data), NotifyCode.INVAL_ENTRY, 0)
    assert protocol.NOTIFY_INVAL_ENTRY_OUT.unpack_from(data, 16) == (inode, len(name), 0)
    assert data[16 + protocol.NOTIFY_INVAL_ENTRY_OUT.size :] == name + b"\0"
    data = replies.inval_inode(inode)
    assert protocol.OUT_HEADER.unpack_from(data, 0) == (len(data), NotifyCode.INVAL_INODE, 0)
    assert protocol.NOTIFY_INVAL_INODE_OUT.unpack_from(data, 16) == (inode, 0, 0)
    assert protocol.OUT_HEADER.unpack_from(replies.resend(), 0) == (16, NotifyCode.RESEND, 0)


# --- negotiation ---------------------------------------------------------------------------------

EVERYTHING = InitFlag(2**64 - 1)


def test_both_sides_have_to_want_a_feature():
    offered = InitFlag.ASYNC_READ | InitFlag.PASSTHROUGH
    agreed = negotiation.negotiate(Init(7, 45, 1 << 17, offered))
    assert agreed.flags == InitFlag.ASYNC_READ
    wanted = InitFlag.ASYNC_READ | InitFlag.MAX_PAGES
    assert negotiation.negotiate(Init(7, 45, 1 << 17, EVERYTHING), wanted).flags == wanted


def test_the_answer_has_what_was_agreed_on():
    agreed = negotiation.negotiate(Init(7, 45, 1 << 17, EVERYTHING))
    major, minor, readahead, low, background, congested, _, _, pages, _, high, depth = (
        protocol.INIT_OUT.unpack_from(negotiation.init_out(agreed), 0)
    )
    assert (major, minor) == (7, min(45, protocol.KERNEL_MINOR_VERSION))
    assert low | high << 32 == agreed.flags == negotiation.WANTED
    assert (readahead, background, pages) == (1 << 17, agreed.max_background, agreed.max_pages)
    assert 0 < congested < background
    assert depth == 0


def test_passthrough_says_how_deep_filesystems_may_be_stacked():
    agreed = negotiation.negotiate(Init(7, 45, 0, EVERYTHING), InitFlag.PASSTHROUGH)
    *_, depth = protocol.INIT_OUT.unpack_from(negotiation.init_out(agreed), 0)
    assert depth == 1


@pytest.mark.parametrize(("major", "minor"), [(6, 40), (8, 0), (7, 32)])
def test_another_protocol_is_refused(major, minor):
    with pytest.raises(MachineLacks, match="another version"):
        negotiation.negotiate(Init(major, minor, 0, EVERYTHING))
