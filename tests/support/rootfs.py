"""A real root file system image in four layers: `python -m support.rootfs` makes it or finds it,
and prints where.

    1 gzip   Debian's minbase, as mmdebstrap makes it
    2 zstd   python3, installed into it: what changed, added files and replaced ones
    3 plain  what a hasty image builder does: files replaced and deleted, a directory emptied
    4 gzip   one that brings back what 3 deleted, and puts a file where a directory was

Made once per machine (half a minute, some 50 MB of packages), then found in the cache.
"""

import gzip
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import zstandard

from support.images import (
    Entry,
    Image,
    Layer,
    directory,
    file,
    hardlink,
    opaque,
    symlink,
    tar_bytes,
    whiteout,
    write_layout,
)

# Changes when the recipe does.
VERSION = 3
TAG = "rootfs"
SUITE = "bookworm"

PACK = (
    "tar --create --format=posix --sort=name --numeric-owner --one-file-system "
    "--xattrs --xattrs-include='*' --pax-option=delete=atime,delete=ctime "
    "--exclude='./var/lib/apt/lists/*' --exclude='./var/cache/apt/*' --exclude='./var/log/*' "
    "--exclude='./dev/*' --exclude='./tmp/*' --directory \"$1\" --file {} . "
    "|| test $? -eq 1"  # 1: /sys changed meanwhile
)
# Inside the tree: the package manager of this machine must never be the one that installs.
INSTALL = (
    'chroot "$1" env DEBIAN_FRONTEND=noninteractive '
    "apt-get -qq install -y --no-install-recommends python3 >/dev/null"
)
OPTIONS = ["--quiet", "--variant=minbase", "--aptopt=Acquire::Languages none"]

HELLO = b"""#!/usr/bin/python3
import sys, zlib, json
print(f"hello from {sys.executable}, Python {sys.version.split()[0]}")
"""


def cache_directory() -> Path:
    default = os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "imgvol-images"
    )
    return Path(os.environ.get("IMGVOL_IMAGE_CACHE") or default)


def ensure_layout() -> Path:
    """The OCI layout of the image (tag `rootfs`), made if need be."""
    layout = cache_directory() / f"rootfs-{VERSION}"
    if layout.is_dir():
        return layout
    layout.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=layout.parent, prefix="making-") as work:
        made = write_layout(Path(work) / "layout", {TAG: Image(make_layers(Path(work)))})
        try:
            made.rename(layout)
        except OSError:
            if not layout.is_dir():  # else somebody else was quicker
                raise
    return layout


def read_image(layout: Path) -> Image:
    """The image of a layout that this module wrote."""
    blobs = layout / "blobs/sha256"

    def read(descriptor):
        return (blobs / descriptor["digest"].partition(":")[2]).read_bytes()

    index = json.loads((layout / "index.json").read_bytes())
    manifest = json.loads(read(index["manifests"][0]))
    return Image([_read_layer(read(layer), layer["mediaType"]) for layer in manifest["layers"]])


def _read_layer(blob: bytes, media_type: str) -> Layer:
    if media_type.endswith("+gzip"):
        return Layer(gzip.decompress(blob), "gzip")
    if media_type.endswith("+zstd"):
        return Layer(zstandard.ZstdDecompressor().decompress(blob), "zstd")
    return Layer(blob, "none")


def make_layers(work: Path) -> list[Layer]:
    base, full = work / "base.tar", work / "full.tar"
    hooks = [f"--customize-hook={step}" for step in (PACK.format(base), INSTALL, PACK.format(full))]
    command = ["mmdebstrap", *OPTIONS, *hooks, SUITE, "/dev/null"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"mmdebstrap failed: {done.stderr[-2000:]}")
    added = changes(base, full)
    if len(added) < 1 << 20:
        raise RuntimeError("python3 was not installed into the tree")
    return [
        Layer(base.read_bytes(), "gzip"),
        Layer(added, "zstd"),
        Layer(_hasty(), "none"),
        Layer(_last(), "gzip"),
    ]


def changes(lower: Path, upper: Path) -> bytes:
    """A layer's tar that makes the tree in `lower` the one in `upper`."""
    with tarfile.open(lower) as one, tarfile.open(upper) as two:
        old, new = ({member.name: member for member in archive} for archive in (one, two))
        changed = {
            name
            for name, member in new.items()
            if name not in old or not _same(one, old[name], two, member)
        }
        # The other names of a changed file, and the file that a new name links to, are changed with
        # it.
        for name, member in new.items():
            if member.islnk() and {name, member.linkname} & changed:
                changed |= {name, member.linkname}
        members = [_copied(two, member) for name, member in new.items() if name in changed]
    removed = [name for name in old if name not in new and os.path.dirname(name) in new]
    return b"".join(members) + tar_bytes([whiteout(name.removeprefix("./")) for name in removed])


def _same(one, a, two, b) -> bool:
    if (a.type, a.mode, a.uid, a.gid, a.size, a.linkname, a.pax_headers) != (
        b.type,
        b.mode,
        b.uid,
        b.gid,
        b.size,
        b.linkname,
        b.pax_headers,
    ):
        return False
    return not a.isreg() or one.extractfile(a).read() == two.extractfile(b).read()


def _copied(archive, member) -> bytes:
    data = archive.extractfile(member).read() if member.isreg() else b""
    return (
        member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        + data
        + bytes(-len(data) % 512)
    )


def _hasty() -> list[Entry]:
    return [
        directory("etc"),
        file("etc/motd", b"Welcome to the third layer.\n"),
        file("etc/hostname", b"imgvol\n"),
        whiteout("etc/issue"),
        whiteout("etc/issue.net"),
        directory("usr"),
        directory("usr/share"),
        whiteout("usr/share/man"),
        directory("usr/share/doc"),
        opaque("usr/share/doc"),
        file("usr/share/doc/README", b"The documentation was deleted to save room.\n"),
        directory("usr/share/doc/python3"),
        whiteout("usr/share/locale"),
        directory("usr/local"),
        directory("usr/local/bin"),
        file("usr/local/bin/hello", HELLO, mode=0o755),
        hardlink("usr/local/bin/hello-again", "usr/local/bin/hello"),
        symlink("usr/local/bin/greet", "hello"),
        directory("srv"),
        directory("srv/data"),
        file("srv/data/zeros", bytes(8 << 20)),
    ]


def _last() -> list[Entry]:
    return [
        directory("etc"),
        file("etc/issue", b"Back in the fourth layer.\n"),
        directory("usr"),
        directory("usr/share"),
        whiteout("usr/share/doc"),
        file("usr/share/doc", b"not a directory any more\n"),
        directory("srv"),
        whiteout("srv/data"),
        directory("srv/data"),
        file("srv/data/result", b"42\n"),
    ]


def ensure_small_layout() -> Path:
    """The same in small, of nothing but bytes: where mmdebstrap cannot work."""
    layout = cache_directory() / f"small-{VERSION}"
    base = [
        directory("etc"),
        file("etc/issue", b"Debian\n"),
        directory("usr"),
        directory("usr/share"),
    ]
    base += [directory("usr/share/doc"), file("usr/share/doc/README", b"to be deleted\n" * 1000)]
    added = [
        directory("opt"),
        file("opt/hello.py", HELLO, mode=0o755),
        file("opt/data", bytes(4 << 20)),
    ]
    layers = [
        Layer(base, "gzip"),
        Layer(added, "zstd"),
        Layer(_hasty(), "none"),
        Layer(_last(), "gzip"),
    ]
    return write_layout(layout, {TAG: Image(layers)})


if __name__ == "__main__":
    print(ensure_small_layout() if "--small" in sys.argv else ensure_layout())
