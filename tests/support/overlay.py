"""The kernel's own merge: layers as directories, mounted by overlayfs and read back.

`python -m support.overlay DIRECTORY` is a program that must run in a mount namespace of its own
(`unshare --mount`): what it mounts goes with it. It answers one stack of layers per line:

    [[{"path": "a/b", "type": "FILE", "mode": 420, …}, …], …]  ->  {"a/b": [type, mode, …], …}

Names and contents travel as Latin-1.
"""

import ctypes
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
MS_RDONLY = 1
MNT_DETACH = 2
FORMATS = {
    stat.S_IFREG: "FILE",
    stat.S_IFDIR: "DIRECTORY",
    stat.S_IFLNK: "SYMLINK",
    stat.S_IFCHR: "CHAR",
    stat.S_IFBLK: "BLOCK",
    stat.S_IFIFO: "FIFO",
}
MAKERS = {"CHAR": stat.S_IFCHR, "BLOCK": stat.S_IFBLK, "FIFO": stat.S_IFIFO}


class Overlay:
    """A running program, asked for one stack at a time."""

    def __init__(self, directory: Path):
        command = ["unshare", "--mount", sys.executable, "-m", "support.overlay", str(directory)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        )
        # Ready, and so itself: a process between fork and exec is nobody yet to the leak guard.
        assert self._process.stdout.readline() == "ready\n"

    def merge(self, layers: list[list[dict]]) -> dict[str, list]:
        self._process.stdin.write(json.dumps(layers) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the overlay program has died; its words are above"
        return json.loads(answer)

    def close(self) -> None:
        with self._process:
            self._process.stdin.close()
            self._process.wait(30)
        assert self._process.returncode == 0


def serve(directory: str) -> None:
    mount("tmpfs", directory, "tmpfs", 0, "")
    print("ready", flush=True)
    for line in sys.stdin:
        layers = json.loads(line)
        names = []
        for number, layer in enumerate(layers):
            names.append(os.path.join(directory, str(number)))
            make_layer(names[-1], layer)
        # Two are the least that overlayfs takes without an upper one.
        empty, merged = os.path.join(directory, "empty"), os.path.join(directory, "merged")
        os.mkdir(empty)
        os.mkdir(merged)
        lower = ":".join([*reversed(names), empty])
        mount("overlay", merged, "overlay", MS_RDONLY, f"lowerdir={lower}")
        answer = dict(read_tree(merged))
        if _libc.umount2(os.fsencode(merged), 0):
            raise OSError(ctypes.get_errno(), "umount")
        for name in os.listdir(directory):
            shutil.rmtree(os.path.join(directory, name))
        print(json.dumps(answer), flush=True)
    _libc.umount2(os.fsencode(directory), MNT_DETACH)


def mount(source: str, target: str, fstype: str, flags: int, data: str) -> None:
    arguments = (source.encode(), os.fsencode(target), fstype.encode(), flags, data.encode())
    if _libc.mount(*arguments):
        raise OSError(ctypes.get_errno(), f"mount {fstype} {data}")


def make_layer(top: str, entries: list[dict]) -> None:
    """Entries come with parents first."""
    for entry in entries:
        make_entry(top, os.path.join(top, entry["path"]).rstrip("/"), entry)
    for entry in reversed(entries):
        if "mtime_ns" in entry and "link" not in entry:
            path = os.path.join(top, entry["path"])
            times = (entry["mtime_ns"],) * 2
            os.utime(path, ns=times, follow_symlinks=False)


def make_entry(top: str, path: str, entry: dict) -> None:
    kind = entry["type"]
    if kind == "WHITEOUT":
        os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))
        return
    if "link" in entry:
        os.link(os.path.join(top, entry["link"]), path, follow_symlinks=False)
        return
    if kind == "DIRECTORY":
        os.mkdir(path)
        if entry["opaque"]:
            os.setxattr(path, "trusted.overlay.opaque", b"y")
    elif kind == "SYMLINK":
        os.symlink(entry["target"], path)
    elif kind == "FILE":
        Path(path).write_bytes(entry["content"].encode("latin-1"))
    else:
        os.mknod(path, MAKERS[kind], os.makedev(entry["major"], entry["minor"]))
    os.chown(path, entry["uid"], entry["gid"], follow_symlinks=False)
    if kind != "SYMLINK":
        os.chmod(path, entry["mode"])


def read_tree(top: str, path: str = ""):
    status = os.lstat(os.path.join(top, path))
    kind = FORMATS[stat.S_IFMT(status.st_mode)]
    full = os.path.join(top, path)
    yield (
        path,
        [
            kind,
            stat.S_IMODE(status.st_mode),
            status.st_uid,
            status.st_gid,
            0 if kind == "DIRECTORY" else status.st_size,
            status.st_mtime_ns,
            os.readlink(full) if kind == "SYMLINK" else "",
            [os.major(status.st_rdev), os.minor(status.st_rdev)],
            Path(full).read_bytes().decode("latin-1") if kind == "FILE" else "",
        ],
    )
    if kind == "DIRECTORY":
        for name in sorted(os.listdir(full)):
            # In a directory that is not merged, overlayfs lists whiteouts, but does not find them.
            if os.path.lexists(os.path.join(full, name)):
                yield from read_tree(top, os.path.join(path, name))


if __name__ == "__main__":
    serve(sys.argv[1])
