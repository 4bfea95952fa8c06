"""Lazy layers whose tables of contents leave out digests: refused unless the operator asks."""

import random

import pytest

from imgvol.layers.compression import Compression
from support import images
from support.daemon import running_daemon
from support.images import Image, push, write_layout
from support.programs import require_fuse, wait_until
from support.stargz import TIME, Stargz
from support.toc_blobs import compress

pytestmark = pytest.mark.servers

CHUNK = 50_000
# Neither compresses: what is made of the one is as long as what is made of the other.
CONTENT = random.Random(11).randbytes(40 * CHUNK)
OTHER = random.Random(12).randbytes(CHUNK)


@pytest.fixture
def made(request) -> Stargz:
    """A layer in eStargz with digests of whole files only, as its first makers wrote them."""
    entries = [
        images.file("large", CONTENT, mtime_ns=TIME),
        images.file("small", b"small", mtime_ns=TIME),
        images.file(request.node.name, b"makes it another blob", mtime_ns=TIME),
    ]
    made = Stargz(entries, chunk=CHUNK)
    for entry in made.body.entries:
        entry.pop("chunkDigest", None)
    return made


@pytest.fixture
def reference(registry, proxy, made, tmp_path, request) -> str:
    """An image of the layer in the registry."""
    name = f"bare/{request.node.name.lower()}:1"
    layout = write_layout(tmp_path / "layout", {"x": Image([made.layer()])})
    push(layout, "x", registry.reference(name))
    return proxy.reference(name)


@pytest.fixture
def trusting(short_path):
    """A daemon whose operator allows content without digests."""
    require_fuse()
    with running_daemon(short_path, "--missing-digests") as running:
        yield running


def layer_of(daemon) -> dict:
    (volume,) = daemon.json("ps")
    (layer,) = volume["layers"]
    return layer


def test_layer_is_pulled_whole_by_default(daemon, agent, reference):
    target = daemon.target("mnt")
    daemon.run("mount", reference, target)
    layer = layer_of(daemon)
    assert (layer["format"], layer["state"]) == ("tar", "complete")
    assert "a table of contents without digests" in layer["reason"]
    assert agent.ask_bytes("content", path=f"{target}/large") == CONTENT


def test_layer_is_lazy_when_asked_for_and_proven_at_the_end(trusting, agent, proxy, reference):
    line = proxy.throttle(200_000)
    target = trusting.target("mnt")
    trusting.run("mount", reference, target)
    assert layer_of(trusting)["format"] == "eStargz without digests"
    assert layer_of(trusting)["state"] == "lazy"
    assert agent.ask_bytes("content", path=f"{target}/small") == b"small"
    line.lift()
    wait_until(lambda: layer_of(trusting)["state"] == "complete", seconds=30, what="the proof")
    assert agent.ask_bytes("content", path=f"{target}/large") == CONTENT


def test_content_that_the_registry_has_changed_is_found_out(
    trusting, agent, registry, made, reference
):
    trusting.expected_log += ["is bad, its readers get errors", "read: "]
    # Sound in itself, with the table of contents that the manifest pins: only digests could tell.
    chunk = next(e for e in made.body.entries if e.get("chunkOffset") == 10 * CHUNK)
    span = compress(OTHER, Compression.GZIP)
    with open(registry.blob_path(made.layer().digest), "r+b") as blob:
        blob.seek(chunk["offset"])
        assert len(blob.read(len(span))) == len(span)
        blob.seek(chunk["offset"])
        blob.write(span)
    target = trusting.target("mnt")
    trusting.run("mount", reference, target)
    # This is what the operator has accepted.
    changed = CONTENT[: 10 * CHUNK] + OTHER + CONTENT[11 * CHUNK :]
    assert agent.ask_bytes("content", path=f"{target}/large") == changed
    wait_until(lambda: layer_of(trusting)["state"] == "bad", seconds=30, what="the lie to be found")
    assert "digest" in layer_of(trusting)["reason"]
    assert agent.errno_of("content", path=f"{target}/large") == "EIO"


def test_what_the_operator_no_longer_accepts_is_not_shown_again(trusting, agent, proxy, reference):
    proxy.throttle(200_000)
    target = trusting.target("mnt")
    trusting.run("mount", reference, target)
    assert layer_of(trusting)["state"] == "lazy"
    trusting.terminate()
    trusting.expected_log.append("no digests cover the content of a lazy layer")
    trusting.start("--no-missing-digests")
    assert trusting.json("ps") == []
    refused = trusting.run("mount", reference, target, check=False)
    assert refused.returncode != 0
    assert "Pull the image again" in refused.stderr
    trusting.run("pull", reference)
    trusting.run("mount", reference, target)
    assert (layer_of(trusting)["format"], layer_of(trusting)["state"]) == ("tar", "complete")
    assert agent.ask_bytes("content", path=f"{target}/large") == CONTENT
