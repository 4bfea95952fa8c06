"""Where the worker's words arrive: a datagram socket in the private run directory."""

import array
import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from imgvol import limits
from imgvol.supervisor.datagram import BadDatagram, Word, parse

# struct ucred of unix(7).
_CREDENTIALS: Final = struct.Struct("=iII")
_INT: Final = array.array("i").itemsize
_ANCILLARY: Final = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(
    limits.DESCRIPTORS_SENT * _INT
)
# sizeof(sockaddr_un.sun_path) with its NUL.
_SUN_PATH: Final = 108
_PREFIX: Final = ".supervisor."


class Received(NamedTuple):
    """One datagram.

    Attributes:
        word: What it says, or what is wrong with it.
        descriptors: What came with it; whoever gets this closes them.
    """

    word: Word | BadDatagram
    descriptors: list[int]


def name_of(pid: int) -> str:
    """The socket of the supervisor with this process ID, in its run directory."""
    return f"{_PREFIX}{pid}"


class Channel:
    """A socket that a worker is told of as `NOTIFY_SOCKET`.

    Args:
        run: The run directory, 0700 and ours.

    Raises:
        OSError: It cannot be made there.
    """

    def __init__(self, run: str) -> None:
        self._directory = os.open(run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._name = name_of(os.getpid())
        path = os.path.join(run, self._name)
        is_short = len(os.fsencode(path)) < _SUN_PATH
        # A worker runs as the same user: it may look through our descriptor of the directory.
        self.address = path if is_short else _by_descriptor(self._directory, self._name)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        # Who sends is asked for before anybody can.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        _sweep(self._directory)
        os.fchmod(self._socket.fileno(), 0o600)
        self._socket.bind(self.address)

    def fileno(self) -> int:
        """For poll(2)."""
        return self._socket.fileno()

    def close(self) -> None:
        """Removes the socket."""
        with contextlib.suppress(OSError):
            os.unlink(self._name, dir_fd=self._directory)
        self._socket.close()
        os.close(self._directory)

    def iter_received(self, sender: int) -> Iterator[Received]:
        """What has arrived, a batch at most; never waits.

        Args:
            sender: The process ID of the worker. Who else runs as us may only ask for something.
        """
        for _ in range(limits.NOTIFY_BATCH):
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(
                    limits.NOTIFY_SIZE, _ANCILLARY, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            pid, uid, descriptors = _unpack(ancillary)
            try:
                if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                    raise BadDatagram("it is too large, or brings too much")
                word = parse(data)
                is_asking = word.upgrade is not None and uid in {0, os.geteuid()}
                if pid != sender and not is_asking:
                    raise BadDatagram(f"process {pid} is not the worker")
                yield Received(word, descriptors)
            except BadDatagram as error:
                yield Received(error, descriptors)


def is_alive(run: str, pid: int) -> bool:
    """Whether the supervisor with this process ID lives, and has this run directory."""
    try:
        directory = os.open(run, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return _is_bound(directory, name_of(pid))
    finally:
        os.close(directory)


@contextlib.contextmanager
def reach(run: str, pid: int) -> Iterator[socket.socket]:
    """A socket that is connected to a supervisor's.

    Raises:
        OSError: There is none.
    """
    directory = os.open(run, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connected:
            connected.connect(_by_descriptor(directory, name_of(pid)))
            yield connected
    finally:
        os.close(directory)


def _is_bound(directory: int, name: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_by_descriptor(directory, name))
        except OSError:
            return False
    return True


def _by_descriptor(directory: int, name: str) -> str:
    return f"/proc/{os.getpid()}/fd/{directory}/{name}"


def _sweep(directory: int) -> None:
    """Removes sockets of supervisors that were killed."""
    for name in os.listdir(directory):
        if name.startswith(_PREFIX) and not _is_bound(directory, name):
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=directory)


def _unpack(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, int, list[int]]:
    """Who has sent a datagram (0, -1: nobody knows), and the descriptors that came with it."""
    pid, uid = 0, -1
    descriptors: list[int] = []
    for level, kind, data in ancillary:
        if level != socket.SOL_SOCKET:
            continue
        if kind == socket.SCM_CREDENTIALS and len(data) >= _CREDENTIALS.size:
            pid, uid, _ = _CREDENTIALS.unpack_from(data)
        elif kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(data[: len(data) // _INT * _INT])
            descriptors += numbers
    return pid, uid, descriptors
