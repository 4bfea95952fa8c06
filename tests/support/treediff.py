"""Compares two directory trees the way a program that reads them could: `python treediff.py A B`.

Everything of every entry is compared: type, permission bits, owner, modification time to the
nanosecond, size, link target, device number, extended attributes, contents, and which names are one
file. Not compared: the number of links of directories (filesystems count differently), inode
numbers, sizes of directories, access and change times.
"""

import argparse
import hashlib
import os
import stat
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

# What a filesystem or a security module adds by itself.
IGNORED_XATTRS = ("security.selinux", "system.", "trusted.overlay.", "user.overlay.")


@dataclass(frozen=True)
class Options:
    time_unit: int = 1  # nanoseconds: two times are equal when they are in one unit
    ignore_times_of: frozenset[bytes] = frozenset()  # paths: b"." is the root
    ignore: frozenset[bytes] = frozenset()  # paths, with all that is below


def differences(a: str, b: str, options: Options = Options()) -> Iterator[str]:
    """Yields one line per difference, in the order of paths."""
    left, right = _entries(os.fsencode(a), options), _entries(os.fsencode(b), options)
    for path in sorted(left.keys() | right.keys()):
        shown = os.fsdecode(path).encode("utf-8", "backslashreplace").decode()
        if path not in right:
            yield f"{shown}: only in {a}"
        elif path not in left:
            yield f"{shown}: only in {b}"
        else:
            for line in _compare(path, (a, left[path]), (b, right[path]), options):
                yield f"{shown}: {line}"
    for names in sorted(_link_groups(left) ^ _link_groups(right), key=min):
        yield f"one file in only one of the trees: {sorted(names)}"


def _entries(root: bytes, options: Options) -> dict[bytes, os.stat_result]:
    found = {b".": os.lstat(root)}
    pending = [b""]
    while pending:
        directory = pending.pop()
        for name in os.listdir(os.path.join(root, directory)):
            path = os.path.join(directory, name)
            if path in options.ignore:
                continue
            found[path] = status = os.lstat(os.path.join(root, path))
            if stat.S_ISDIR(status.st_mode):
                pending.append(path)
    return found


def _link_groups(entries: dict[bytes, os.stat_result]) -> set[frozenset[bytes]]:
    groups = defaultdict(set)
    for path, status in entries.items():
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            groups[status.st_dev, status.st_ino].add(path)
    return {frozenset(group) for group in groups.values()}


def _compare(path, left, right, options) -> Iterator[str]:
    (a, x), (b, y) = left, right
    if stat.S_IFMT(x.st_mode) != stat.S_IFMT(y.st_mode):
        yield f"type {stat.filemode(x.st_mode)} {stat.filemode(y.st_mode)}"
        return
    kind = x.st_mode
    yield from _compare_owner(x, y)
    if path not in options.ignore_times_of:
        times = [status.st_mtime_ns // options.time_unit for status in (x, y)]
        if times[0] != times[1]:
            yield f"mtime {x.st_mtime_ns} {y.st_mtime_ns}"
    if not stat.S_ISDIR(kind) and x.st_nlink != y.st_nlink:
        yield f"nlink {x.st_nlink} {y.st_nlink}"
    if (stat.S_ISCHR(kind) or stat.S_ISBLK(kind)) and x.st_rdev != y.st_rdev:
        yield f"device {x.st_rdev:#x} {y.st_rdev:#x}"
    readers = [_xattrs]
    if stat.S_ISLNK(kind):
        readers.append(os.readlink)
    if stat.S_ISREG(kind):
        if x.st_size != y.st_size:
            yield f"size {x.st_size} {y.st_size}"
        else:
            readers.append(_sha256)
    for reader in readers:
        one, other = (reader(os.path.join(os.fsencode(root), path)) for root in (a, b))
        if one != other:
            yield f"{reader.__name__.strip('_')} {one!r} {other!r}"


def _compare_owner(x, y) -> Iterator[str]:
    for field, form in (("st_mode", "o"), ("st_uid", "d"), ("st_gid", "d")):
        if getattr(x, field) != getattr(y, field):
            yield f"{field} {getattr(x, field):{form}} {getattr(y, field):{form}}"


def _xattrs(path: bytes) -> dict[str, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    return {
        n: os.getxattr(path, n, follow_symlinks=False)
        for n in names
        if not n.startswith(IGNORED_XATTRS)
    }


def _sha256(path: bytes) -> str:
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare two directory trees entry by entry.")
    parser.add_argument("a")
    parser.add_argument("b")
    parser.add_argument("--seconds", action="store_true", help="compare times by the second only")
    parser.add_argument("--ignore", action="append", default=[], metavar="PATH")
    parser.add_argument("--ignore-time-of", action="append", default=[], metavar="PATH")
    arguments = parser.parse_args()
    options = Options(
        time_unit=1_000_000_000 if arguments.seconds else 1,
        ignore=frozenset(map(os.fsencode, arguments.ignore)),
        ignore_times_of=frozenset(map(os.fsencode, arguments.ignore_time_of)),
    )
    count = 0
    for line in differences(arguments.a, arguments.b, options):
        print(line.encode("utf-8", "backslashreplace").decode())
        count += 1
    print(f"{count} differences")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
