"""Inode numbers: two kinds, never mixed up, never FUSE's own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvol.view.inodes import (
    CHAIN_SLOTS,
    LAYER_SLOTS,
    ChainInode,
    LayerInode,
    decode,
    encode_chain_inode,
    encode_layer_inode,
)

nodes = st.integers(0, 2**32 - 1)


@given(st.integers(1, LAYER_SLOTS - 1), nodes)
def test_an_inode_of_a_layer_comes_back(slot, node):
    inode = encode_layer_inode(slot, node)
    assert 1 < inode < 2**62
    assert decode(inode) == LayerInode(slot, node)


@given(st.integers(0, CHAIN_SLOTS - 1), st.integers(0, 255), nodes)
def test_an_inode_of_a_chain_comes_back(slot, position, node):
    inode = encode_chain_inode(slot, position << 32 | node)
    assert 2**62 <= inode < 2**63
    assert decode(inode) == ChainInode(slot, position << 32 | node)


@pytest.mark.parametrize(
    ("inode", "meaning"),
    [
        (0x0000_0001_0000_0002, LayerInode(1, 2)),
        (0x4000_0103_0000_0002, ChainInode(1, 3 << 32 | 2)),
        (0x7FFF_FFFF_FFFF_FFFF, ChainInode(2**22 - 1, 255 << 32 | 2**32 - 1)),
        (0x3FFF_FFFF_FFFF_FFFF, LayerInode(2**30 - 1, 2**32 - 1)),
    ],
)
def test_the_scheme_is_for_good(inode, meaning):
    """The kernel and NFS handles may remember numbers longer than a daemon lives."""
    assert decode(inode) == meaning
