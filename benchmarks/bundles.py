"""The import task: a docker-archive of plain layers, copied or linked, and written again."""

import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from support.containerd import running_containerd
from support.daemon import Imgvol
from support.images import Image, Layer
from support.programs import run

NAME = "docker.io/library/bench:1"
SMALL = 16 << 10


def bench_bundles(
    daemon: Imgvol,
    work: Path,
    *,
    size: int,
    entries: Callable[[], Layer],
    median: Callable[..., float],
    drop_caches: Callable[[], None],
    compare: Callable[..., None],
    state: Callable[..., None],
) -> None:
    """Imports an archive of so many bytes, and links one of so many entries.

    Args:
        median, drop_caches: How a figure is measured.
        compare, state: Told the figures.
    """
    place = work / "bundles"
    place.mkdir()
    archive = write_archive(place / "bench.tar", size)
    target = place / "mnt"
    target.mkdir()

    def forget():
        daemon.run("unmount", target, check=False)
        daemon.run("rmi", NAME, check=False)
        drop_caches()
        daemon.run("version")

    def link_and_mount():
        daemon.run("import", "--link", archive)
        daemon.run("mount", NAME, target)

    copied = median(partial(daemon.run, "import", archive), forget)
    linked = median(link_and_mount, forget)
    forget()

    def by_hand():
        skopeo = ("skopeo", "--insecure-policy", "copy", "--quiet")
        # It compresses the layers: umoci does not read what it writes when told not to.
        run(*skopeo, f"docker-archive:{archive}", f"oci:{place}/layout:x", timeout=300)
        unpack = ("umoci", "raw", "unpack", "--image", f"{place}/layout:x", place / "rootfs")
        run(*unpack, timeout=300)

    def forget_copies():
        shutil.rmtree(place / "layout", ignore_errors=True)
        shutil.rmtree(place / "rootfs", ignore_errors=True)
        drop_caches()
        run("skopeo", "--version")
        run("umoci", "--version")

    theirs = median(by_hand, forget_copies)
    forget_copies()
    what = f"{size >> 20} MiB of plain layers"
    compare(f"import {what}", copied, "skopeo copy + umoci unpack", theirs, "aim: 4x")
    compare(f"import --link, and mount, {what}", linked, "skopeo copy + umoci unpack", theirs)
    if shutil.which("containerd"):
        with running_containerd(place / "containerd") as ctr:

            def forget_there():
                remove = [*ctr, "images", "rm", "--sync", NAME]
                subprocess.run(remove, check=False, capture_output=True)
                drop_caches()
                run(*ctr, "version")

            theirs = median(
                lambda: run(*ctr, "images", "import", archive, timeout=300), forget_there
            )
        compare(f"import {what}", copied, "ctr images import", theirs, "aim: 4x")

    daemon.run("import", archive)
    exported = place / "exported.tar"

    def drop_export():
        exported.unlink(missing_ok=True)
        drop_caches()

    written = median(partial(daemon.run, "export", NAME, "-o", exported), drop_export)
    state(f"export {what}", f"{written:.2f} s")
    forget()
    many = write_docker(place / "many.tar", entries())

    def link_many():
        daemon.run("import", "--link", many)
        daemon.run("mount", NAME, target)

    state(
        "import --link, and mount, many entries", f"{median(link_many, forget):.2f} s", "aim: 1 s"
    )
    forget()


def write_docker(path: Path, layer: Layer) -> Path:
    """A docker-archive of one plain layer."""
    from support.images import write_docker_archive

    return write_docker_archive(path, Image([Layer(layer.tar, "none")]), "bench:1")


def write_archive(path: Path, size: int) -> Path:
    """A docker-archive of two layers, which have so many bytes together."""
    noise = random.Random(7).randbytes(1 << 20)
    layers = [path.with_name("small.tar"), path.with_name("large.tar")]
    with tarfile.open(layers[0], "w") as small:
        for number in range(size // 4 // SMALL):
            start = number % (len(noise) - SMALL)
            _add(small, f"d{number // 100}/f{number}", [noise[start : start + SMALL]])
    with tarfile.open(layers[1], "w") as large:
        for number in range(24):
            pieces = size * 3 // 4 // 24 >> 20
            turned = [noise[number + n :] + noise[: number + n] for n in range(pieces)]
            _add(large, f"large{number}", turned)
    diff_ids = [f"sha256:{_sha256(layer)}" for layer in layers]
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }
    ).encode()
    names = [f"{number}/layer.tar" for number in range(2)]
    manifest = [{"Config": "c.json", "RepoTags": ["bench:1"], "Layers": names}]
    with tarfile.open(path, "w") as archive:
        for name, layer in zip(names, layers, strict=True):
            archive.add(layer, name)
            os.unlink(layer)
        _add(archive, "c.json", [config])
        _add(archive, "manifest.json", [json.dumps(manifest).encode()])
    return path


def _add(archive: tarfile.TarFile, name: str, pieces: list[bytes]) -> None:
    info = tarfile.TarInfo(name)
    info.size = sum(map(len, pieces))
    archive.addfile(info, io.BytesIO(b"".join(pieces)))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
