"""Which transport a daemon uses, and why."""

import contextlib
from importlib import import_module
from typing import TYPE_CHECKING, Final, NamedTuple

from imgvol.config import TransportChoice
from imgvol.errors import MachineLacks

# `serve` chooses before it becomes a supervisor: what only a daemon needs would be loaded for that.
if TYPE_CHECKING:
    from imgvol.fs.kernel.keeping import ConnectionKeeper
    from imgvol.fs.kernel.mounting import Mounting
    from imgvol.fs.operations import Operations
    from imgvol.fs.transport import Transport

# From Linux 6.9 on the kernel has all that the protocol of our own can use.
OLDEST_KERNEL: Final = (6, 9)
# Filesystems on which nothing else may be stacked that others can still be stacked on.
STACKED: Final = frozenset({"overlay", "ecryptfs"})
_MODULES: Final = {
    TransportChoice.KERNEL: "imgvol.fs.kernel.transport",
    TransportChoice.PYFUSE3: "imgvol.fs.pyfuse3_transport",
}


class Choice(NamedTuple):
    """A transport, never AUTO, and one line that says why it is this one."""

    transport: TransportChoice
    reason: str


def choose(wanted: TransportChoice, *, release: str) -> Choice:
    """What is used on a machine.

    Args:
        wanted: What somebody has asked for.
        release: The kernel's, as os.uname has it.
    """
    if wanted is not TransportChoice.AUTO:
        return Choice(wanted, "asked for")
    if version_of(release) < OLDEST_KERNEL:
        needed = ".".join(map(str, OLDEST_KERNEL))
        return Choice(TransportChoice.PYFUSE3, f"doing without takes Linux {needed}")
    return Choice(TransportChoice.KERNEL, "the usual one")


def passthrough_obstacle(*, release: str, may_mount: bool, filesystem: str) -> str | None:
    """Why the kernel cannot read large files in the store itself; None when it can.

    A kernel that was built without it is found out only when the filesystem is mounted.

    Args:
        release: The kernel's, as os.uname has it.
        may_mount: Whether the daemon has CAP_SYS_ADMIN.
        filesystem: The type of the store's.
    """
    if version_of(release) < OLDEST_KERNEL:
        needed = ".".join(map(str, OLDEST_KERNEL))
        return f"that takes Linux {needed}"
    if not may_mount:
        return "that takes CAP_SYS_ADMIN"
    if filesystem in STACKED:
        return f"the store is on {filesystem}, which lies on another filesystem itself"
    return None


def version_of(release: str) -> tuple[int, ...]:
    """Major and minor version of a kernel; what is not a number counts as older than all."""
    parts = release.replace("-", ".").split(".")
    return tuple(int(part) for part in parts[:2] if part.isdecimal())


def load_transport(chosen: TransportChoice) -> None:
    """Loads the program of a transport, if it is there, so that `make_transport` takes no time."""
    with contextlib.suppress(ImportError):
        import_module(_MODULES[chosen])


def make_transport(
    chosen: TransportChoice,
    operations: "Operations",
    mounting: "Mounting",
    *,
    is_system: bool,
    passthrough: bool,
    keeper: "ConnectionKeeper | None" = None,
) -> "Transport":
    """A transport for one filesystem.

    Args:
        chosen: From `choose`.
        operations: The handlers.
        mounting: Where it will be mounted, and how.
        is_system: Whether every user of the machine may see it; needs root.
        passthrough: Whether the kernel may read large files in the store itself, if it can.
        keeper: Has the connection outlive this process, if the transport can do that.

    Raises:
        MachineLacks: It is not installed.
    """
    if chosen is TransportChoice.KERNEL:
        from imgvol.fs.kernel.transport import KernelTransport, Settings

        settings = Settings(passthrough=passthrough and is_system)
        return KernelTransport(operations, mounting, settings, keeper=keeper)
    try:
        from imgvol.fs.pyfuse3_transport import Pyfuse3Transport
    except ImportError as exc:
        raise MachineLacks(
            "pyfuse3 is not installed",
            hint="With libfuse3-dev and gcc present: pip install 'imgvol[fuse]'",
        ) from exc
    return Pyfuse3Transport(operations, mounting.mount_point, is_system=is_system)
