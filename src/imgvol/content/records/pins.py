"""Images that stay without a name, until somebody says otherwise."""

from imgvol.content.records.table import Table
from imgvol.oci.digest import Digest


class PinTable(Table):
    """The pins."""

    async def pin_image(self, manifest: Digest) -> None:
        """Keeps an image, named or not. It must be here."""
        await self._database.run(
            lambda db: db.execute("INSERT OR IGNORE INTO pin VALUES (?)", [str(manifest)])
        )

    async def unpin_image(self, manifest: Digest) -> None:
        """Ends that; not pinned is fine."""
        await self._database.run(
            lambda db: db.execute("DELETE FROM pin WHERE manifest = ?", [str(manifest)])
        )
