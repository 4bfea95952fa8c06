"""Runs a program with a view as its root, in a mount namespace of its own.

A program of its own, `python -m imgvol.volumes.private_root REQUEST`: what it mounts is seen by
nobody else, and goes with the last of its processes. The view itself stays read-only; /proc and
/dev are the machine's, /tmp is empty and writable, each if the image has the directory for it.
"""

import ctypes
import json
import os
import sys
from collections.abc import Sequence
from typing import Final

_CLONE_NEWNS: Final = 0x00020000
_MS_NOSUID: Final = 1 << 1
_MS_NODEV: Final = 1 << 2
_MS_BIND: Final = 1 << 12
_MS_REC: Final = 1 << 14
_MS_PRIVATE: Final = 1 << 18

# As shells have it: not to be run, not to be found.
_EXIT_REFUSED: Final = 126
_EXIT_MISSING: Final = 127
_DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_libc = ctypes.CDLL(None, use_errno=True)


def command_line(
    view: str, command: Sequence[str], environment: Sequence[str], directory: str
) -> list[str]:
    """What to run, as root, to run a command in a view.

    Args:
        view: Path of the view.
        command: Words; the first is looked for in the view.
        environment: `NAME=VALUE`, as an image's configuration has it.
        directory: Where it begins, in the view; empty: the root.
    """
    request = {
        "view": view,
        "command": list(command),
        "environment": list(environment),
        "directory": directory or "/",
    }
    return [sys.executable, "-m", "imgvol.volumes.private_root", json.dumps(request)]


def _check(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _mount(source: bytes, target: bytes, kind: bytes | None, flags: int) -> None:
    result = _libc.mount(source, target, kind, ctypes.c_ulong(flags), None)
    _check(result, f"mount {os.fsdecode(target)}")


def _enter(view: str) -> None:
    _check(_libc.unshare(ctypes.c_int(_CLONE_NEWNS)), "unshare")
    _mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE)
    root = os.fsencode(view)
    for name, source, kind, flags in (
        (b"/proc", b"proc", b"proc", _MS_NOSUID | _MS_NODEV),
        (b"/dev", b"/dev", None, _MS_BIND | _MS_REC),
        (b"/tmp", b"tmpfs", b"tmpfs", _MS_NOSUID | _MS_NODEV),
    ):
        # A link there would lead out of the view.
        if os.path.isdir(root + name) and not os.path.islink(root + name):
            _mount(source, root + name, kind, flags)
    os.chroot(root)


def main(request: str) -> int:
    """Becomes the command; returns only if that fails."""
    wanted = json.loads(request)
    environment = dict(item.split("=", 1) for item in wanted["environment"] if "=" in item)
    environment.setdefault("PATH", _DEFAULT_PATH)
    if "TERM" in os.environ:
        environment.setdefault("TERM", os.environ["TERM"])
    try:
        _enter(wanted["view"])
        os.chdir(wanted["directory"])
        os.execvpe(wanted["command"][0], wanted["command"], environment)  # noqa: S606 - that is what it is for
    except (FileNotFoundError, NotADirectoryError) as exc:
        sys.stderr.write(f"imgvol: the image has no such program: {exc}\n")
        return _EXIT_MISSING
    except OSError as exc:
        sys.stderr.write(f"imgvol: the program cannot be run: {exc}\n")
        return _EXIT_REFUSED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
