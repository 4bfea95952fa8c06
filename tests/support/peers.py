"""Other people's code: the programs of tests/peers, and podman, which make lazy layers."""

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from support import guards
from support.programs import require, run, stop


@dataclass(frozen=True)
class PeerLayer:
    """A layer as a registry would have it: the blob, and what its descriptor says of it.

    Attributes:
        toc: The layer of another image with its table of contents, if that is where it is.
    """

    blob: bytes
    annotations: dict[str, str]
    toc: bytes | None = None


def require_peer(name: str) -> Path:
    """The program that scripts/setup-peers makes of tests/peers/<name>; skips without it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    program = cache / "imgvol-peers" / name
    if not program.exists():
        pytest.skip(f"the peer {name} is not built (scripts/setup-peers builds it, with Go)")
    return program


def stargz_layer(directory: Path, archive: bytes, *flags: str) -> PeerLayer:
    """What stargz-snapshotter's library makes of a tar; flags as tests/peers/estargz has them."""
    program = require_peer("estargz")
    source, output = directory / "source.tar", directory / "blob"
    source.write_bytes(archive)
    report = json.loads(run(program, *flags, source, output).stdout)
    return PeerLayer(output.read_bytes(), report["annotations"])


def external_stargz_layer(directory: Path, archive: bytes, *flags: str) -> PeerLayer:
    """The same with the table of contents in another image."""
    toc = directory / "toc"
    layer = stargz_layer(directory, archive, "-format=external", f"-toc={toc}", *flags)
    return replace(layer, toc=toc.read_bytes())


def podman_layer(directory: Path, archive: bytes) -> PeerLayer:
    """The zstd:chunked layer that podman pushes for a tar."""
    require("podman")
    source, layout = directory / "source.tar", directory / "layout"
    source.write_bytes(archive)
    # A store of its own: podman would re-use a blob that it remembers, in whatever compression.
    # And one of a short name, for podman's own runroot may have no more than 50 characters.
    with tempfile.TemporaryDirectory(prefix="podman-", dir="/tmp") as store:
        podman = ["podman", "--root", f"{store}/root", "--runroot", f"{store}/run"]
        podman += ["--storage-driver", "vfs"]
        name = "localhost/layer:1"
        imported = run(*podman, "import", "--quiet", source, name, check=False)
        if imported.returncode != 0:
            pytest.skip(f"podman cannot import an image here: {imported.stderr.strip()[-200:]}")
        compression = ("--compression-format", "zstd:chunked", "--format", "oci")
        run(*podman, "push", "--quiet", *compression, name, f"oci:{layout}:1")
    blobs = layout / "blobs" / "sha256"

    def read(descriptor: dict) -> bytes:
        return (blobs / descriptor["digest"].removeprefix("sha256:")).read_bytes()

    index = json.loads((layout / "index.json").read_bytes())
    (layer,) = json.loads(read(index["manifests"][0]))["layers"]
    return PeerLayer(read(layer), layer.get("annotations", {}))


@contextlib.contextmanager
def running_registry_peer() -> Iterator[str]:
    """go-containerregistry's registry, in memory, with the API for referrers; gives its address."""
    program = require_peer("registry")
    process = subprocess.Popen(
        [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    guards.shared_processes.add(process.pid)
    try:
        yield process.stdout.readline().decode().strip()
    finally:
        process.stdin.close()
        process.stdout.close()
        stop(process)
        guards.shared_processes.discard(process.pid)
