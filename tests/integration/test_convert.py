"""`imgvol convert`: what it writes is the same image, for everybody, and can be mounted lazily."""

import hashlib
import io
import json
import random
import tarfile
import tempfile
from pathlib import Path
from urllib.request import ProxyHandler, Request, build_opener

import pytest

from imgvol.layers.compression import iter_decoded
from imgvol.layers.lazy import estargz
from imgvol.layers.lazy.locate import Format
from imgvol.oci.digest import Digest
from imgvol.sources.layout import REF_NAME
from imgvol.view.trace import Trace, TracedFile, TracedRange
from support.comparison import assert_same_tree
from support.daemon import running_daemon
from support.images import (
    Image,
    Layer,
    directory,
    file,
    hardlink,
    push,
    sha256,
    sparse,
    whiteout,
    write_layout,
)
from support.lazy import decompress, describe_lazy, describe_tar, open_lazy, rich_archive
from support.peers import require_peer
from support.programs import require, require_root, run, wait_until
from support.written import write_layer

pytestmark = pytest.mark.servers

FORMATS = ("estargz", "zstd:chunked")
# eStargz tells no fractions.
SECOND = 1_700_000_000 * 10**9


def read_layout(path):
    """Documents and blobs of a layout, by digest; and its index."""
    blobs = {f"sha256:{p.name}": p.read_bytes() for p in (path / "blobs/sha256").iterdir()}
    assert all(sha256(data) == digest for digest, data in blobs.items())
    return blobs, json.loads((path / "index.json").read_bytes())


@pytest.fixture(scope="module")
def source():
    """Two layers, two platforms; the upper layer is another on each."""
    lower = Layer(rich_archive(is_lowest=True), "gzip")
    images = []
    for architecture in ("amd64", "arm64"):
        upper = Layer(
            [
                directory("app", mtime_ns=SECOND),
                file("app/main", architecture.encode() * 1000, mode=0o755, mtime_ns=SECOND),
                hardlink("app/again", "app/main", mtime_ns=SECOND),
                whiteout("etc/old"),
                file("etc/motd", b"hello", mtime_ns=SECOND),
            ],
            "zstd",
        )
        config = {"Env": ["A=1"], "Labels": {"odd": "<&>"}}
        images.append(Image([lower, upper], architecture, config, {"org.example.kept": "yes"}))
    return images


@pytest.fixture(scope="module")
def reference(source, registry, tmp_path_factory):
    layout = write_layout(tmp_path_factory.mktemp("convert"), {"1": source})
    blobs, index = read_layout(layout)
    manifests = {m["digest"]: blobs[m["digest"]] for m in index["manifests"]}
    for entry in index["manifests"]:
        entry.pop("annotations")
    attestation = Image([Layer([file("statement")], "none")], "unknown")
    raw = attestation.manifest_bytes()
    blobs |= {sha256(data): data for data in (attestation.config_bytes(), raw)}
    blobs[attestation.layers[0].digest] = attestation.layers[0].blob
    manifests[sha256(raw)] = raw
    unknown = {"os": "unknown", "architecture": "unknown"}
    described = {"digest": sha256(raw), "size": len(raw), "platform": unknown}
    index["manifests"].append({**index["manifests"][0], **described})
    index["annotations"] = {"org.example.index": "kept"}
    for digest, blob in blobs.items():
        if digest not in manifests:
            registry.put_blob("convert/source", blob)
    for digest, raw in manifests.items():
        registry.put_manifest("convert/source", digest, raw, json.loads(raw)["mediaType"])
    raw = json.dumps(index).encode()
    registry.put_manifest("convert/source", "1", raw, index["mediaType"])
    return registry.reference("convert/source:1")


@pytest.mark.parametrize("format_", FORMATS)
def test_an_image_becomes_lazy_for_all_platforms(daemon, reference, source, tmp_path, format_):
    target = tmp_path / "out"
    report = daemon.json("convert", reference, f"oci:{target}:lazy", "--format", format_)
    blobs, index = read_layout(target)
    assert report["digest"] == index["manifests"][0]["digest"]
    top = json.loads(blobs[report["digest"]])
    assert top["annotations"] == {"org.example.index": "kept"}
    assert [m["platform"]["architecture"] for m in top["manifests"]] == ["amd64", "arm64"]
    assert len(report["left_out"]) == 1
    for entry, image in zip(top["manifests"], source, strict=True):
        manifest = json.loads(blobs[entry["digest"]])
        config = json.loads(blobs[manifest["config"]["digest"]])
        assert manifest["annotations"] == {"org.example.kept": "yes"}
        assert config["config"] == image.config
        diff_ids = config["rootfs"]["diff_ids"]
        for layer, diff_id, before in zip(manifest["layers"], diff_ids, image.layers, strict=True):
            blob = blobs[layer["digest"]]
            tar = decompress(blob)
            assert sha256(tar) == diff_id
            lazy = describe_lazy(open_lazy(blob, layer["annotations"]), blob)
            assert lazy == describe_tar(tar)
            if format_ == "zstd:chunked":
                assert tar == before.tar
    again = tmp_path / "again"
    second = daemon.json("convert", reference, f"oci:{again}:lazy", "--format", format_)
    assert second["digest"] == report["digest"]


# --- who reads it -------------------------------------------------------------------------------

# Directories that no layer describes.
UNTIMED = (
    ".",
    "usr",
    "usr/lib",
    "dev",
    "gone",
    "fresh",
    "absent",
    "absent/parents",
    "absent/parents/of",
)
UNTIMED += ("absent/parents/of/a", "weird", "weird/" + "x" * 200, "etc")
CRAWL = 20_000
WINDOW = 4 << 20
NOISE = random.Random(7)
WANTED = {f"late/{number}": NOISE.randbytes(60_000) for number in range(5)}
ENTRIES = [
    directory("usr"),
    *(file(f"usr/{number}", NOISE.randbytes(1_500_000)) for number in range(6)),
    directory("late", mode=0o750),
    *(file(name, content) for name, content in WANTED.items()),
    hardlink("late/link", "late/0"),
]


@pytest.fixture(scope="module")
def plain(registry, tmp_path_factory):
    """An image whose last files are wanted first, and its tar."""
    layer = Layer(ENTRIES, "gzip")
    where = tmp_path_factory.mktemp("plain")
    push(write_layout(where, {"1": Image([layer])}), "1", registry.reference("convert/plain:1"))
    return registry.reference("convert/plain:1"), layer


def trace_of(*files: tuple[str, int]) -> bytes:
    traced = tuple(
        TracedFile(name.encode(), size, number, (TracedRange(0, 1, number),))
        for number, (name, size) in enumerate(files)
    )
    return Trace(Digest.of(b"another image"), "linux/amd64", "", 1.0, traced).to_bytes()


@pytest.mark.parametrize("format_", FORMATS)
def test_traced_files_are_fetched_first(daemon, agent, plain, proxy, short_path, tmp_path, format_):
    reference, _ = plain
    trace = tmp_path / "trace.json"
    named = [(name, len(content)) for name, content in reversed(WANTED.items())]
    trace.write_bytes(trace_of(*named, ("late/gone", 5), ("usr/1", 7), ("usr", 9)))
    name = f"convert/first-{format_[:4]}:1"
    target = f"{reference.partition('/')[0]}/{name}"
    report = daemon.json(
        "convert", reference, target, "--format", format_, "--prefetch-from", trace
    )
    (image,) = report["images"]
    assert image["missing"] == 3
    assert image["layers"][0]["prioritized"] == 5
    daemon.terminate()

    other = short_path / "other"
    other.mkdir()
    with running_daemon(other) as second:
        held = proxy.throttle(CRAWL, at_least=WINDOW)
        mnt = second.target("mnt")
        before = len(proxy.seen)
        second.run("mount", proxy.reference(name), mnt)
        wait_until(lambda: held.fired, what="the background to begin")
        # The files of the trace were the first thing that it has asked for.
        asked = [e.range for e in proxy.ranges(since=before)]
        size = sum(map(len, WANTED.values()))
        data = [(a, b) for a, b in asked if a < size]
        assert data[0][0] < 2000
        assert size <= data[0][1] - data[0][0] < size * 1.1
        count = len(proxy.ranges())
        for path, content in WANTED.items():
            assert agent.ask_bytes("content", path=f"{mnt}/{path}") == content
        assert len(proxy.ranges()) == count
        held.lift()
        assert agent.ask("digest", path=f"{mnt}/usr/3") == sha256_hex(ENTRIES[4].content)
        status = agent.ask("stat", path=f"{mnt}/late")
        assert status["st_mode"] & 0o7777 == 0o750
    daemon.start()


def sha256_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("format_", FORMATS)
def test_others_unpack_what_the_original_is(daemon, reference, registry, short_path, format_):
    require("skopeo", "umoci")
    require_root()
    name = registry.reference(f"convert/others-{format_[:4]}:lazy")
    report = daemon.json(
        "convert", reference, name, "--format", format_, "--platform", "linux/amd64"
    )
    assert report["name"] == name
    expected = unpacked(reference, short_path / "before")
    found = unpacked(name, short_path / "after")
    for own in (".no.prefetch.landmark", "stargz.index.json"):
        (found / own).unlink(missing_ok=True)
    assert_same_tree(found, expected, untimed=UNTIMED)
    # And so does whoever mounts it.
    original, target = daemon.target("original"), daemon.target("mnt")
    daemon.run("mount", "--platform", "linux/amd64", reference, original)
    daemon.run("mount", name, target)
    assert_same_tree(target, original)


def unpacked(reference: str, where: Path) -> Path:
    """What umoci makes of an image that skopeo has copied, uncompressed on the way."""
    tree = where.with_name(where.name + "-tree")
    run(
        *("skopeo", "--insecure-policy", "--override-arch=amd64", "copy", "--quiet"),
        *("--src-tls-verify=false", "--dest-decompress"),
        *(f"docker://{reference}", f"dir:{where}"),
    )
    manifest = json.loads((where / "manifest.json").read_bytes())
    layers = [
        Layer(decompress_any((where / layer["digest"].partition(":")[2]).read_bytes()), "none")
        for layer in manifest["layers"]
    ]
    layout = write_layout(where.with_name(where.name + "-layout"), {"x": Image(layers)})
    run("umoci", "raw", "unpack", "--image", f"{layout}:x", tree, timeout=300)
    return tree


def decompress_any(data: bytes) -> bytes:
    return b"".join(iter_decoded([data]))


def test_podman_pulls_it_as_any_other(daemon, plain, registry, short_path):
    require("podman")
    for format_ in FORMATS:
        name = registry.reference(f"convert/podman-{format_[:4]}:1")
        daemon.run("convert", plain[0], name, "--format", format_)
        with tempfile.TemporaryDirectory(prefix="podman-", dir="/tmp") as store:
            podman = ["podman", "--root", f"{store}/root", "--runroot", f"{store}/run"]
            podman += ["--storage-driver", "vfs"]
            pulled = run(*podman, "pull", "--quiet", "--tls-verify=false", name, check=False)
            if pulled.returncode and "sparse" not in pulled.stderr:
                pytest.skip(f"podman cannot pull here: {pulled.stderr.strip()[-200:]}")
            saved = Path(store) / "saved"
            run(*podman, "save", "--quiet", "--format", "oci-dir", "-o", saved, name)
            blobs, index = read_layout(saved)
            (layer,) = json.loads(blobs[index["manifests"][0]["digest"]])["layers"]
            inner = io.BytesIO(decompress_any(blobs[layer["digest"]]))
            with tarfile.open(fileobj=inner) as tar:
                contents = {m.name: tar.extractfile(m).read() for m in tar if m.isreg()}
            for entry in ENTRIES:
                if entry.content:
                    assert contents[entry.name] == entry.content


def test_the_reference_reader_verifies_every_chunk(tmp_path):
    peer = require_peer("estargz")
    # It takes no hard link to what another layer has.
    archive = rich_archive(is_lowest=True)
    options = [{}, {"prioritized": [b"usr/lib/holes", b"etc/harder"], "chunk_size": 1 << 16}]
    for number, option in enumerate(options):
        written = write_layer(archive, Format.ESTARGZ, **option)
        blob = tmp_path / f"{number}.blob"
        blob.write_bytes(written.blob)
        toc = written.annotations[estargz.TOC_DIGEST]
        found = json.loads(run(peer, "-verify", toc, blob).stdout)
        with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
            for member in opened:
                name = member.name.removeprefix("./")
                if member.isreg():
                    assert found[name] == sha256_hex(opened.extractfile(member).read())
        half = len(written.blob) // 2
        blob.write_bytes(written.blob[:half] + bytes(10) + written.blob[half + 10 :])
        assert run(peer, "-verify", toc, blob, check=False).returncode != 0


# --- what is refused ----------------------------------------------------------------------------


def refused(daemon, *arguments) -> str:
    done = daemon.run("convert", *arguments, check=False)
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr


def test_each_mistake_has_its_own_error(daemon, plain, registry, tmp_path):
    reference, _ = plain
    out = f"oci:{tmp_path}/out"
    digest = f"{registry.host}/x@sha256:{'0' * 64}"
    assert "cannot be a digest" in refused(daemon, reference, digest, "--format", "estargz")
    assert "archive" in refused(daemon, reference, "oci-archive:/x.tar", "--format", "estargz")
    assert daemon.run("convert", reference, out, "--format", "x", check=False).returncode == 2
    wrong = ("--format", "estargz", "--chunk-size", "1K")
    assert "chunks is out of range" in refused(daemon, reference, out, *wrong)
    assert "not a size" in refused(daemon, reference, out, *wrong[:3], "big")
    level = ("--format", "estargz", "--level", "12")
    assert "From 1 to 9" in refused(daemon, reference, out, *level)
    missing = registry.reference("convert/nothing:1")
    assert "convert/nothing" in refused(daemon, missing, out, "--format", "estargz")
    no_trace = ("--format", "estargz", "--prefetch-from")
    assert "no such trace" in refused(daemon, reference, out, *no_trace, "/no/such/file")
    assert "no trace is kept" in refused(daemon, reference, out, *no_trace, "alpine:3.20")
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    assert refused(daemon, reference, out, *no_trace, bad)
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "thing").touch()
    assert "no OCI layout" in refused(daemon, reference, f"oci:{occupied}", *no_trace[:2])
    assert [path.name for path in occupied.iterdir()] == ["thing"]
    assert not (tmp_path / "out").exists()
    assert list((daemon.root / "ingest").iterdir()) == []


def test_a_converted_image_is_not_converted_again(daemon, plain, registry, tmp_path):
    reference, layer = plain
    first = registry.reference("convert/twice:1")
    report = daemon.json("convert", reference, first, "--format", "estargz")
    assert "nothing to convert" in refused(
        daemon, first, f"oci:{tmp_path}/x", "--format", "estargz"
    )
    # Beside a layer that is converted, another one is taken over as it is.
    upper = Layer([file("upper", b"x" * 1000)], "gzip")
    manifest = json.loads(Image([layer, upper]).manifest_bytes())
    after = report["images"][0]["layers"][0]["after"]
    lower = registry.blob_path(after["digest"]).read_bytes()
    tar = decompress(lower)
    config = Image([Layer(tar, "none"), upper]).config_bytes()
    written = json.loads(Image([Layer(tar, "none"), upper]).manifest_bytes())
    manifest["config"] = written["config"]
    annotations = {estargz.TOC_DIGEST: toc_digest(registry, "convert/twice", "1")}
    manifest["layers"][0] = {
        "mediaType": after["media_type"],
        "digest": after["digest"],
        "size": after["size"],
        "annotations": annotations,
    }
    raw = json.dumps(manifest).encode()
    registry.put("convert/mixed", {"1": raw}, [lower, upper.blob, config])
    out = tmp_path / "mixed"
    mixed = daemon.json(
        "convert", registry.reference("convert/mixed:1"), f"oci:{out}", "--format", "estargz"
    )
    reasons = [one["reason"] for one in mixed["images"][0]["layers"]]
    assert reasons == ["eStargz already", ""]
    blobs, _ = read_layout(out)
    assert blobs[after["digest"]] == lower


def toc_digest(registry, repository: str, tag: str) -> str:
    url = f"http://{registry.host}/v2/{repository}/manifests/{tag}"
    accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
    with build_opener(ProxyHandler({})).open(Request(url, headers=accept), timeout=20) as answer:
        manifest = json.load(answer)
    return manifest["layers"][0]["annotations"][estargz.TOC_DIGEST]


@pytest.mark.expects_log("stored layer has changed")
def test_a_layer_that_was_damaged_is_noticed_and_nothing_is_written(daemon, plain, tmp_path):
    reference, layer = plain
    daemon.run("pull", reference)
    hex_ = layer.digest.partition(":")[2]
    data = daemon.root / "layers" / hex_ / "files" / "0"
    with data.open("r+b") as opened:
        opened.seek(100_000)
        opened.write(b"damaged")
    out = tmp_path / "out"
    assert "has changed" in refused(daemon, reference, f"oci:{out}", "--format", "estargz")
    assert not out.exists()
    assert list((daemon.root / "ingest").iterdir()) == []


def test_a_layer_that_no_table_of_contents_can_tell_stays_plain(daemon, agent, registry, tmp_path):
    hole = Layer([sparse("hole", 10_000, [(0, b"x"), (5000, b"y")])], "gzip")
    usual = Layer([file("usual", b"u" * 100_000)], "gzip")
    where = write_layout(tmp_path / "source", {"1": Image([usual, hole])})
    push(where, "1", registry.reference("convert/hole:1"))
    # While only a layout is known nobody has its blob any more; a registry has.
    sources = {f"oci:{where}:1": hole.diff_id, registry.reference("convert/hole:1"): hole.digest}
    for number, (source, digest) in enumerate(sources.items()):
        for format_ in FORMATS:
            target = registry.reference(f"convert/hole-{number}-{format_.partition(':')[0]}:1")
            report = daemon.json("convert", source, target, "--format", format_)
            first, second = report["images"][0]["layers"]
            assert first["reason"] == ""
            assert "sparse" in second["reason"]
            assert second["after"]["digest"] == digest
            mount = daemon.target(f"hole{number}{format_[0]}")
            daemon.run("mount", target, mount)
            wanted = {"hole": (b"x".ljust(5000, b"\0") + b"y").ljust(10_000, b"\0")}
            for name, content in {**wanted, "usual": b"u" * 100_000}.items():
                assert sha256(content) == f"sha256:{agent.ask('digest', path=f'{mount}/{name}')}"
            daemon.run("unmount", mount)


def test_an_artifact_and_a_sparse_file_are_refused(daemon, registry, tmp_path):
    layer = Layer([sparse("hole", 10_000, [(0, b"x"), (5000, b"y")])], "gzip")
    where = write_layout(tmp_path / "source", {"1": Image([layer])})
    told = refused(daemon, f"oci:{where}:1", f"oci:{tmp_path}/out", "--format", "estargz")
    assert "sparse" in told
    assert "hole" in told
    assert not (tmp_path / "out").exists()


def test_a_layout_keeps_its_other_images(daemon, plain, tmp_path):
    reference, _ = plain
    out = tmp_path / "out"
    for tag, format_ in (("a", "estargz"), ("b", "zstd:chunked"), ("a", "zstd:chunked")):
        daemon.run("convert", reference, f"oci:{out}:{tag}", "--format", format_)
    _, index = read_layout(out)
    names = {m["annotations"][REF_NAME]: m["digest"] for m in index["manifests"]}
    assert len(index["manifests"]) == 2
    assert names["a"] == names["b"]
    # An ID means what is here, and nothing else.
    image = daemon.json("inspect", reference)["image"]
    daemon.run("convert", image["id"], f"oci:{out}:c", "--format", "zstd:chunked")
    _, index = read_layout(out)
    assert {m["digest"] for m in index["manifests"]} == {names["a"]}
