"""One node's work for all others: a plain image of a gigabyte, indexed, traced and converted.

Node A pulls a plain gzip image (Debian, python3 and a dozen large packages), makes a SOCI index of
it, records what `import numpy` reads, converts it, and pushes all that. Node B, another root, has
a line of 3 MB/s and 10 ms, mounts each of them from an empty store and runs the same program. Then
a second tag, which shares nine tenths of its files with the first but not one layer: how much of it
is fetched where the first one is.
"""

import io
import json
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

from lazy import WORK, megabytes, packages_tar, seconds, work_directory, work_in

from support import rootfs
from support.daemon import Imgvol, running_daemon
from support.images import Image, Layer, push, write_layout
from support.programs import run
from support.proxy import Proxy, running_proxy
from support.registry import Registry

PACKAGES = (
    "numpy==2.2.6", "scipy==1.15.3", "pandas==2.3.3", "scikit-learn==1.7.2", "pyarrow==22.0.0",
    "polars==1.35.2", "opencv-python-headless==4.12.0.88", "llvmlite==0.45.1", "numba==0.62.1",
    "statsmodels==0.14.5", "scikit-image==0.25.2", "matplotlib==3.10.7",
)  # fmt: skip
ROUND_TRIP = 0.01
RATE = 3e6
PLAIN, SOCI, NEXT = "big:plain", "big:soci", "big:next"


@dataclass(frozen=True)
class Variant:
    """What node B mounts.

    Attributes:
        serve: Options of its daemon.
    """

    name: str
    reference: str
    serve: tuple[str, ...] = ()


def bench_publish(registry: Registry, work: Path) -> None:
    """Prints two tables; takes a quarter of an hour, most of it for what is not lazy.

    Args:
        registry: Where the images go.
        work: A directory.
    """
    first = _image()
    plain = _push(registry, work, first, PLAIN)
    size = sum(len(layer.blob) for layer in first.layers)
    unpacked = sum(len(layer.tar) for layer in first.layers)
    print(f"image of {unpacked / 1e6:.0f} MB, {size / 1e6:.0f} MB as gzip", file=sys.stderr)
    variants = _publish(registry, work, plain, unpacked)
    print(f"\n{'3 MB/s, 10 ms':<28}{'MOUNT':>9}{'WORK':>9}{'FETCHED':>11}{'OF ALL':>9}")
    for variant in variants:
        with running_proxy(registry.host) as proxy:
            proxy.delay(ROUND_TRIP)
            proxy.throttle(RATE, shared=True)
            print(_work_elsewhere(proxy, work, variant, size), flush=True)
    _push(registry, work, _successor(first), NEXT)
    print(f"\n{'second tag':<28}{'FETCHED':>11}{'OF ALL':>9}")
    for kind in ("estargz", "zstd:chunked"):
        print(_second_tag(registry, work, kind), flush=True)


# --- node A ------------------------------------------------------------------------------------


def _publish(registry: Registry, work: Path, plain: str, unpacked: int) -> list[Variant]:
    """Indexes, traces and converts the image. Returns what others can mount then."""
    variants = [Variant("gzip", PLAIN), Variant("gzip + index", SOCI)]
    referrers = ("--trace-referrers",)
    variants.append(Variant("gzip + index + trace", SOCI, referrers))
    with work_directory(work) as base, running_daemon(base) as daemon:
        trace = base / "trace.json"
        daemon.run("pull", plain, timeout=600)
        index = _timed(unpacked, "index create", daemon, "index", "create", plain)
        made = [layer for layer in json.loads(index)["layers"] if layer["ztoc"]]
        blobs = sum(layer["size"] for layer in made)
        for kind, name in (("ztoc", "zTOC"), ("twin", "compressed zTOC")):
            size = sum(layer[kind]["size"] for layer in made)
            print(f"{name:<28}{size / 1e6:>8.2f} MB {size / blobs:>8.2%} of the blobs")
        soci = registry.reference(SOCI)
        _timed(0, "index push", daemon, "index", "push", plain, soci)
        command = ("--", "/usr/bin/python3", "-c", WORK)
        _timed(0, "trace record", daemon, "trace", "record", plain, "-o", trace, *command)
        for kind in ("estargz", "zstd:chunked"):
            for options in ((), ("--prefetch-from", trace)):
                name = f"big:{kind.replace(':', '-')}{'-traced' if options else ''}"
                target = registry.reference(name)
                arguments = ("convert", plain, target, "--format", kind, *options)
                label = f"{kind}{' + trace' if options else ''}"
                _timed(unpacked, f"convert: {label}", daemon, *arguments)
                variants.append(Variant(label, name))
        # Last: a trace that the registry has is found for whatever is mounted from it.
        daemon.run("pull", soci, timeout=600)
        _timed(0, "trace push", daemon, "trace", "push", soci, trace)
    return variants


def _timed(unpacked: int, task: str, daemon: Imgvol, *arguments: object) -> str:
    began = time.perf_counter()
    done = daemon.run(*arguments, *(("--json",) if "record" not in arguments else ()), timeout=900)
    took = time.perf_counter() - began
    rate = f"{unpacked / 1e6 / took:>8.0f} MB/s" if unpacked else ""
    print(f"{task:<28}{seconds(took)}{rate}", flush=True)
    return done.stdout


# --- node B ------------------------------------------------------------------------------------


def _work_elsewhere(proxy: Proxy, work: Path, variant: Variant, size: int) -> str:
    with work_directory(work) as base, running_daemon(base, *variant.serve) as daemon:
        target = daemon.target("mnt")
        began = time.perf_counter()
        daemon.run("mount", proxy.reference(variant.reference), target, timeout=900)
        mounted = time.perf_counter() - began
        worked = mounted + work_in(target)
        fetched = proxy.blob_bytes()
        daemon.run("unmount", target)
    return (
        f"{variant.name:<28}{seconds(mounted)}{seconds(worked)}{megabytes(fetched):>11}"
        f"{fetched / size:>9.1%}"
    )


def _second_tag(registry: Registry, work: Path, kind: str) -> str:
    """How much of the next image a node fetches that has all of this one."""
    names = [f"big:{name}-{kind.replace(':', '-')}" for name in ("first", "second")]
    with work_directory(work) as base, running_daemon(base) as maker:
        for source, name in zip((PLAIN, NEXT), names, strict=True):
            plain, target = registry.reference(source), registry.reference(name)
            maker.run("pull", plain, timeout=600)
            maker.run("convert", plain, target, "--format", kind, timeout=900)
    with (
        work_directory(work) as base,
        running_daemon(base) as daemon,
        running_proxy(registry.host) as proxy,
    ):
        daemon.run("pull", proxy.reference(names[0]), timeout=600)
        size = proxy.blob_bytes()
        seen = len(proxy.seen)
        daemon.run("mount", proxy.reference(names[1]), target := daemon.target("mnt"), timeout=600)
        run("sh", "-c", f"find {target} -type f -print0 | xargs -0 cat >/dev/null", timeout=600)
        fetched = proxy.blob_bytes(seen)
        daemon.run("unmount", target)
    return f"{kind:<28}{megabytes(fetched):>11}{fetched / size:>9.1%}"


# --- the images --------------------------------------------------------------------------------


def _image() -> Image:
    base = rootfs.read_image(rootfs.ensure_layout()).layers
    return Image([*base, Layer(packages_tar("packages", PACKAGES))]).recompressed("gzip")


def _successor(image: Image) -> Image:
    """The next version: one file in ten is another one, and no layer is the same."""
    layers = []
    for layer in image.layers:
        made = io.BytesIO()
        with (
            tarfile.open(fileobj=io.BytesIO(layer.tar)) as old,
            tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as new,
        ):
            for number, member in enumerate(old):
                file = old.extractfile(member) if member.isreg() else None
                if file is None:
                    new.addfile(member)
                    continue
                content = file.read()
                if number % 10 == 0:
                    content = bytes(byte ^ 1 for byte in content[:1]) + content[1:]
                    member.mtime += 1
                new.addfile(member, io.BytesIO(content))
        layers.append(Layer(made.getvalue()))
    return Image(layers).recompressed("gzip")


def _push(registry: Registry, work: Path, image: Image, name: str) -> str:
    reference = registry.reference(name)
    layout = write_layout(work / f"layout-{name.replace(':', '-')}", {"x": image})
    push(layout, "x", reference)
    return reference
