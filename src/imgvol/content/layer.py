"""What readers know of an open layer, however its bytes are kept."""

from typing import Protocol

from imgvol.content.open_file import OpenFile
from imgvol.errors import ImgvolError
from imgvol.layers.index import LayerIndex
from imgvol.oci.digest import Digest


class Layer(Protocol):
    """One open layer: its file table in memory, its bytes wherever they are.

        layer = await store.open_layer(record)
        node = layer.index.child(ROOT, b"hostname")
        await layer.read(node, 0, 4096)          # b"box"

    `LayerStore` has all of it in the store, `LazyLayerStore` a part, and fetches the rest, and
    `InPlaceLayer` reads it in somebody else's file. `tests/conformance/test_layers.py` holds all of
    them to what is said here. `StreamedLayer` alone has one that is not verified yet, and whose
    `index` grows: only a view that was asked for has it.

    Lifecycle: The `Store` opens layers (in threads: that takes the disk). Nobody closes them: the
    descriptors go with the last reference, so that no reader loses one under its hands. So nothing
    that a layer has may have the layer: both would stay, with the room of removed files, until
    Python's collector comes by, which in a daemon that has nothing to do is never.

    Identity: `digest` and `slot` never change, and neither does what `index` says: the same nodes,
    names and attributes for as long as the layer is open, and whenever it is opened in this slot.
    The object itself may be replaced by an equal one, whose extents alone differ.

    Concurrency: `index` may be asked from any thread. `read` belongs on the event loop, for any
    number of tasks at once; it never blocks the loop, and what it waits for (a thread, a registry)
    can be cancelled without harm to other readers.

    Errors: A read is exact or raises; it is never short, and never has a byte that was not verified
    in some way: by the digest of its span, or with the whole layer. What makes the layer unreadable
    for good is in `failure` from then on, and every later read raises it. Anything else (a disk or
    a registry that fails) is raised once, and the next read tries again.

    Attributes:
        digest: Of the layer's blob.
        slot: The layer's number in inode numbers, never used for another layer.
        index: Its file table.
        failure: Why the layer must not be read any more; None while all is well.
    """

    digest: Digest
    slot: int
    index: LayerIndex
    failure: ImgvolError | None

    async def read(self, node: int, offset: int, size: int) -> bytes | bytearray:
        """Reads a file's bytes.

        Args:
            node: A FILE node of `index`.
            offset: First byte, at least 0; at the file's end or behind it, nothing is read.
            size: At most so many: exactly `min(size, file size - offset)` are returned. What the
                file does not store is zeros.

        Raises:
            StoreDamaged: The bytes on this machine are not what they were, or cannot be read.
            ContentError: The layer turned out not to be what it had promised.
            RemoteError: The rest of it cannot be fetched.
        """

    def read_now(self, node: int, offset: int, size: int) -> bytes | bytearray | None:
        """As `read`, if that takes no waiting; None: it would, or only `read` can tell.

        It never blocks, and fetches nothing.

        Raises:
            StoreDamaged: As `read`, and whatever is in `failure`.
            ContentError: As `read`.
        """

    def has_backing_file(self, node: int) -> bool:
        """Whether one file of the store is a file's content, byte for byte, and may stand for it.

        So it is only where the layer is complete and verified, with nothing known against any part
        of it. From memory.

        Args:
            node: A FILE node of `index`.
        """

    def is_sound(self, node: int) -> bool:
        """Whether nothing is known against a file's content. From memory."""

    async def backing_file(self, node: int) -> OpenFile | None:
        """Opens the file that `has_backing_file` speaks of; None: there is none.

        Raises:
            StoreDamaged: It cannot be opened, or has another size.
        """
