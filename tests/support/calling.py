"""Many processes that wait in one system call each, and what becomes of them when they are sent a
signal. A program: `python calling.py PATH OFFSET COUNT FLAGS HOW`, where FLAGS are of open(2), and
HOW is a name in WAYS, or LOOKUP: then a path may have a place for a caller's number.

It prints one JSON object per line: the first one when all have begun; then, when it is given the
number of a signal for all, or 0 for none, how they ended. It imports little: what a hundred
processes have in memory takes its time to go.
"""

import ctypes
import json
import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

SIZE = 4096
_libc = ctypes.CDLL(None, use_errno=True)


# Every caller has a handler for these; threads tell who is meant by the first one.
HANDLED = (signal.SIGUSR1, signal.SIGINT)


class _Interrupted(Exception):
    pass


def _handle(handler: Callable[..., None]) -> None:
    for number in HANDLED:
        signal.signal(number, handler)


def _interrupt(*_: object) -> None:
    raise _Interrupted


def _read(descriptor: int, offset: int) -> int:
    return os.preadv(descriptor, [mmap.mmap(-1, SIZE)], offset)


def _touch(descriptor: int, offset: int) -> int:
    """A page that is mapped, and that the kernel reads by itself: without reading ahead."""
    mapped = mmap.mmap(descriptor, offset + SIZE, prot=mmap.PROT_READ)
    mapped.madvise(mmap.MADV_RANDOM)
    return len(mapped[offset : offset + SIZE])


def _call_once(descriptor: int, offset: int) -> int:
    """As a program in C: it is told what the system call says, and a handler does nothing.

    Raises:
        InterruptedError: EINTR, which Python's own functions take for "again".
    """
    _handle(lambda *_: None)
    return _pread(descriptor, offset)


def _call_once_restarting(descriptor: int, offset: int) -> int:
    """With SA_RESTART."""
    _handle(lambda *_: None)
    for number in HANDLED:
        signal.siginterrupt(number, False)
    return _pread(descriptor, offset)


def _thread(descriptor: int, offset: int) -> int:
    """One thread of two waits, and the signal is for that one: the other blocks it."""
    return _in_thread(descriptor, offset, blocks_it=False)


def _bystander(descriptor: int, offset: int) -> int:
    """One thread of two waits, and the signal is for the other one."""
    return _in_thread(descriptor, offset, blocks_it=True)


def _in_thread(descriptor: int, offset: int, *, blocks_it: bool) -> int:
    _handle(lambda *_: None)
    results: list[int | BaseException] = []

    def work() -> None:
        how = signal.SIG_BLOCK if blocks_it else signal.SIG_UNBLOCK
        signal.pthread_sigmask(how, [signal.SIGUSR1])
        try:
            results.append(_pread(descriptor, offset))
        except OSError as error:
            results.append(error)

    if not blocks_it:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    (result,) = results
    if isinstance(result, BaseException):
        raise result
    return result


def _pread(descriptor: int, offset: int) -> int:
    buffer = ctypes.create_string_buffer(SIZE)
    size: int = _libc.pread(descriptor, buffer, ctypes.c_size_t(SIZE), ctypes.c_long(offset))
    if size < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return size


WAYS = {
    "read": _read,
    "touch": _touch,
    "once": _call_once,
    "once, restarting": _call_once_restarting,
    "thread": _thread,
    "bystander": _bystander,
}


LOOKUP = "lookup"


def call(path: str, offset: int, flags: int, how: str, began: int) -> int:
    """Its exit status: see ENDS."""
    _handle(_interrupt)
    try:
        if how == LOOKUP:
            os.write(began, b"x")
            os.lstat(path)
            return 0
        descriptor = os.open(path, os.O_RDONLY | flags)
        os.write(began, b"x")
        return 0 if WAYS[how](descriptor, offset) == SIZE else 3
    except _Interrupted:
        return 2
    except InterruptedError:
        return 4
    except FileNotFoundError:
        return 5
    except OSError:
        return 1


ENDS = {
    -signal.SIGKILL: "killed",
    0: "done",
    1: "failed",
    2: "interrupted",
    3: "short",
    4: "EINTR",
    5: "absent",
}


def main(path: str, offset: int, count: int, flags: int, how: str) -> None:
    told, began = os.pipe()
    pids = []
    for number in range(count):
        pid = os.fork()
        if pid == 0:
            os._exit(call(path.format(number), offset + number % 8 * SIZE, flags, how, began))
        pids.append(pid)
    got = 0
    while got < count:
        got += len(os.read(told, count))
    print(json.dumps({"pids": pids}), flush=True)
    number = int(sys.stdin.readline())
    start = time.monotonic()
    if number:
        for pid in pids:
            os.kill(pid, number)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    seconds = time.monotonic() - start
    ends = [ENDS.get(status) or signal.Signals(-status).name for status in statuses]
    print(json.dumps({"ends": ends, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5])
