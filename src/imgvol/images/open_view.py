"""One open view: a merged tree in memory, the layers that it shows, and who keeps it open."""

from collections.abc import Callable
from dataclasses import dataclass, field

from imgvol.content.layer import Layer
from imgvol.content.reachability import Thing
from imgvol.content.records import LayerRecord
from imgvol.images.settling import Settling
from imgvol.images.status import LayerStatus, layer_status
from imgvol.images.traces.run import TraceUse
from imgvol.oci.digest import Digest
from imgvol.view.chain import ChainView, NodeID


@dataclass(eq=False, slots=True)
class OpenView:
    """One open view.

    Attributes:
        id: The chain ID, or what stands for it until every layer has been verified.
        slot: The chain's number in inode numbers.
        records: Of the layers, as they were opened: another image of the same chain ID may have
            other blobs.
        holders: Who uses it on our side.
        patience: Of each volume that shows it in the filesystem's root: seconds that readers wait
            for a registry that fails.
        references_given: Lookups of its directories, the kernel's references.
        references_forgotten: Those that it has given back.
        is_inherited: Whether the kernel may have references from a process before this one, which
            nobody has counted: see `Views.let_go`.
        things: What it keeps from being collected.
        trace: What a trace has done for it; None: nothing.
        settling: Of a view whose layers stream: whom to ask what is known already.
        on_closed: Called when it has closed.
    """

    id: Digest
    slot: int
    tree: ChainView
    layers: tuple[Layer, ...]
    records: tuple[LayerRecord, ...]
    holders: int = 0
    patience: list[float] = field(default_factory=list)
    references_given: int = 0
    references_forgotten: int = 0
    is_inherited: bool = False
    things: frozenset[Thing] = frozenset()
    trace: TraceUse | None = None
    settling: Settling | None = None
    on_closed: Callable[[], None] = lambda: None

    @property
    def name(self) -> bytes:
        """The view's directory in the root: no colon, which overlayfs would split at."""
        return self.id.hex.encode()

    @property
    def is_referred_to(self) -> bool:
        """Whether the kernel may come back to one of its directories."""
        return self.is_inherited or self.references_given != self.references_forgotten

    def layer_statuses(self) -> tuple[LayerStatus, ...]:
        """How each layer is read, the bottom one first."""
        return tuple(map(layer_status, self.layers, self.records))

    async def read(self, node: NodeID, offset: int, size: int) -> bytes | bytearray:
        """Reads a file's bytes: exact up to the end of the file, or an error."""
        position, layer_node = self.tree.content(node)
        return await self.layers[position].read(layer_node, offset, size)
