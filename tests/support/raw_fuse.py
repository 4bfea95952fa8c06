"""A filesystem of one empty directory that speaks FUSE itself: libfuse cannot say that the kernel
may map a filesystem's owners.

`python -m support.raw_fuse DIRECTORY OFFER` is a program that must run in a mount namespace of its
own (`unshare --mount`). It serves the filesystem, binds it with a mapping as volumes are bound, and
prints the owner that can be seen there, or why it cannot be bound.
"""

import ctypes
import os
import struct
import sys
import threading
from pathlib import Path

from imgvol.errors import ImgvolError
from imgvol.volumes import mounts
from imgvol.volumes.options import BindOptions, parse_mappings
from imgvol.volumes.subpaths import SubPath

OWNER = 5
MAPPING = "0:100000:65536"

GETATTR, FORGET, INIT, BATCH_FORGET, DESTROY = 3, 2, 26, 42, 38
INIT_EXT = 1 << 30
ALLOW_IDMAP = 1 << (40 - 32)  # in flags2; Linux 6.12
ENOSYS = 38
IN_HEADER = struct.Struct("=IIQQIIIHH")
OUT_HEADER = struct.Struct("=IiQ")
# struct fuse_init_out: major, minor, max_readahead, flags, max_background, congestion_threshold,
# max_write, time_gran, max_pages, map_alignment, flags2.
INIT_OUT = struct.Struct("=IIIIHHIIHHI28x")
# struct fuse_attr_out: validity, then ino, size, blocks, times, nanoseconds, mode, nlink, uid, gid.
ATTR_OUT = struct.Struct("=QI4xQQQQQQIIIIIIIIII")

_libc = ctypes.CDLL(None, use_errno=True)


def serve(device: int, offers_mapping: bool) -> None:
    """Answers until the filesystem is unmounted."""
    while True:
        try:
            request = os.read(device, 1 << 20)
        except OSError:
            return
        _, operation, unique, *_ = IN_HEADER.unpack_from(request)
        if operation in (FORGET, BATCH_FORGET):
            continue
        error, body = 0, b""
        if operation == INIT:
            body = init_answer(request[IN_HEADER.size :], offers_mapping)
        elif operation == GETATTR:
            attributes = (1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 2, OWNER, OWNER, 0, 4096, 0)
            body = ATTR_OUT.pack(1 << 30, 0, *attributes)
        elif operation != DESTROY:
            error = -ENOSYS
        os.write(device, OUT_HEADER.pack(OUT_HEADER.size + len(body), error, unique) + body)


def init_answer(request: bytes, offers_mapping: bool) -> bytes:
    major, minor, readahead, _, flags2 = struct.unpack_from("=IIIII", request)
    if not offers_mapping:
        return INIT_OUT.pack(major, minor, readahead, 0, 16, 12, 4096, 1, 1, 0, 0)
    wanted = flags2 & ALLOW_IDMAP
    return INIT_OUT.pack(major, minor, readahead, INIT_EXT, 16, 12, 4096, 1, 1, 0, wanted)


def main(directory: Path, offer: str) -> None:
    served, target = directory / "served", directory / "target"
    served.mkdir()
    target.mkdir()
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other"
    if _libc.mount(b"raw", bytes(served), b"fuse.raw", 0, options.encode()):
        raise OSError(ctypes.get_errno(), "mount")
    threading.Thread(target=serve, args=[device, offer == "mapping"], daemon=True).start()
    os.stat(served)  # the first exchange is over
    mapping = parse_mappings(MAPPING)
    try:
        mounts.bind(
            bytes(served),
            SubPath(),
            bytes(target),
            BindOptions(uid_mappings=mapping, gid_mappings=mapping),
        )
    except ImgvolError as exc:
        print(type(exc).__name__, exc)
    else:
        status = os.stat(target)
        print(status.st_uid, status.st_gid)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
