"""Files that an administrator writes: read again when they change, and never half.

Reading blocks. What was read is kept as long as the file's size, time and inode are the same; a
file that cannot be read or understood any more is an error, whatever it said before.
"""

import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from imgvol import limits
from imgvol.errors import BadConfiguration

T = TypeVar("T")

_HINT: Final = "Correct the file: the next pull reads it again."


class BadKey(Exception):
    """Something in a file is not what it should be. Internal to the readers of such files.

    Args:
        problem: What is wrong. Never a value from the file: it may be a password.
        key: Where: `host."https://mirror.example.com".ca`.
    """

    def __init__(self, problem: str, key: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.key = key


class _Stamp(NamedTuple):
    device: int
    inode: int
    size: int
    mtime_ns: int


class ConfigFiles:
    """What configuration files said when they were last read. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[Path, tuple[_Stamp, Any]] = OrderedDict()

    def read(self, file: Path, parse: Callable[[bytes], T], *, max_size: int) -> T:
        """What a file says.

        Args:
            file: The file; always read with the same `parse`.
            parse: Reads its bytes; raises BadKey.
            max_size: The most bytes.

        Raises:
            FileNotFoundError, PermissionError: It is not there, or not for us.
            BadConfiguration: It cannot be read, or is not what it should be.
        """
        try:
            # Not blocking: a FIFO in the place of the file must not hold us.
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with open(descriptor, "rb") as opened:
                return self._read(file, opened, parse, max_size)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(str(file)) from error
        except PermissionError:
            raise
        except OSError as error:
            raise _bad(file, f"cannot be read: {os.strerror(error.errno or 0).lower()}") from error
        except BadKey as error:
            raise _bad(file, error.problem, error.key) from error

    def _read(self, file: Path, opened: Any, parse: Callable[[bytes], T], max_size: int) -> T:
        status = os.fstat(opened.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise BadKey("not a regular file")
        stamp = _Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        with self._lock:
            known = self._known.get(file)
        if known is not None and known[0] == stamp:
            parsed: T = known[1]
            return parsed
        data = opened.read(max_size + 1)
        if len(data) > max_size:
            raise BadKey(f"larger than {max_size} bytes")
        parsed = parse(data)
        with self._lock:
            self._known[file] = (stamp, parsed)
            self._known.move_to_end(file)
            if len(self._known) > limits.CONFIGURATION_FILES:
                self._known.popitem(last=False)
        return parsed


def bad_key(file: Path, error: BadKey) -> BadConfiguration:
    """The error for something that is found to be wrong after the file was read."""
    return _bad(file, error.problem, error.key)


def _bad(file: Path, problem: str, key: str = "") -> BadConfiguration:
    return BadConfiguration(
        f"the configuration of registries cannot be used: {problem}",
        hint=_HINT,
        file=file,
        key=key or None,
    )
