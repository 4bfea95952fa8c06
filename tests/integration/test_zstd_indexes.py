"""`imgvol index` of zstd layers as real tools make them: node A indexes, node B reads lazily."""

import json
import random
import subprocess
import tempfile
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from imgvol.layers.lazy import zstd_frames
from support import guards, images
from support.daemon import running_daemon
from support.frames import cut, frame, skippable
from support.images import Entry, Image, Layer, push, sha256, tar_bytes, write_layout
from support.lazy import decompress
from support.lazy_images import LazyImage
from support.peers import require_peer
from support.programs import require, require_fuse, wait_until

pytestmark = pytest.mark.servers

OPTIONS = ("--min-layer-size", "50K", "--span-size", "512K")
ONE_FRAME = "one zstd frame: can only be read from its beginning; convert it"
FIXTURE = Path(__file__).parents[1] / "fixtures" / "lazy" / "seekable.blob"


def packed(tar: bytes, *command: str) -> bytes:
    require(command[0])
    done = subprocess.run(command, input=tar, capture_output=True, check=True, timeout=60)
    return done.stdout


def by_pzstd(tar: bytes) -> bytes:
    """Frames of 2 MiB, and before each a skippable one."""
    return packed(tar, "pzstd", "-q", "-1", "-p", "4", "-c")


def by_zstd(tar: bytes) -> bytes:
    """As `for part in ...; do zstd -c $part; done` has it."""
    parts = (packed(part, "zstd", "-q", "-3", "--check", "-c") for part in cut(tar, 400_000))
    return b"".join(parts)


def layer_of(tar: bytes, blob: bytes) -> Layer:
    layer = Layer(b"", "zstd")
    layer.tar, layer.blob = tar, blob
    layer.diff_id, layer.digest, layer.size = sha256(tar), sha256(blob), len(blob)
    assert decompress(blob) == tar
    return layer


def entries_of(name: str, count: int) -> list[Entry]:
    """Files of a third of a megabyte that do not compress, and small ones between them."""
    noise = random.Random(name)
    found = [images.directory(name)]
    for number in range(count):
        found.append(images.file(f"{name}/small{number}", noise.randbytes(2000)))
        found.append(images.file(f"{name}/large{number}", noise.randbytes(350_000)))
    return found


@dataclass
class Zstd:
    """An image with a layer of gzip and layers of zstd, in the registry."""

    name: str
    reference: str
    image: Image
    files: dict[str, bytes]
    pzstd: Layer
    zstd: Layer

    @property
    def size(self) -> int:
        return sum(layer.size for layer in self.image.layers)


@pytest.fixture(scope="module")
def made(registry, tmp_path_factory) -> Zstd:
    contents = {
        "gzip": entries_of("gzip", 6),
        "pzstd": entries_of("pzstd", 25),
        "zstd": entries_of("zstd", 12),
        "one": entries_of("one", 1),
    }
    tars = {name: tar_bytes(entries) for name, entries in contents.items()}
    pzstd = layer_of(tars["pzstd"], by_pzstd(tars["pzstd"]))
    zstd = layer_of(tars["zstd"], by_zstd(tars["zstd"]))
    one = layer_of(tars["one"], packed(tars["one"], "zstd", "-q", "-c"))
    seekable = layer_of(decompress(FIXTURE.read_bytes()), FIXTURE.read_bytes())
    image = Image([Layer(contents["gzip"], "gzip"), pzstd, zstd, one, seekable])
    layout = write_layout(tmp_path_factory.mktemp("zstd") / "layout", {"x": image})
    reference = registry.reference("zstd/frames:1")
    push(layout, "x", reference)
    files = {
        entry.name: entry.content
        for entries in contents.values()
        for entry in entries
        if entry.type == b"0"
    }
    return Zstd("zstd/frames", reference, image, files, pzstd, zstd)


@contextmanager
def node(short_path, name: str, *options: str):
    """A daemon with an empty store."""
    require_fuse()
    base = short_path / name
    base.mkdir()
    with running_daemon(base, *options) as running:
        guards.shared_processes.discard(running.process.pid)
        yield running


def document(registry, path: str) -> dict:
    kinds = ("manifest", "index")
    accepted = ", ".join(f"application/vnd.oci.image.{kind}.v1+json" for kind in kinds)
    request = urllib.request.Request(
        f"http://{registry.host}/v2/{path}", headers={"Accept": accepted}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.loads(answer.read())


def complete(daemon, name: str, layer: Layer) -> bool:
    return LazyImage(name, layer, {}).is_complete(daemon)


def check_read_lazily(daemon, agent, proxy, reference: str, made: Zstd, formats: list[str]) -> None:
    """Reads a file of each large layer, having fetched little else; then all, and it is proven."""
    crawl = proxy.throttle(400_000)
    target = daemon.target("mnt")
    daemon.run("mount", reference, target)
    (volume,) = daemon.json("ps")
    assert [layer["format"] for layer in volume["layers"]] == formats
    for layer in (made.pzstd, made.zstd):
        assert not complete(daemon, reference, layer)
        sent = sum(e.sent for e in proxy.seen if e.is_blob and layer.digest in e.path)
        assert sent < layer.size / 4
    for name in ("zstd/small11", "pzstd/small24"):
        assert agent.ask_bytes("content", path=f"{target}/{name}") == made.files[name]
    # What was read lies at the end of both, so it did not come by reading from the beginning.
    assert proxy.blob_bytes() < made.size * 3 / 4
    assert not complete(daemon, reference, made.pzstd)
    crawl.lift()
    for name, data in made.files.items():
        assert f"sha256:{agent.ask('digest', path=f'{target}/{name}')}" == sha256(data), name
    for layer in (made.pzstd, made.zstd):
        wait_until(
            lambda layer=layer: complete(daemon, reference, layer),
            seconds=30,
            what="the layer is complete",
        )
    (volume,) = daemon.json("ps")
    assert {layer["state"] for layer in volume["layers"]} == {"complete"}


def test_zstd_layers_are_read_from_the_middle_by_another_node(
    short_path, agent, proxy, registry, made
):
    with node(short_path, "a") as maker:
        index = maker.json("index", "create", made.reference, *OPTIONS)
        gzip, pzstd, zstd, one, seekable = index["layers"]
        assert (gzip["frames"], gzip["reason"]) == (None, "")
        assert gzip["ztoc"]
        # pzstd's frames are larger than a span, those of zstd are smaller.
        assert pzstd["spans"] == -(-len(made.pzstd.tar) // (2 << 20))
        assert zstd["spans"] == -(-len(made.zstd.tar) // 400_000)
        for layer in (pzstd, zstd):
            assert (layer["ztoc"], layer["twin"], layer["reason"]) == (None, None, "")
            assert layer["frames"]["size"] < layer["size"] / 200
        assert (one["frames"], one["spans"], one["reason"]) == (None, 0, ONE_FRAME)
        assert seekable["reason"].startswith("small")
        assert maker.json("index", "ls") == [index]
        shown = maker.run("index", "ls", made.reference).stdout
        assert "one zstd frame: can only be read" in shown
        assert shown.count("%") == 3
        assert "3/5" in maker.run("index", "ls").stdout
        target = made.reference.replace(":1", ":lazy")
        pushed = maker.json("index", "push", made.reference, target)
        assert pushed["name"] == target
        again = maker.json("index", "create", made.reference, *OPTIONS)
        assert again["layers"] == index["layers"]
        maker.run("index", "rm", made.reference)
        assert not list((maker.root / "blobs" / "sha256").iterdir())
    soci = document(registry, f"{made.name}/manifests/lazy")["manifests"][1]
    items = document(registry, f"{made.name}/manifests/{soci['digest']}")["layers"]
    found = [item["digest"] for item in items if item["mediaType"] == zstd_frames.MEDIA_TYPE]
    assert found == [pzstd["frames"]["digest"], zstd["frames"]["digest"]]
    with node(short_path, "b") as reader:
        formats = ["SOCI", "SOCI (zstd)", "SOCI (zstd)", "tar", "tar"]
        reference = proxy.reference(f"{made.name}:lazy")
        check_read_lazily(reader, agent, proxy, reference, made, formats)


def test_an_index_that_refers_to_the_image_has_zstd_layers_too(short_path, agent, proxy, made):
    with node(short_path, "a") as maker:
        # The seekable one, too.
        options = ("--min-layer-size", "0", "--span-size", "64K")
        index = maker.json("index", "create", made.reference, *options)
        assert index["layers"][4]["spans"] == 1
        assert index["layers"][4]["frames"]
        maker.run("index", "push", made.reference, "--v1")
    with node(short_path, "b", "--soci-referrers") as reader:
        formats = ["SOCI v1", *["SOCI v1 (zstd)"] * 2, "tar", "SOCI v1 (zstd)"]
        reference = proxy.reference(f"{made.name}:1")
        check_read_lazily(reader, agent, proxy, reference, made, formats)


def test_only_zstd_is_an_index_too_and_survives_a_restart(short_path, agent, proxy, registry):
    entries = entries_of("alone", 6)
    contents = {entry.name: entry.content for entry in entries}
    tar = tar_bytes(entries)
    # What lies between the frames is too long to be in a span: only the proof needs it.
    gap = skippable(bytes(100_000))
    blob = gap.join([b"", *(frame(part, has_size=False) for part in cut(tar, 200_000)), b""])
    layer = layer_of(tar, blob)
    with tempfile.TemporaryDirectory() as directory:
        layout = write_layout(Path(directory) / "layout", {"x": Image([layer])})
        push(layout, "x", registry.reference("zstd/alone:1"))
    with node(short_path, "a") as maker:
        reference = registry.reference("zstd/alone:1")
        made = maker.json("index", "create", reference, *OPTIONS)
        maker.terminate()
        maker.start()
        assert maker.json("index", "ls") == [made]
        maker.run("index", "push", reference, registry.reference("zstd/alone:lazy"))
    with node(short_path, "b") as reader:
        proxy.throttle(500_000)
        target = reader.target("mnt")
        reader.run("mount", proxy.reference("zstd/alone:lazy"), target)
        assert len(agent.ask("list", path=f"{target}/alone")) == 12
        reader.run("unmount", target)
        reader.terminate()
        # Of the image nothing is asked for again: the table that was stored serves on.
        reader.start()
        reader.run("mount", proxy.reference("zstd/alone:lazy"), target)
        (volume,) = reader.json("ps")
        assert [each["format"] for each in volume["layers"]] == ["SOCI (zstd)"]
        for name in ("alone/small5", "alone/large0"):
            digest = agent.ask("digest", path=f"{target}/{name}")
            assert f"sha256:{digest}" == sha256(contents[name])
        wait_until(
            lambda: complete(reader, "zstd/alone:lazy", layer),
            seconds=30,
            what="the layer is complete",
        )


@pytest.mark.fault("F98")
def test_a_damaged_document_makes_its_layer_an_ordinary_one(
    short_path, agent, proxy, registry, made
):
    with node(short_path, "a") as maker:
        options = ("--min-layer-size", "50K", "--span-size", "300K")
        index = maker.json("index", "create", made.reference, *options)
        maker.run("index", "push", made.reference, made.reference.replace(":1", ":damaged"))
    digest = index["layers"][2]["frames"]["digest"]
    path = registry.blob_path(digest)
    whole = path.read_bytes()
    path.write_bytes(whole[:90] + b"\xff" * 8 + whole[98:])
    with node(short_path, "b") as reader:
        target = reader.target("mnt")
        reader.run("mount", proxy.reference(f"{made.name}:damaged"), target)
        (volume,) = reader.json("ps")
        found = [layer["format"] for layer in volume["layers"]]
        assert found == ["SOCI", "SOCI (zstd)", "tar", "tar", "tar"]
        assert f"layer {made.zstd.digest} is not read lazily" in reader.log.read_text()
        got = agent.ask_bytes("content", path=f"{target}/zstd/small11")
        assert got == made.files["zstd/small11"]


@pytest.mark.fault("F98")
def test_a_blob_that_is_not_what_the_manifest_says_leaves_nothing(short_path, registry, made):
    path = registry.blob_path(made.zstd.digest)
    whole = path.read_bytes()
    with node(short_path, "a") as maker:
        try:
            path.write_bytes(whole[:-9] + bytes(9))
            done = maker.run("index", "create", made.reference, *OPTIONS, check=False)
        finally:
            path.write_bytes(whole)
        assert done.returncode == 1
        assert maker.json("index", "ls") == []
        blobs = maker.root / "blobs" / "sha256"
        assert not blobs.exists() or not list(blobs.iterdir())
        assert not list((maker.root / "ingest").iterdir())


def test_the_reference_reads_the_gzip_layers_of_such_an_index(short_path, registry, made, tmp_path):
    program = require_peer("ztoc")
    with node(short_path, "a") as maker:
        maker.run("index", "create", made.reference, *OPTIONS)
        target = made.reference.replace(":1", ":peer")
        maker.run("index", "push", made.reference, target)
    soci = document(registry, f"{made.name}/manifests/peer")["manifests"][1]
    items = document(registry, f"{made.name}/manifests/{soci['digest']}")["layers"]
    # As soci-snapshotter chooses: by media type and by its own annotation.
    theirs = [
        item
        for item in items
        if item["mediaType"] == "application/octet-stream"
        or "com.amazon.soci.image-layer-digest" in item["annotations"]
    ]
    lower = made.image.layers[0]
    (ztoc,) = theirs
    assert ztoc["annotations"]["com.amazon.soci.image-layer-digest"] == lower.digest
    (tmp_path / "blob").write_bytes(lower.blob)
    read = registry.blob_path(ztoc["digest"])
    command = [program, "-read", read, "-every=1", tmp_path / "blob"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    members = {m["Name"]: m.get("Content") for m in json.loads(done.stdout)["Members"]}
    assert len(members) == 13
    assert len({content for content in members.values() if content}) == 12


def test_a_layer_of_one_large_frame_is_told_before_it_has_been_read(short_path, tmp_path):
    """The helper answers while the source still has something to say."""
    tar = tar_bytes([images.file("large", random.Random(8).randbytes(90_000_000))])
    large = layer_of(tar, packed(tar, "zstd", "-q", "-1", "-c"))
    other = Layer(entries_of("other", 1), "gzip")
    layout = write_layout(tmp_path / "layout", {"x": Image([large, other])})
    with node(short_path, "a") as maker:
        made = maker.json("index", "create", f"oci:{layout}:x", *OPTIONS)
        first, second = made["layers"]
        assert first["reason"].startswith("a zstd frame of more than 64 MiB: can only be read")
        assert (first["frames"], first["spans"]) == (None, 0)
        assert second["ztoc"]
        assert not list((maker.root / "ingest").iterdir())
