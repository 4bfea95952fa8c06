"""The control API's door: a unix socket that only its owner and root can use.

Three locks, one behind the other: the directory is 0700, the socket 0600 from the moment it exists,
and each connection's peer is asked for by SO_PEERCRED. There is no TCP listener and no abstract
socket (CVE-2020-15257).
"""

import contextlib
import errno
import logging
import os
import socket
import stat
import struct
from collections.abc import AsyncIterator, Iterator
from http import HTTPStatus
from typing import Final

import trio

from imgvol import limits
from imgvol.api.http import Activity, Deadlines, Dispatch, error_response, serve_connection
from imgvol.api.keeping import Keeper
from imgvol.api.problems import RequestError
from imgvol.errors import (
    Conflict,
    ImgvolError,
    InternalError,
    InvalidArgument,
    PermissionDenied,
)

log = logging.getLogger(__name__)

# struct ucred of unix(7).
_UCRED: Final = struct.Struct("=iII")
# sizeof(sockaddr_un.sun_path) with its NUL.
_SUN_PATH: Final = 108
_BACKLOG: Final = 128
# accept(2) failed for want of descriptors or memory: others must end first.
ACCEPT_PAUSE: Final = 0.1
OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
# The client has gone before it was accepted.
GONE: Final = frozenset({errno.ECONNABORTED, errno.EPROTO})


class ApiServer:
    """Serves the API on one socket.

    Example:
        server = ApiServer(config.socket, make_dispatch(services))
        await nursery.start(server.run)     # returns once clients can connect

    Cancelling `run` closes everything and removes the socket, if it is still ours, unless a keeper
    has it for the next process.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        dispatch: Dispatch,
        *,
        deadlines: Deadlines | None = None,
        connections: int = limits.API_CONNECTIONS,
        keeper: Keeper | None = None,
    ) -> None:
        self._path = os.fspath(path)
        self._dispatch = dispatch
        self._keeper = keeper
        self._deadlines = deadlines or Deadlines()
        self._allowed_connections = connections
        self._activity = Activity()

    def idle_seconds(self) -> float:
        """How long no request has been in progress; 0 while one is."""
        if self._activity.requests:
            return 0.0
        return trio.current_time() - self._activity.last

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled.

        Raises:
            Conflict: A daemon listens there already.
            PermissionDenied: The directory is somebody else's, or open to others.
            InvalidArgument: Something that is no socket has that name.
        """
        async with opened_listener(self._path, self._keeper) as (listener, _):
            await self._accept_all(listener, task_status)

    async def _accept_all(
        self, listener: socket.socket, task_status: trio.TaskStatus[None]
    ) -> None:
        accepting = trio.socket.from_stdlib_socket(listener)
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                connected = await _accept(accepting)
                if connected is not None:
                    nursery.start_soon(self._serve, connected)

    async def _serve(self, connected: trio.socket.SocketType) -> None:
        with connected:
            refusal = self._refusal(connected)
            if refusal is not None:
                await _refuse(connected, refusal)
                return
            self._activity.connections += 1
            try:
                await serve_connection(
                    trio.SocketStream(connected), self._dispatch, self._deadlines, self._activity
                )
            except Exception:
                # serve_connection promises not to; if it does, the views must not go with it.
                log.exception("a connection failed")
            finally:
                self._activity.connections -= 1

    def _refusal(self, connected: trio.socket.SocketType) -> ImgvolError | None:
        peer = peer_uid(connected)
        if peer not in {0, os.getuid()}:
            log.warning("refused a connection of uid %d", peer)
            return PermissionDenied(
                "this daemon serves its own user and root only", uid=peer, daemon_uid=os.getuid()
            )
        if self._activity.connections >= self._allowed_connections:
            return RequestError(503, "too many connections", hint="Try again in a moment.")
        return None


def peer_uid(connected: trio.socket.SocketType | socket.socket) -> int:
    """The effective uid of the process at the other end, at the time it connected."""
    data = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, uid, _ = _UCRED.unpack(data)
    return int(uid)


class SocketPlace:
    """A name for a socket, in a private directory that is held open.

    The socket is bound under another name and then renamed, so that a dead daemon's file is
    replaced without a moment in which there is none.
    """

    def __init__(self, directory: int, name: str) -> None:
        self._directory = directory
        self._name = name
        self._temporary = f".{name}.{os.getpid()}"
        self._made: os.stat_result | None = None
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._temporary, dir_fd=directory)

    @property
    def address(self) -> str:
        """Where to bind: short, however deep the directory is."""
        return f"/proc/self/fd/{self._directory}/{self._temporary}"

    def publish(self) -> None:
        """Gives the socket that was bound its name, and to its owner only."""
        os.chmod(self._temporary, 0o600, dir_fd=self._directory)
        self._made = self._stat(self._temporary)
        os.rename(
            self._temporary,
            self._name,
            src_dir_fd=self._directory,
            dst_dir_fd=self._directory,
        )

    @property
    def published(self) -> str:
        """Where it can be reached then: as short."""
        return f"/proc/self/fd/{self._directory}/{self._name}"

    def adopt(self) -> None:
        """Takes the socket of that name for ours: an earlier process has published it."""
        self._made = self._stat(self._name)

    def leave(self) -> None:
        """Lets the socket stay when the place is given up."""
        self._made = None

    def _stat(self, name: str) -> os.stat_result:
        return os.stat(name, dir_fd=self._directory, follow_symlinks=False)

    def withdraw(self) -> None:
        """Removes the socket, unless another daemon has replaced it: that one's stays."""
        if self._made is None:
            return
        with contextlib.suppress(OSError):
            found = self._stat(self._name)
            if (found.st_dev, found.st_ino) == (self._made.st_dev, self._made.st_ino):
                os.unlink(self._name, dir_fd=self._directory)


@contextlib.contextmanager
def claim_place(path: str, *, is_ours: bool = False) -> Iterator[SocketPlace]:
    """A place for a socket at `path`, in a directory that is 0700; what is there at the end goes.

    Args:
        path: Of the socket.
        is_ours: Who listens there listens for us: it is no other daemon.

    Raises:
        Conflict: A daemon listens there already.
        PermissionDenied: The directory is somebody else's, or open to others.
        InvalidArgument: Something that is no socket has that name.
    """
    directory = os.path.dirname(path) or "."
    ensure_private_directory(directory)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        name = os.path.basename(path)
        if not is_ours:
            _check_no_daemon(path, f"/proc/self/fd/{descriptor}/{name}")
        place = SocketPlace(descriptor, name)
        try:
            yield place
        finally:
            place.withdraw()
    finally:
        os.close(descriptor)


@contextlib.asynccontextmanager
async def opened_listener(
    path: str, keeper: Keeper | None
) -> AsyncIterator[tuple[socket.socket, bool]]:
    """A listening socket at `path`, and whether it is that of the process before.

    It goes at the end, unless the keeper has it for the next process; raises as `claim_place`.
    """
    if keeper is None:
        with open_listener(path) as listener:
            yield listener, False
        return
    taken = await trio.to_thread.run_sync(keeper.take, path)
    with open_listener(path, taken, keeper) as listener:
        await trio.to_thread.run_sync(keeper.keep, listener)
        try:
            yield listener, taken is not None
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(keeper.release)


@contextlib.contextmanager
def open_listener(
    path: str, taken: socket.socket | None = None, keeper: Keeper | None = None
) -> Iterator[socket.socket]:
    """A listening socket at `path`, 0600 from the start; raises as `claim_place`.

    Its name goes before it stops listening: who is refused by what has that name sees a dead one.

    Args:
        path: Of the socket.
        taken: One that listens there already, for us.
        keeper: If it still keeps the socket at the end, the name stays.
    """
    listener = taken or socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with listener, claim_place(path, is_ours=taken is not None) as place:
        if taken is None:
            # bind(2) makes the file with the mode of the socket's inode (net/unix/af_unix.c): this
            # is 0600 from the start, without touching the process's umask.
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(place.address)
        # Also of one that listens: peers see the process that did this last (unix_listen).
        listener.listen(_BACKLOG)
        listener.setblocking(False)
        if taken is None:
            place.publish()
        else:
            place.adopt()
        try:
            yield listener
        finally:
            if keeper is not None and keeper.is_kept:
                place.leave()


def ensure_private_directory(path: str) -> None:
    """Make a 0700 directory, or check that an existing one is ours and closed to others.

    Raises:
        PermissionDenied: It is a link, somebody else's, or open to others. It is not changed:
            a directory that was named by mistake (`/tmp`) must not lose its mode.
    """
    with contextlib.suppress(FileExistsError):
        os.makedirs(path, mode=0o700)
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionDenied(
            "the run directory is not a directory of this user", path=path, owner=found.st_uid
        )
    if found.st_mode & 0o077:
        raise PermissionDenied(
            "the run directory is open to other users",
            hint=f"If it is meant for imgvol: chmod 700 {path}",
            path=path,
            mode=f"{stat.S_IMODE(found.st_mode):04o}",
        )


def _check_no_daemon(path: str, reachable: str) -> None:
    """Raise when somebody listens at `path`. `reachable` is the same file by a short name."""
    try:
        mode = os.lstat(reachable).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise InvalidArgument("the place of the socket is taken by another file", path=path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path if len(os.fsencode(path)) < _SUN_PATH else reachable)
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except BlockingIOError:
            pass  # its backlog is full: alive, and busy
    raise Conflict("a daemon is already running here", hint="Use it, or: imgvol stop", path=path)


async def _accept(accepting: trio.socket.SocketType) -> trio.socket.SocketType | None:
    try:
        connected, _ = await accepting.accept()
    except OSError as error:
        if error.errno in OUT_OF_RESOURCES:
            log.warning("cannot accept a connection: %s", error.strerror)
            await trio.sleep(ACCEPT_PAUSE)
            return None
        if error.errno in GONE:
            return None
        raise InternalError("the API's socket is broken", errno=error.errno) from error
    return connected


async def _refuse(connected: trio.socket.SocketType, error: ImgvolError) -> None:
    """Say why, in one packet that fits any socket buffer, and hang up without reading."""
    answer = error_response(error)
    head = (
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}\r\nconnection: close\r\n"
        f"content-type: {answer.media_type}\r\ncontent-length: {len(answer.body)}\r\n\r\n"
    )
    with contextlib.suppress(OSError), trio.move_on_after(1):
        await connected.send(head.encode("ascii") + answer.body)
