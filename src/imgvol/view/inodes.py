"""Inode numbers: what they are made of, and back again.

Two kinds, told apart by bit 62:

    of a layer  0 0 | layer slot: 30 bits              | node: 32 bits
    of a chain  0 1 | chain slot: 22 | position: 8     | node: 32 bits

A slot is a small number that the store gives to a layer or a chain for good, from 1 on. Most files
are their layer's: one inode however many images hold the layer, so that all of them use the same
pages in the kernel's cache. A chain's own is what depends on the chain: directories, which are
merged, and the rare file whose number of names other layers change. Nothing else is in a number,
so it is the same after a restart; and none is 0 or 1, which FUSE keeps for itself and for the root.
"""

from typing import Final, NamedTuple

from imgvol.view.merge import NODE_MASK, POSITION_SHIFT, NodeID

_CHAIN_SHIFT: Final = POSITION_SHIFT + 8
_OF_CHAIN: Final = 1 << 62

LAYER_SLOTS: Final = 1 << 30
CHAIN_SLOTS: Final = 1 << (62 - _CHAIN_SHIFT)


class LayerInode(NamedTuple):
    """A node of a layer that looks the same in every chain; no directory."""

    layer_slot: int
    node: int


class ChainInode(NamedTuple):
    """A node as one chain has it."""

    chain_slot: int
    node: NodeID


def encode_layer_inode(layer_slot: int, node: int) -> int:
    """The number of a LayerInode."""
    return layer_slot << POSITION_SHIFT | node


def encode_chain_inode(chain_slot: int, node: NodeID) -> int:
    """The number of a ChainInode."""
    return _OF_CHAIN | chain_slot << _CHAIN_SHIFT | node


def decode(inode: int) -> LayerInode | ChainInode:
    """What a number means that one of the functions above has made."""
    if inode & _OF_CHAIN:
        inode ^= _OF_CHAIN
        return ChainInode(inode >> _CHAIN_SHIFT, inode & ((1 << _CHAIN_SHIFT) - 1))
    return LayerInode(inode >> POSITION_SHIFT, inode & NODE_MASK)
