"""Lazy mounts against full pulls: how soon work begins, over lines of several qualities.

One image of more than 400 MB (Debian, python3, numpy and scipy), as plain gzip, gzip with a SOCI
index, eStargz and zstd:chunked, behind a line with a given round-trip time and bandwidth. For
each: the time until `imgvol mount` returns, until `import numpy` has run out of the view, and until
every file has been read; and the bytes that had crossed the line by then. Against skopeo and umoci,
who have to finish before anything can run.
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
from pathlib import Path

import httpx

from support import images, rootfs
from support.daemon import Imgvol, running_daemon
from support.images import Image, Layer, push, sha256, to_json, write_layout
from support.peers import stargz_layer
from support.programs import run
from support.proxy import Proxy, running_proxy
from support.registry import Registry

PEERS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imgvol-peers"
PACKAGES = ("numpy==2.2.6", "scipy==1.15.3")
SITE = "usr/local/lib/python3.11/dist-packages"
WORK = "import numpy; print(numpy.arange(9).sum())"
FORMATS = ("gzip", "soci", "estargz", "zstd:chunked")


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
        f"{'LINE':<10}{'FORMAT':<14}{'MOUNT':>9}{'FIRST WORK':>12}{'FETCHED':>10}"
        f"{'ALL READ':>10}{'FETCHED':>10}   AGAINST umoci"
    )
    for line in LINES:
        if lines and line.name not in lines:
            continue
        with running_proxy(registry.host) as proxy:
            if line.round_trip:
                proxy.delay(line.round_trip)
            if line.rate:
                proxy.throttle(line.rate, shared=True)
            unpacked = measure_umoci(proxy.reference(references["gzip"]), work)
            print(f"{line.name:<10}{'umoci':<14}{'':>9}{unpacked:>10.2f} s")
            for kind in FORMATS:
                measure(proxy, kind, references[kind], line, work, unpacked)


def measure(
    proxy: Proxy, kind: str, reference: str, line: Line, work: Path, unpacked: float
) -> None:
    """One format over one line, from an empty store."""
    with _directory(work) as base, running_daemon(base) as daemon:
        target = daemon.target("mnt")
        seen = len(proxy.seen)
        began = time.perf_counter()
        daemon.run("mount", proxy.reference(reference), target, timeout=600)
        mounted = time.perf_counter() - began
        run("chroot", target, "/usr/bin/python3", "-c", WORK, timeout=600)
        worked = time.perf_counter() - began
        fetched = proxy.blob_bytes(seen)
        everything = after = ""
        if line.reads_all:
            run("sh", "-c", f"find {target} -type f -print0 | xargs -0 cat >/dev/null", timeout=900)
            everything = f"{time.perf_counter() - began:.2f} s"
            after = _mb(proxy.blob_bytes(seen))
        print(
            f"{line.name:<10}{kind:<14}{mounted:>7.2f} s{worked:>10.2f} s{_mb(fetched):>10}"
            f"{everything:>10}{after:>10}   {unpacked / worked:.1f} times sooner",
            flush=True,
        )
        _report_needed(daemon)
        daemon.run("unmount", target)


def _report_needed(daemon: Imgvol) -> None:
    (volume,) = daemon.json("ps")
    needed = sum(layer["needed"] for layer in volume["layers"])
    fetched = sum(layer["fetched"] for layer in volume["layers"])
    if needed:
        print(f"{'':<24}readers waited for {_mb(needed)}, {_mb(fetched)} fetched in all")


def measure_umoci(reference: str, work: Path) -> float:
    """Seconds until the same work has run out of an unpacked tree."""
    with _directory(work) as base:
        began = time.perf_counter()
        run(
            "skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false",
            f"docker://{reference}", f"oci:{base}/layout:x", timeout=900,
        )  # fmt: skip
        run("umoci", "raw", "unpack", "--image", f"{base}/layout:x", base / "tree", timeout=900)
        run("chroot", base / "tree", "/usr/bin/python3", "-c", WORK, timeout=600)
        return time.perf_counter() - began


# --- the images --------------------------------------------------------------------------------


def make_images(registry: Registry, work: Path) -> dict[str, str]:
    """Pushes the image in every format; the names in the registry."""
    plain = Image([*rootfs.read_image(rootfs.ensure_layout()).layers, Layer(science_tar())])
    plain = plain.recompressed("gzip")
    size = sum(len(layer.tar) for layer in plain.layers)
    print(f"image of {len(plain.layers)} layers, {size / 1e6:.0f} MB", file=sys.stderr)
    names = {"gzip": "lazy:gzip", "soci": "lazy:soci"}
    push(write_layout(work / "plain", {"x": plain}), "x", registry.reference(names["gzip"]))
    push_soci(registry, plain, "soci", work)
    for kind, name in (("estargz", "gzip"), ("zstd:chunked", "zstd")):
        layers = [converted(layer, name, work) for layer in plain.layers]
        names[kind] = f"lazy:{name}-toc"
        layout = write_layout(work / f"layout-{name}", {"x": Image(layers)})
        push(layout, "x", registry.reference(names[kind]))
    return names


def science_tar() -> bytes:
    """A layer with numpy and scipy; packages come from the package index, once."""
    kept = rootfs.cache_directory() / "science.tar"
    if not kept.exists():
        with tempfile.TemporaryDirectory() as directory:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--no-deps"]
            subprocess.run([*pip, "--target", f"{directory}/{SITE}", *PACKAGES], check=True)
            made = f"{directory}.tar"
            subprocess.run(
                ["tar", "--create", "--sort=name", "--owner=0", "--group=0", "--mtime=@0",
                 "--directory", directory, "--file", made, "usr"],
                check=True,
            )  # fmt: skip
            shutil.move(made, kept)
    return kept.read_bytes()


def converted(layer: Layer, name: str, work: Path) -> Layer:
    """The same layer with a table of contents, by stargz's own library."""
    with _directory(work) as directory:
        made = stargz_layer(directory, layer.tar, "-format", name)
        diff_id = json.loads(
            run(
                PEERS / "estargz", "-format", name, directory / "source.tar", directory / "again"
            ).stdout
        )["diff_id"]
    result = Layer(b"", name)
    result.blob, result.annotations = made.blob, made.annotations
    result.digest, result.size, result.diff_id = sha256(made.blob), len(made.blob), diff_id
    return result


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
def _directory(work: Path) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(dir=work))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _mb(size: float) -> str:
    return f"{size / 1e6:.1f} MB"
