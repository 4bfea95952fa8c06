"""A process that touches a mounted view so that the test runner never does.

A system call on a FUSE view can hang for ever, and a process that hangs there cannot even be
killed. So tests ask an
agent: one JSON object per line in, one out. `Agent.ask` waits with a deadline; an agent that misses
it is left behind and the test fails with the agent's kernel stack.

Names are text with surrogate escapes, contents are base64. The commands are the functions named
`do_*` below.
"""

import array
import base64
import contextlib
import errno
import fcntl
import hashlib
import json
import mmap
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

DEADLINE = 30.0


class AgentError(Exception):
    """What a command raised, if it was not an OSError."""


class AgentStuckError(Exception):
    """No answer within the deadline."""


class Agent:
    """The tests' side. Use it as a context manager, or call `close`.

    Args:
        user: Run the agent as this user and group id instead of one's own (needs root).
        python: The interpreter, if another program shall read the view.
        within: A command that runs it somewhere else: `nsenter` and its options.
    """

    def __init__(
        self, *, user: int | None = None, python: str = sys.executable, within: Sequence[str] = ()
    ):
        identity = {} if user is None else {"user": user, "group": user, "extra_groups": []}
        # The source comes by standard input's side door: another user may not read the repository.
        source = Path(__file__).read_text()
        self._process = subprocess.Popen(
            [*within, python, "-I", "-c", source],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
            **identity,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, command: str, *, deadline: float = DEADLINE, **arguments):
        """Runs one command and returns its result.

        Raises:
            OSError: The command's system call failed, with its errno.
            AgentError: The command raised something else.
            AgentStuckError: There was no answer in time.
        """
        self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
        self._process.stdin.flush()
        answer = self._wait_line(deadline)
        if "errno" in answer:
            raise OSError(answer["errno"], os.strerror(answer["errno"]), answer.get("filename"))
        if "error" in answer:
            raise AgentError(answer["error"])
        return answer["result"]

    def ask_bytes(self, command: str, **arguments) -> bytes:
        """The same for commands that return contents."""
        return base64.b64decode(self.ask(command, **arguments))

    def errno_of(self, command: str, **arguments) -> str:
        """The name of the error that a command fails with, or "OK"."""
        try:
            self.ask(command, **arguments)
        except OSError as error:
            return errno.errorcode[error.errno]
        return "OK"

    def _wait_line(self, deadline: float):
        import threading  # the agent itself must not pay for it

        lines = []
        reader = threading.Thread(
            target=lambda: lines.append(self._process.stdout.readline()), daemon=True
        )
        reader.start()
        reader.join(deadline)
        if not lines:
            raise AgentStuckError(f"no answer in {deadline} s; waiting in {kernel_stack(self.pid)}")
        if not lines[0]:
            raise AgentError(f"the agent ended with {self._process.wait(5)}")
        return json.loads(lines[0])

    def close(self) -> None:
        self._process.kill()
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._process.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def kernel_stack(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stack").read_text()
    return "an unreadable place"


# --- the agent's side
# ---------------------------------------------------------------------------------

held = {}  # handle -> what is kept open


def do_open(path, flags=os.O_RDONLY, mode=0o644):
    fd = os.open(path, flags | os.O_CLOEXEC, mode)
    held[fd] = fd
    return fd


def do_close(fd):
    os.close(held.pop(fd))


def do_hold(path):
    """Keeps the directory busy: as the working directory."""
    os.chdir(path)


def do_release():
    os.chdir("/")


def do_read(fd, size):
    return _encode(os.read(fd, size))


def do_pread(fd, size, offset):
    return _encode(os.pread(fd, size, offset))


def do_content(path):
    return _encode(Path(path).read_bytes())


def do_read_together(reads, readers, exactly=False):
    """Reads ranges of files, given as path, offset and size, in as many threads; in order.

    Each result is a digest, or the name of an error, or "SHORT" for less than there is. Exactly:
    the kernel asks for these pages and for none around them, however often it is done.
    """
    from concurrent.futures import ThreadPoolExecutor

    def read(path, offset, size):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if exactly:
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
                data = os.pread(fd, size, offset)
                if len(data) < min(size, os.fstat(fd).st_size - offset):
                    return "SHORT"
                return hashlib.sha256(data).hexdigest()
            finally:
                os.close(fd)
        except OSError as error:
            return errno.errorcode[error.errno]

    with ThreadPoolExecutor(readers) as pool:
        return list(pool.map(lambda wanted: read(*wanted), reads))


def do_stat_tree(path):
    """What `lstat` says of everything below a directory, by relative path."""
    fields = ("mode", "ino", "nlink", "uid", "gid", "size", "mtime_ns", "blocks", "rdev")
    found = {}
    pending = [""]
    while pending:
        directory = pending.pop()
        for name in os.listdir(os.path.join(path, directory)):
            relative = os.path.join(directory, name)
            status = os.lstat(os.path.join(path, relative))
            found[relative] = [getattr(status, f"st_{field}") for field in fields]
            if stat.S_ISDIR(status.st_mode):
                pending.append(relative)
    return found


def do_digest(path):
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def do_forget(path):
    """Lets the kernel forget what it has read of a file that nobody else has mapped."""
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def do_mmap(fd, size, offset):
    start = offset - offset % mmap.ALLOCATIONGRANULARITY
    with mmap.mmap(fd, offset - start + size, offset=start, prot=mmap.PROT_READ) as mapped:
        return _encode(mapped[offset - start : offset - start + size])


def do_sendfile(fd, size, offset):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        received = bytearray()
        while len(received) < size:
            with contextlib.suppress(BlockingIOError):
                if (
                    os.sendfile(
                        ours.fileno(), fd, offset + len(received), min(65536, size - len(received))
                    )
                    == 0
                ):
                    break
            with contextlib.suppress(BlockingIOError):
                received += theirs.recv(1 << 20, socket.MSG_DONTWAIT)
        with contextlib.suppress(BlockingIOError):
            while piece := theirs.recv(1 << 20, socket.MSG_DONTWAIT):
                received += piece
    return _encode(received[:size])


def do_seek(fd, offset, whence):
    return os.lseek(fd, offset, whence)


def do_stat(path):
    status = os.lstat(path)
    names = [n for n in dir(status) if n.startswith("st_") and isinstance(getattr(status, n), int)]
    return {name: getattr(status, name) for name in names} | {
        "type": stat.filemode(status.st_mode)[0]
    }


def do_statfs(path):
    values = os.statvfs(path)
    return {name: getattr(values, name) for name in dir(values) if name.startswith("f_")}


def do_list(path):
    with os.scandir(path) as entries:
        return [[entry.name, entry.inode()] for entry in entries]


def do_readlink(path):
    return os.readlink(path)


def do_xattrs(path):
    names = os.listxattr(path, follow_symlinks=False)
    return {name: _encode(os.getxattr(path, name, follow_symlinks=False)) for name in names}


def do_access(path, mode):
    return os.access(path, mode)


def do_exec(arguments):
    done = subprocess.run(arguments, capture_output=True, timeout=20, check=False)
    return {
        "status": done.returncode,
        "output": _encode(done.stdout),
        "errors": _encode(done.stderr),
    }


def do_os(function, arguments, options=None):
    """Calls a function of the `os` module: for the table of mutating calls."""
    # JSON has no tuples, and `os.utime` takes nothing else.
    arguments = [tuple(a) if isinstance(a, list) else a for a in arguments]
    result = getattr(os, function)(*arguments, **(options or {}))
    return result if isinstance(result, int | str | bool | None) else None


def do_set_xattr(path, name):
    os.setxattr(path, name, b"value")


def do_set_flags(path, flags=0x10):  # FS_IMMUTABLE_FL
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, 0x40086602, array.array("l", [flags]))  # FS_IOC_SETFLAGS
    finally:
        os.close(fd)


def do_bind(path):
    """Makes a unix socket's file."""
    # Relative, as the kernel takes 108 bytes.
    os.chdir(os.path.dirname(path))
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.path.basename(path))
    finally:
        os.chdir("/")


def _encode(data):
    return base64.b64encode(data).decode()


def serve():
    for line in sys.stdin:
        arguments = json.loads(line)
        command = globals()[f"do_{arguments.pop('command')}"]
        try:
            answer = {"result": command(**arguments)}
        except OSError as error:
            answer = {"errno": error.errno, "filename": str(error.filename)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
