"""Requests of the kernel: any bytes are one, with what was put into it, or MalformedRequest."""

import contextlib
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imgvol.fs.kernel import protocol, requests
from imgvol.fs.kernel.protocol import IN_HEADER, InitFlag, Opcode
from imgvol.fs.kernel.requests import MalformedRequest, Request, decode
from support.fuse_requests import name, request, samples

SAMPLES = samples()
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
names = st.binary(min_size=1, max_size=255).filter(lambda each: b"\0" not in each)


def decoded(data: bytes) -> Request:
    return decode(memoryview(data))


@given(st.one_of(st.binary(max_size=200), st.sampled_from(list(SAMPLES.values()))))
@example(b"")
@example(bytes(IN_HEADER.size))
def test_any_bytes_are_a_request_or_malformed(data):
    with contextlib.suppress(MalformedRequest):
        decoded(data)


@given(st.sampled_from(list(SAMPLES)), st.binary(max_size=120), u64, u64, st.integers(0, 2**16 - 1))
def test_any_body_is_a_request_or_malformed(opcode, body, nodeid, unique, extlen):
    try:
        found = decoded(request(opcode, nodeid, body, unique, extlen))
        answered = found.unique
    except MalformedRequest as exc:
        answered = exc.unique
    else:
        assert (found.opcode, found.nodeid) == (opcode, nodeid)
    assert answered == unique, "it can be answered, whatever it is"


@pytest.mark.parametrize("opcode", SAMPLES, ids=lambda opcode: opcode.name)
def test_a_request_that_was_cut_is_malformed(opcode):
    whole = SAMPLES[opcode]
    for size in range(len(whole)):
        with pytest.raises(MalformedRequest):
            decoded(whole[:size])
    decoded(whole)


@pytest.mark.parametrize("opcode", SAMPLES, ids=lambda opcode: opcode.name)
def test_a_body_that_is_too_short_is_malformed_or_not_looked_at(opcode):
    body = SAMPLES[opcode][IN_HEADER.size :]
    # Old kernels send no more than that of INIT.
    right = {protocol.COMPAT_INIT_IN_SIZE} if opcode == Opcode.INIT else set()
    for size in set(range(len(body))) - right:
        with pytest.raises(MalformedRequest) as raised:
            decoded(request(opcode, 9, body[:size]))
        assert raised.value.unique == 2


@given(names, u64)
def test_lookup(text, nodeid):
    found = decoded(request(Opcode.LOOKUP, nodeid, name(text)))
    assert (found.nodeid, found.body) == (nodeid, requests.Lookup(text))


@given(st.lists(st.tuples(u64, u64), max_size=20))
def test_batch_forget(references):
    ones = b"".join(protocol.FORGET_ONE.pack(*each) for each in references)
    body = protocol.BATCH_FORGET_IN.pack(len(references)) + ones
    assert decoded(request(Opcode.BATCH_FORGET, 0, body)).body == requests.Forget(references)


@given(u64, u64)
def test_forget(nodeid, count):
    body = protocol.FORGET_IN.pack(count)
    found = decoded(request(Opcode.FORGET, nodeid, body)).body
    assert found == requests.Forget([(nodeid, count)])


@given(u64, u32)
def test_reads_of_files_and_directories(offset, size):
    body = protocol.READ_IN.pack(1, offset, size, 0, 0, 0)
    assert decoded(request(Opcode.READ, 9, body)).body == requests.Read(offset, size, False)
    direct = protocol.READ_IN.pack(1, offset, size, protocol.ReadFlag.LOCKOWNER, 0, 0)
    assert decoded(request(Opcode.READ, 9, direct)).body == requests.Read(offset, size, True)
    for opcode, is_plus in ((Opcode.READDIR, False), (Opcode.READDIRPLUS, True)):
        found = decoded(request(opcode, 9, body)).body
        assert found == requests.Readdir(offset, size, is_plus)


@given(u32, names)
def test_extended_attributes(size, text):
    body = protocol.GETXATTR_IN.pack(size)
    found = decoded(request(Opcode.GETXATTR, 9, body + name(text))).body
    assert found == requests.Getxattr(size, text)
    assert decoded(request(Opcode.LISTXATTR, 9, body)).body == requests.Listxattr(size)


@given(u32, u32, u32, u32, u32)
def test_init_has_the_second_word_of_flags_only_where_it_is_announced(
    major, minor, readahead, flags, flags2
):
    body = protocol.INIT_IN.pack(major, minor, readahead, flags, flags2)
    found = decoded(request(Opcode.INIT, 0, body)).body
    high = flags2 << 32 if flags & InitFlag.INIT_EXT else 0
    assert found == requests.Init(major, minor, readahead, InitFlag(flags | high))


def test_init_of_an_old_kernel_has_one_word_of_flags():
    body = struct.pack("=IIII", 7, 33, 131072, InitFlag.ASYNC_READ)
    found = decoded(request(Opcode.INIT, 0, body)).body
    assert found == requests.Init(7, 33, 131072, InitFlag.ASYNC_READ)


def test_extensions_are_no_part_of_a_name():
    body = name(b"etc") + bytes(16)
    found = decoded(request(Opcode.LOOKUP, 9, body, extlen=2)).body
    assert found == requests.Lookup(b"etc")


@given(u32.filter(lambda number: number not in SAMPLES), st.binary(max_size=50))
def test_what_is_not_known_is_a_request_without_meaning(opcode, body):
    assert decoded(request(opcode, 9, body)).body == requests.Other()


@pytest.mark.parametrize("text", [b"", b"no end", b"a\0b\0", b"\0"])
def test_names_end_where_the_request_ends(text):
    with pytest.raises(MalformedRequest):
        decoded(request(Opcode.LOOKUP, 9, text))
