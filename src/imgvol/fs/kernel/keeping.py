"""A connection that outlives its process: handed over, found again and checked.

Theory of operation: docs/design/supervision.md. The service manager keeps the descriptor, under a
name that says what was negotiated and for which device: a successor finds both or neither, and
never the words of another connection. So it is with the table of open files, where files are passed
through: it has the same name, and comes in the same message.

Rule 1: what is not taken over is dropped and closed, which ends the connection: nobody may wait for
what nobody reads.
Rule 2: all that can be refused is refused by `find`, before anything else has been done.
"""

import contextlib
import logging
import os
import select
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from imgvol.errors import ImgvolError, LocalError
from imgvol.fs.kernel.connection import Connection
from imgvol.fs.kernel.mounting import DEVICE, Mounting
from imgvol.fs.kernel.negotiation import Negotiated
from imgvol.fs.kernel.open_table import OpenTable
from imgvol.fs.kernel.protocol import InitFlag
from imgvol.fs.transport import check_restricted, own_mount
from imgvol.service_manager import ServiceManager
from imgvol.volumes.mountinfo import by_target, find_filesystem, mounts_at

log = logging.getLogger(__name__)

PREFIX: Final = "fuse."
# Of the name. A daemon that needs more, or other fields, or inode numbers that mean other things,
# must not take a connection over from one that does not: it counts this up.
_VERSION: Final = 2


class _Unusable(Exception):  # never leaves this module
    """Why a descriptor is of no use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What the name of a kept descriptor says.

    Attributes:
        device: Of the filesystem that it serves.
        agreed: What holds on the connection.
    """

    device: tuple[int, int]
    agreed: Negotiated

    def to_name(self) -> str:
        """As a name of descriptors: printable ASCII without blanks and colons."""
        agreed = self.agreed
        fields = (
            *(_VERSION, *self.device),
            *(agreed.minor, int(agreed.flags)),
            *(agreed.max_readahead, agreed.max_background, agreed.max_pages),
        )
        return PREFIX + ".".join(map(str, fields))

    @classmethod
    def from_name(cls, name: str) -> Self:
        """Reads such a name.

        Raises:
            ValueError: It is none, or one of another version.
        """
        version, *fields = (_number(field) for field in name.removeprefix(PREFIX).split("."))
        if version != _VERSION:
            raise ValueError("another version")
        major, minor, protocol, flags, max_readahead, max_background, max_pages = fields
        return cls(
            device=(major, minor),
            agreed=Negotiated(
                minor=protocol,
                flags=InitFlag(flags),
                max_readahead=max_readahead,
                max_background=max_background,
                max_pages=max_pages,
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A connection of the process before.

    Attributes:
        name: Under which it is kept.
        device: Of the filesystem that it serves.
        connection: Ready to be served.
        table: Which files are open, and how; None: none is passed through.
    """

    name: str
    device: tuple[int, int]
    connection: Connection
    table: OpenTable | None


class ConnectionKeeper:
    """Has the service manager keep the connection of one filesystem. All calls block for a moment.

    Args:
        manager: Who keeps it, if it can.
        mounting: Of the filesystem.

    Attributes:
        found: What `find` has found.
    """

    def __init__(self, manager: ServiceManager, mounting: Mounting) -> None:
        self._manager = manager
        self._mounting = mounting
        self._mount_point = mounting.mount_point
        self._name: str | None = None
        self.found: Found | None = None

    def find(self) -> Found | None:
        """The connection of the process before, ready to be served, if there is one.

        What was asked and not answered is asked again, as soon as it is read. `refuse` or the
        transport's `close` must follow.
        """
        for name, descriptors in self._take():
            try:
                if self.found is not None:
                    raise _Unusable("there is another one")
                self.found = self._checked(name, descriptors)
                self._name = name
            except (_Unusable, ImgvolError, OSError, ValueError) as exc:
                log.warning("the kept connection of the filesystem cannot be taken over: %s", exc)
                self._drop(name, descriptors)
        return self.found

    def refuse(self) -> None:
        """Ends the connection of the process before, if there is one."""
        for name, descriptors in self._take():
            self._drop(name, descriptors)
        if self.found is not None:
            if self.found.table is not None:
                self.found.table.close()
            self._drop(self.found.name, [self.found.connection.fd])
            self.found, self._name = None, None

    def keep(self, connection: Connection) -> OpenTable | None:
        """Has a new connection kept, if the kernel can send again what a successor will not see.

        Returns:
            Where its open files are to be written down, if any can be passed through; None: they
            need not be, as nobody will go on with it.
        """
        mount = own_mount(self._mount_point)
        if mount is None or not self._manager.is_there:
            return None
        if not connection.agreed.flags & InitFlag.HAS_RESEND:
            return None
        passes = connection.agreed.flags & InitFlag.PASSTHROUGH
        try:
            table = OpenTable.create() if passes else None
        except OSError as exc:
            log.warning("the connection cannot be kept for a successor: %s", exc)
            return None
        name = Kept(device=mount.device, agreed=connection.agreed).to_name()
        kept = [connection.fd] if table is None else [connection.fd, table.fd]
        if self._manager.keep(name, *kept):
            self._name = name
        elif table is not None:
            table.close()
            table = None
        return table

    def release(self) -> None:
        """Has it kept no longer: the filesystem is about to be unmounted."""
        if self._name is not None:
            self._manager.drop(self._name)
            self._name = None

    def _take(self) -> list[tuple[str, list[int]]]:
        """What was kept, by name."""
        taken: dict[str, list[int]] = {}
        for name, descriptor in self._manager.take_all(PREFIX):
            taken.setdefault(name, []).append(descriptor)
        return list(taken.items())

    def _checked(self, name: str, descriptors: Sequence[int]) -> Found:
        try:
            kept = Kept.from_name(name)
        except ValueError as exc:
            raise _Unusable(f"what was negotiated cannot be read: {exc}") from exc
        passes = bool(kept.agreed.flags & InitFlag.PASSTHROUGH)
        # In no order that anybody has promised.
        devices = [each for each in descriptors if stat.S_ISCHR(os.fstat(each).st_mode)]
        others = [each for each in descriptors if each not in devices]
        if len(devices) != 1 or len(others) != passes:
            raise _Unusable("what was kept with it is not what belongs to it")
        (descriptor,) = devices
        _check_descriptor(descriptor)
        _check_mount(self._mount_point, kept.device)
        if not kept.agreed.flags & InitFlag.HAS_RESEND:
            raise _Unusable("the kernel cannot send again what was being answered")
        table = OpenTable(others[0]) if others else None
        connection = Connection.resume(descriptor, self._mounting, kept.agreed)
        if table is not None:
            table.settle(connection.known, connection.close_backing)
        return Found(name=name, device=kept.device, connection=connection, table=table)

    def _drop(self, name: str, descriptors: Sequence[int]) -> None:
        self._manager.drop(name)
        for descriptor in descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _number(field: str) -> int:
    if not (field.isascii() and field.isdecimal() and len(field) <= 20):
        raise ValueError("not a number")
    return int(field)


def _check_descriptor(descriptor: int) -> None:
    status = os.fstat(descriptor)
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != os.stat(DEVICE).st_rdev:
        raise _Unusable(f"it is not {DEVICE}")
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0)):
        raise _Unusable("it has ended")


def _check_mount(mount_point: Path, device: tuple[int, int]) -> None:
    """Makes sure that what the descriptor serves is there, and that one comes to it.

    As the connection has not ended, its filesystem is still mounted somewhere, and no other has its
    number.
    """
    wholes = [mount for mount in mounts_at(()) if mount.device == device]
    mount = find_filesystem(wholes, mount_point)
    if mount is None or by_target(mounts_at({mount.mount_point}))[mount.mount_point][-1] != mount:
        raise _Unusable("its filesystem is not mounted any more")
    try:
        check_restricted(mount_point)
    except LocalError as exc:
        raise _Unusable(exc.message) from exc
