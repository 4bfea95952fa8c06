"""Who waits for a view whose layers stream: lookups and listings, until their answer is settled."""

from dataclasses import dataclass, field

import trio

from imgvol.view.merge import NodeID
from imgvol.view.settling import SettlingView


@dataclass(eq=False, slots=True)
class Settling:
    """The tree of such a view. Used on the event loop."""

    tree: SettlingView
    _changed: trio.Event = field(default_factory=trio.Event)

    def wake(self) -> None:
        """Something has come, or will not."""
        self._changed.set()
        self._changed = trio.Event()

    async def wait(self, directory: NodeID, name: bytes | None) -> None:
        """Until a name, or for None a listing, is settled; it can be cancelled."""
        while not self.tree.is_settled(directory, name):
            await self._changed.wait()

    async def wait_change(self) -> None:
        """Until something comes."""
        await self._changed.wait()
