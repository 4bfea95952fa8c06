"""Chain IDs: the identity of layers applied in order (image-spec `config.md`, "Layer ChainID").

ChainID(L0)     = DiffID(L0)
ChainID(L0..Ln) = sha256(ChainID(L0..Ln-1) + " " + DiffID(Ln))
"""

from collections.abc import Sequence
from typing import Final

from imgvol.oci.digest import ChainID, DiffID, Digest

# The specification names no chain of no layers. Such an image shows what one of an empty layer of
# no bytes shows, so it has that one's name.
EMPTY_CHAIN: Final = ChainID(Digest.of(b""))


def chain_id(diff_ids: Sequence[DiffID]) -> ChainID:
    """The identity of all these layers together, the base layer first."""
    return chain_ids(diff_ids)[-1] if diff_ids else EMPTY_CHAIN


def chain_ids(diff_ids: Sequence[DiffID]) -> tuple[ChainID, ...]:
    """The identity of each layer with all those below it, the base layer first."""
    chain: list[ChainID] = []
    for diff_id in diff_ids:
        chain.append(ChainID(_stack(str(chain[-1]), str(diff_id)) if chain else diff_id))
    return tuple(chain)


def _stack(lower: str, upper: str) -> Digest:
    return Digest.of(f"{lower} {upper}".encode("ascii"))
