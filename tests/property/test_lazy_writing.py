"""Layers that are written: whatever the tar holds, and however it arrives, the same is read."""

from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from imgvol.errors import InvalidLayer, Unsupported
from imgvol.layers.lazy.writing.crc64 import Crc64
from imgvol.oci.digest import Digest
from support.images import (
    block_device,
    character_device,
    directory,
    fifo,
    file,
    hardlink,
    opaque,
    symlink,
    tar_bytes,
    whiteout,
)
from support.lazy import decompress, describe_lazy, describe_tar, open_lazy
from support.written import FORMATS, write_layer

NAMES = st.sampled_from(["a", "b", "a/b", "a/c", "d/e/f", "d", "./a", "ü", "x" * 120])
CONTENTS = st.one_of(
    st.binary(max_size=600),
    st.integers(0, 90_000).map(lambda size: b"x" * 40_000 + bytes(size) + b"y"),
    st.integers(0, 3).map(lambda blocks: bytes(blocks << 16)),
)
# eStargz has whole seconds.
SECOND = 10**9
TIMES = st.sampled_from([0, -SECOND, 1_700_000_000 * SECOND])
ENTRIES = st.one_of(
    st.builds(file, NAMES, CONTENTS, mtime_ns=TIMES, mode=st.sampled_from([0o644, 0o4755])),
    st.builds(file, NAMES, st.just(b""), uid=st.integers(0, (1 << 32) - 2)),
    st.builds(directory, NAMES, mtime_ns=TIMES),
    # Links have names that nothing else has: a table of contents has no order, and so cannot tell
    # what a name was when a hard link to a lower layer's file was met.
    st.builds(symlink, st.sampled_from(["s", "a/t"]), NAMES),
    st.builds(hardlink, st.sampled_from(["h", "k/h"]), NAMES),
    st.builds(character_device, NAMES, st.integers(0, 255), st.integers(0, 255)),
    st.builds(block_device, NAMES, st.integers(0, 255), st.integers(0, 255)),
    st.builds(fifo, NAMES),
    st.builds(whiteout, NAMES),
    st.builds(opaque, st.sampled_from(["", "a", "d/e"])),
)


@given(
    st.lists(ENTRIES, max_size=8),
    st.lists(NAMES.map(str.encode), max_size=3),
    st.sampled_from(FORMATS),
    st.lists(st.integers(0, 200_000), max_size=4),
)
def test_what_is_written_is_what_is_read(entries, wanted, format_, cuts):
    entries = [replace(entry, mtime_ns=entry.mtime_ns // SECOND * SECOND) for entry in entries]
    archive = tar_bytes(entries)
    try:
        written = write_layer(archive, format_, prioritized=wanted, chunk_size=1 << 16)
    except Unsupported:  # a hard link before its target
        return
    places = sorted({0, len(archive), *(cut for cut in cuts if cut < len(archive))})
    pieces = [archive[a:b] for a, b in pairwise(places)]
    assert write_layer(pieces, format_, prioritized=wanted, chunk_size=1 << 16) == written
    tar = decompress(written.blob)
    assert written.result.unpacked_size == len(tar)
    assert written.diff_id(archive) == str(Digest.of(tar))
    if written.result.diff_id is None:
        assert tar == archive
    try:
        expected = describe_tar(archive)
    except InvalidLayer:  # a hard link to a directory: no layer at all
        return
    assert describe_tar(tar) == expected
    try:
        lazy = open_lazy(written.blob, written.annotations)
    except InvalidLayer:  # links that a table cannot tell: the helper looks, and refuses
        assert any(entry.target for entry in entries)
        return
    assert describe_lazy(lazy, written.blob) == expected


@given(st.binary(max_size=2000), st.integers(0, 2000))
def test_a_checksum_does_not_depend_on_the_pieces(data, cut):
    whole, parts = Crc64(), Crc64()
    whole.update(data)
    parts.update(data[:cut])
    parts.update(data[cut:])
    assert whole.digest() == parts.digest()
    other = Crc64()
    other.update(data + b"\1")
    assert other.digest() != whole.digest()
