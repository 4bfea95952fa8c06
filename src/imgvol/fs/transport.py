"""What carries requests between the kernel and the handlers: one interface, two implementations."""

from pathlib import Path
from typing import Protocol

from imgvol.errors import LocalError
from imgvol.volumes.mountinfo import MountInfo, find_filesystem, mounts_at


class Transport(Protocol):
    """One filesystem's connection to the kernel.

    Lifecycle: `mount`, then `serve`, then `close`; once each. `close` may come without `serve`,
    and after the connection has ended on its own.

    Concurrency: `serve` runs on the event loop and calls the handlers there. So may `root_changed`
    and `recheck` be called there; all else blocks, possibly until requests are answered, and
    belongs in threads.

    Opens: a transport may have the kernel open files by itself, and tell of none.
    """

    def mount(self) -> None:
        """Mounts the filesystem; requests wait until `serve` runs.

        Raises:
            MachineLacks: The kernel or a helper program refuses.
        """

    async def serve(self) -> None:
        """Answers requests; returns when somebody has unmounted the filesystem, or aborted it."""

    def invalidate_entry(self, parent: int, name: bytes) -> None:
        """Makes the kernel forget a name.

        Raises:
            OSError: ENOENT: it does not know it.
        """

    def invalidate_inode(self, inode: int, *, attributes_only: bool = False) -> None:
        """Makes the kernel forget attributes and pages of an inode, or attributes alone.

        Raises:
            OSError: ENOENT: it does not know it.
        """

    def root_changed(self) -> None:
        """Names have come to the root or left it: it has another time now.

        From then on it is listed anew. Never blocks.
        """

    def recheck(self) -> None:
        """Something is known against a layer now: looks again at what is read past the handlers.

        On the event loop; never blocks.
        """

    def close(self) -> None:
        """Unmounts, and ends the connection; waiting requests get an error."""


def own_mount(mount_point: Path) -> MountInfo | None:
    """Our filesystem's line."""
    return find_filesystem(mounts_at(()), mount_point)


def check_restricted(mount_point: Path) -> None:
    """Makes sure that set-user-ID programs and devices of images mean nothing.

    Raises:
        LocalError: The filesystem was mounted otherwise.
    """
    check_mount(own_mount(mount_point), mount_point)


def check_mount(mount: MountInfo | None, mount_point: Path) -> None:
    """The same for a mount that was looked for; None: it was not found."""
    if mount is None or not {"nosuid", "nodev"} <= mount.options:
        raise LocalError("the filesystem was mounted without nosuid,nodev", mount_point=mount_point)
