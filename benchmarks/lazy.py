"""Lazy mounts against full pulls: how soon work begins, over lines of several qualities.

One image of more than 400 MB (Debian, python3, numpy and scipy), as plain gzip, gzip with a SOCI
index, eStargz (once more with chunks of 256 KiB) and zstd:chunked as their own tools make them,
behind a line with a given round-trip time and bandwidth. For each: the time until `imgvol mount`
returns, until `import numpy` has run out of the view, how long that takes once more, and the time
until every file has been read; the bytes that had crossed the line when the work was done, and
those of them that it needed. Against skopeo and umoci, who have to finish before anything can run.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx

from support import images, rootfs
from support.daemon import Imgvol, running_daemon
from support.images import Image, Layer, push, sha256, to_json, write_layout
from support.lazy_images import as_layer
from support.peers import podman_layer, stargz_layer
from support.programs import run
from support.proxy import Proxy, running_proxy
from support.registry import Registry

PEERS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imgvol-peers"
PACKAGES = ("numpy==2.2.6", "scipy==1.15.3")
SITE = "usr/local/lib/python3.11/dist-packages"
WORK = "import numpy; print(numpy.arange(9).sum())"
FORMATS = ("gzip", "soci", "estargz", "estargz-256k", "zstd:chunked")


@dataclass(frozen=True)
class Line:
    """A line to the registry."""

    name: str
    round_trip: float = 0.0
    rate: float | None = None
    reads_all: bool = False


LINES = (
    Line("loopback", reads_all=True),
    Line("10 ms", 0.01, reads_all=True),
    Line("50 ms", 0.05),
    Line("3 MB/s", 0.01, 3e6),
)


def bench_lazy(registry: Registry, work: Path, lines: Sequence[str] = ()) -> None:
    """Prints one table; takes about ten minutes, most of them at 3 MB/s.

    Args:
        registry: Where the images go.
        work: A directory.
        lines: Names of the lines to measure; none: all.
    """
    references = make_images(registry, work)
    print(
        f"{'LINE':<10}{'FORMAT':<14}{'MOUNT':>9}{'WORK':>9}{'AGAIN':>9}{'FETCHED':>10}{'NEEDED':>10}"
        f"{'ALL READ':>10}   AGAINST umoci: WORK, ALL READ"
    )
    for line in LINES:
        if lines and line.name not in lines:
            continue
        with running_proxy(registry.host) as proxy:
            if line.round_trip:
                proxy.delay(line.round_trip)
            if line.rate:
                proxy.throttle(line.rate, shared=True)
            other = measure_umoci(proxy.reference(references["gzip"]), line, work)
            print(format_row(line, "umoci", other), flush=True)
            for kind in FORMATS:
                ours = measure(proxy, references[kind], line, work)
                print(format_row(line, kind, ours, other), flush=True)


@dataclass(frozen=True)
class Figures:
    """Seconds since the beginning, and bytes that had crossed the line when the work was done."""

    work: float
    again: float
    mount: float | None = None
    everything: float | None = None
    fetched: int | None = None
    needed: int | None = None


def format_row(line: Line, kind: str, figures: Figures, other: Figures | None = None) -> str:
    row = f"{line.name:<10}{kind:<14}{seconds(figures.mount)}{seconds(figures.work)}"
    row += (
        f"{seconds(figures.again)}{megabytes(figures.fetched):>10}{megabytes(figures.needed):>10}"
    )
    row += f"{seconds(figures.everything, 10)}"
    if other is not None:
        row += f"   {other.work / figures.work:.1f} times sooner"
    if other is not None and figures.everything and other.everything:
        row += f", {figures.everything / other.everything:.2f} times as long"
    return row.rstrip()


def measure(proxy: Proxy, reference: str, line: Line, work: Path) -> Figures:
    """One format over one line, from an empty store."""
    with work_directory(work) as base, running_daemon(base) as daemon:
        target = daemon.target("mnt")
        seen = len(proxy.seen)
        began = time.perf_counter()
        daemon.run("mount", proxy.reference(reference), target, timeout=600)
        mounted = time.perf_counter() - began
        worked = work_in(target) + mounted
        fetched, needed = proxy.blob_bytes(seen), _needed(daemon)
        again = work_in(target)
        everything = worked + again + _read_all(target) if line.reads_all else None
        daemon.run("unmount", target)
        return Figures(worked, again, mounted, everything, fetched, needed or None)


def _needed(daemon: Imgvol) -> int:
    (volume,) = daemon.json("ps")
    return sum(layer["needed"] for layer in volume["layers"])


def work_in(tree: Path | str) -> float:
    began = time.perf_counter()
    run("chroot", tree, "/usr/bin/python3", "-c", WORK, timeout=600)
    return time.perf_counter() - began


def _read_all(tree: Path | str) -> float:
    began = time.perf_counter()
    run("sh", "-c", f"find {tree} -type f -print0 | xargs -0 cat >/dev/null", timeout=900)
    return time.perf_counter() - began


def measure_umoci(reference: str, line: Line, work: Path) -> Figures:
    """The same out of an unpacked tree."""
    with work_directory(work) as base:
        began = time.perf_counter()
        run(
            "skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false",
            f"docker://{reference}", f"oci:{base}/layout:x", timeout=900,
        )  # fmt: skip
        run("umoci", "raw", "unpack", "--image", f"{base}/layout:x", base / "tree", timeout=900)
        unpacked = time.perf_counter() - began
        worked = work_in(base / "tree") + unpacked
        again = work_in(base / "tree")
        everything = worked + again + _read_all(base / "tree") if line.reads_all else None
        return Figures(worked, again, everything=everything)


# --- the images --------------------------------------------------------------------------------


def make_images(registry: Registry, work: Path) -> dict[str, str]:
    """Pushes the image in every format; the names in the registry."""
    plain = Image(
        [
            *rootfs.read_image(rootfs.ensure_layout()).layers,
            Layer(packages_tar("science", PACKAGES)),
        ]
    )
    plain = plain.recompressed("gzip")
    size = sum(len(layer.tar) for layer in plain.layers)
    print(f"image of {len(plain.layers)} layers, {size / 1e6:.0f} MB", file=sys.stderr)
    names = {"gzip": "lazy:gzip", "soci": "lazy:soci"}
    push(write_layout(work / "plain", {"x": plain}), "x", registry.reference(names["gzip"]))
    push_soci(registry, plain, "soci", work)
    small = partial(converted, flags=("-chunk-size=262144",))
    others = {"estargz": converted, "estargz-256k": small, "zstd:chunked": rechunked}
    for kind, convert in others.items():
        name = kind.replace(":", "-")
        layers = [convert(layer, work) for layer in plain.layers]
        names[kind] = f"lazy:{name}"
        layout = write_layout(work / f"layout-{name}", {"x": Image(layers)})
        push(layout, "x", registry.reference(names[kind]))
    return names


def packages_tar(name: str, packages: Sequence[str], *, is_compiled: bool = False) -> bytes:
    """A layer with Python packages, which come from the package index, once."""
    kept = rootfs.cache_directory() / f"{name}.tar"
    if not kept.exists():
        with tempfile.TemporaryDirectory() as directory:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--no-deps"]
            subprocess.run([*pip, "--target", f"{directory}/{SITE}", *packages], check=True)
            if is_compiled:  # by hashes, as the tar has other times
                mode = ["--invalidation-mode", "unchecked-hash"]
                run(sys.executable, "-m", "compileall", "-q", *mode, f"{directory}/{SITE}")
            made = f"{directory}.tar"
            subprocess.run(
                ["tar", "--create", "--sort=name", "--owner=0", "--group=0", "--mtime=@0",
                 "--directory", directory, "--file", made, "usr"],
                check=True,
            )  # fmt: skip
            shutil.move(made, kept)
    return kept.read_bytes()


def converted(layer: Layer, work: Path, flags: Sequence[str] = ()) -> Layer:
    """The same layer as eStargz, by stargz's own library; without flags with its 4 MiB chunks."""
    with work_directory(work) as place:
        return as_layer(stargz_layer(place, layer.tar, *flags), "gzip")


def rechunked(layer: Layer, work: Path) -> Layer:
    """The same layer as podman pushes it, with its chunks of 64 KiB on average."""
    with work_directory(work) as place:
        return as_layer(podman_layer(place, layer.tar), "zstd")


def push_soci(registry: Registry, image: Image, tag: str, work: Path) -> None:
    """The image as it is, with a SOCI index of version 2 beside it and pinned by its manifest."""
    base = f"http://{registry.host}/v2/lazy"
    with httpx.Client(timeout=120) as http:

        def put_blob(data: bytes) -> None:
            place = http.post(f"{base}/blobs/uploads/").headers["location"]
            mark = "&" if "?" in place else "?"
            http.put(f"{place}{mark}digest={sha256(data)}", content=data).raise_for_status()

        def put_manifest(name: str, document: bytes) -> None:
            kind = "application/vnd.oci.image.manifest.v1+json"
            headers = {"Content-Type": kind}
            url = f"{base}/manifests/{name}"
            http.put(url, content=document, headers=headers).raise_for_status()

        entries = []
        for layer in image.layers:
            blob = work / "layer"
            blob.write_bytes(layer.blob)
            ztoc = subprocess.run([PEERS / "ztoc", blob], capture_output=True, check=True).stdout
            put_blob(ztoc)
            entries.append(
                {
                    "mediaType": "application/octet-stream",
                    "digest": sha256(ztoc),
                    "size": len(ztoc),
                    "annotations": {"com.amazon.soci.image-layer-digest": layer.digest},
                }
            )
        put_blob(b"{}")
        index = to_json(
            {
                "schemaVersion": 2,
                "mediaType": f"{images.OCI}.manifest.v1+json",
                "config": {
                    "mediaType": "application/vnd.amazon.soci.index.v2+json",
                    "digest": sha256(b"{}"),
                    "size": 2,
                },
                "layers": entries,
            }
        )
        put_manifest(sha256(index), index)
        manifest = json.loads(image.manifest_bytes())
        manifest["annotations"] = {"com.amazon.soci.index-digest": sha256(index)}
        put_manifest(tag, to_json(manifest))


@contextmanager
def work_directory(work: Path) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(dir=work))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.1f} MB"


def seconds(value: float | None, width: int = 9) -> str:
    return " " * width if value is None else f"{value:>{width - 2}.2f} s"
