"""Bad input of every kind: a clear error, a non-zero exit, nothing left, a daemon that goes on."""

import bz2
import contextlib
import http.server
import json
import os
import re
import signal
import subprocess
import threading
import time
import zlib

import pytest
import zstandard

from support.agent import Agent
from support.edge_cases import MIB, content
from support.images import (
    Image,
    Layer,
    directory,
    file,
    push,
    sha256,
    tar_bytes,
    to_json,
    write_layout,
)
from support.programs import free_port, run

pytestmark = pytest.mark.fuse

GOOD = Image([Layer([directory("etc"), file("etc/motd", b"hello")])])
BASE = Layer([file("base", content(300_000))])


def assert_refused(daemon, done, pattern):
    """One error for people, nothing mounted or stored, and the daemon still answers."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(pattern, done.stderr, re.IGNORECASE), done.stderr
    assert done.stderr.startswith("imgvol: "), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert daemon.json("ps") == []
    assert_store_empty(daemon)


def assert_store_empty(daemon):
    assert daemon.json("images") == []
    left = [
        os.path.join(parent, name)
        for kind in ("layers", "blobs", "ingest", "files")
        for parent, _, names in os.walk(daemon.root / kind)
        for name in names
    ]
    assert left == []


# --- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "pattern"),
    [
        ("UPPER/Case", r"lower ?case|reference"),
        ("", r"reference|empty"),
        ("name:bad tag", r"tag|reference"),
        ("name@sha256:1234", r"digest|reference"),
        ("oci:/no/such/layout", r"no such|not found|does not exist|there is no"),
        ("docker-archive:/no/such/file", r"no such|not found|does not exist|there is no"),
        ("oci:", r"path|layout"),
    ],
)
def test_malformed_or_absent_image(daemon, image, pattern):
    done = daemon.run("mount", image, daemon.target("t"), check=False)
    assert_refused(daemon, done, pattern)


@pytest.mark.servers
def test_unknown_image(daemon, registry):
    reference = registry.reference("nobody/pushed:this")
    done = daemon.run("mount", reference, daemon.target("t"), check=False)
    assert_refused(daemon, done, r"not found|no such|unknown|there is no")


def test_unknown_tag_of_a_layout(daemon, tmp_path):
    layout = write_layout(tmp_path, {"v1": GOOD})
    done = daemon.run("mount", f"oci:{layout}:v2", daemon.target("t"), check=False)
    assert_refused(daemon, done, r"v2")


def test_wrong_platform(daemon, tmp_path):
    variants = [Image(GOOD.layers, architecture=name) for name in ("s390x", "riscv64")]
    layout = write_layout(tmp_path, {"v1": variants})
    arguments = ["--platform", "linux/arm64", f"oci:{layout}:v1", daemon.target("t")]
    assert_refused(daemon, daemon.run("mount", *arguments, check=False), r"platform")


def test_malformed_platform(daemon, tmp_path):
    layout = write_layout(tmp_path, {"v1": GOOD})
    arguments = ["--platform", "linux/a/b/c/d", f"oci:{layout}:v1", daemon.target("t")]
    assert_refused(daemon, daemon.run("mount", *arguments, check=False), r"platform")


# --- contents -------------------------------------------------------------------------------------


def altered(layer, **changes):
    for name, value in changes.items():
        setattr(layer, name, value)
    return layer


def flipped(data, position):
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def truncated_blob():
    layer = Layer([file("x", content(500_000))])
    return altered(layer, blob=layer.blob[:-1000])


def wrong_digest():
    layer = Layer([file("x", content(500_000))], "none")
    return altered(layer, blob=flipped(layer.blob, 300_000))


def longer_than_said():
    layer = Layer([file("x", content(500_000))], "none")
    return altered(layer, blob=layer.blob + bytes(512))


def wrong_diff_id():
    return altered(Layer([file("x", b"x")]), diff_id=sha256(b"something else"))


def bad_checksum():
    return Layer(flipped(tar_bytes([file("a", b"1"), file("b", b"2")]), 1024 + 10))


def cut_tar():
    return Layer(tar_bytes([file("x", content(100_000))])[:50_000])


def cut_gzip():
    layer = Layer([file("x", content(500_000))])
    blob = layer.blob[:-4000]
    return altered(layer, blob=blob, digest=sha256(blob), size=len(blob))


def rubbish_after_gzip():
    layer = Layer([file("x", content(5000))])
    blob = layer.blob + b"rubbish"
    return altered(layer, blob=blob, digest=sha256(blob), size=len(blob))


def zstd_bomb():
    compressor = zstandard.ZstdCompressor(level=1).compressobj()
    header = file("x", mode=0o644).member()
    pieces = [compressor.compress(header)]
    pieces += [compressor.compress(bytes(64 * MIB)) for _ in range(64)]
    blob = b"".join([*pieces, compressor.flush()])
    assert len(blob) < MIB
    return altered(Layer([], "zstd"), blob=blob, digest=sha256(blob), size=len(blob))


def gzip_bomb():
    """More than a gibibyte of zeros in little more than one mebibyte."""
    compressor = zlib.compressobj(9, wbits=31)
    pieces = [compressor.compress(file("x", mode=0o644).member())]
    pieces += [compressor.compress(bytes(64 * MIB)) for _ in range(20)]
    blob = b"".join([*pieces, compressor.flush()])
    assert len(blob) < 2 * MIB
    return altered(Layer([], "gzip"), blob=blob, digest=sha256(blob), size=len(blob))


def invalid_whiteout():
    return Layer([file("etc/.wh.")])


def other_compression():
    layer = Layer([file("x", b"x")], "none")
    blob = bz2.compress(layer.tar)
    # A type that does not say how its layers are compressed, so that the bytes tell.
    docker = "application/vnd.docker.image.rootfs.diff.tar"
    return altered(layer, blob=blob, digest=sha256(blob), size=len(blob), media_type=docker)


WRONG_LAYERS = {
    truncated_blob: r"size|short|truncated|ends|bytes",
    wrong_digest: r"digest",
    longer_than_said: r"size|more|longer|bytes",
    wrong_diff_id: r"diff ?id|digest",
    bad_checksum: r"checksum",
    cut_tar: r"truncated|ends|short|cut off",
    cut_gzip: r"truncated|ends|short|cut off",
    rubbish_after_gzip: r"gzip|trailing|after",
    gzip_bomb: r"bomb",
    zstd_bomb: r"ratio|limit|expand|larger|more",
    invalid_whiteout: r"whiteout",
    other_compression: r"bzip2",
}


@pytest.mark.parametrize("make", WRONG_LAYERS, ids=lambda make: make.__name__)
def test_wrong_layer(daemon, tmp_path, make):
    # The good layer below is fetched at the same time: it must not stay either, once collected.
    layout = write_layout(tmp_path, {"x": Image([make()])})
    target = daemon.target("t")
    done = daemon.run("mount", f"oci:{layout}:x", target, check=False, timeout=60)
    assert_refused(daemon, done, WRONG_LAYERS[make])
    assert os.listdir(target) == []


@pytest.mark.servers
@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_registry_with_a_damaged_blob(daemon, registry, tmp_path, damage):
    image = Image([Layer([file("x", content(600_000, len(damage)))], "none")])
    reference = registry.reference(f"damaged:{damage}")
    push(write_layout(tmp_path, {"x": image}), "x", reference)
    blob = registry.blob_path(image.layers[0].digest)
    data = blob.read_bytes()
    blob.write_bytes(data[:-5000] if damage == "truncated" else flipped(data, 400_000))
    done = daemon.run("mount", reference, daemon.target("t"), check=False, timeout=90)
    assert_refused(daemon, done, r"digest|size|bytes|as long as")


def test_manifest_of_a_hundred_megabytes(daemon, tmp_path):
    layout = write_layout(tmp_path, {"x": GOOD})
    manifest = json.loads(GOOD.manifest_bytes())
    manifest["annotations"] = {"padding": "x" * 100 * MIB}
    data = to_json(manifest)
    (layout / "blobs/sha256" / sha256(data).partition(":")[2]).write_bytes(data)
    index = json.loads((layout / "index.json").read_bytes())
    index["manifests"][0] |= {"digest": sha256(data), "size": len(data)}
    (layout / "index.json").write_bytes(to_json(index))
    started = time.monotonic()
    done = daemon.run("mount", f"oci:{layout}:x", daemon.target("t"), check=False)
    assert time.monotonic() - started < 5
    assert_refused(daemon, done, r"limit|large|more than|size")


# --- registries that do not answer ------------------------------------------------------------


class Stalling(http.server.BaseHTTPRequestHandler):
    """Serves one image; sends half of its layer, and then nothing until the test ends."""

    protocol_version = "HTTP/1.1"
    released: threading.Event
    documents: dict

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        media_type, data, is_layer = self.documents.get(
            self.path.rsplit("/", 1)[1], ("", b"", False)
        )
        self.send_response(200)
        self.send_header("Content-Type", media_type or "text/plain")
        self.send_header("Content-Length", str(len(data)))
        if media_type.endswith("manifest.v1+json"):
            self.send_header("Docker-Content-Digest", sha256(data))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(data[: len(data) // 2] if is_layer else data)
        if is_layer:
            self.wfile.flush()
            self.released.wait(120)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def stalling_registry(image):
    manifest, config, layer = image.manifest_bytes(), image.config_bytes(), image.layers[0]
    documents = {
        "v1": ("application/vnd.oci.image.manifest.v1+json", manifest, False),
        sha256(manifest): ("application/vnd.oci.image.manifest.v1+json", manifest, False),
        sha256(config): ("application/octet-stream", config, False),
        layer.digest: ("application/octet-stream", layer.blob, True),
    }
    released = threading.Event()
    handler = type("Handler", (Stalling,), {"documents": documents, "released": released})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"127.0.0.1:{server.server_port}/stalling:v1"
        finally:
            released.set()
            server.shutdown()


def test_interrupted_pull_of_a_registry_that_stalls(daemon):
    """Ctrl-C ends the command at once and the pull with it; the daemon goes on."""
    with stalling_registry(Image([BASE])) as reference:
        command = [*daemon.command, "mount", reference, daemon.target("t")]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        time.sleep(1.5)
        assert process.poll() is None, process.communicate()
        assert daemon.json("ps") == []  # the daemon answers meanwhile
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=5)
        assert process.returncode == 130, errors
        assert output == ""
        assert "Traceback" not in errors
        deadline = time.monotonic() + 10
        while any((daemon.root / "ingest").iterdir()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert_store_empty(daemon)


def test_registry_that_is_not_there(daemon):
    started = time.monotonic()
    reference = f"127.0.0.1:{free_port()}/x:y"
    done = daemon.run("mount", reference, daemon.target("t"), check=False)
    assert time.monotonic() - started < 60
    assert_refused(daemon, done, r"connect|refused|reach")


def test_registry_that_stops_answering(short_path):
    from support.daemon import running_daemon

    with (
        running_daemon(short_path, READ_TIMEOUT=4.0) as daemon,
        stalling_registry(Image([BASE])) as reference,
    ):
        daemon.expected_log.append("retry|retrying|stall")
        started = time.monotonic()
        done = daemon.run("mount", reference, daemon.target("t"), check=False, timeout=100)
        assert 4 < time.monotonic() - started < 90
        assert_refused(daemon, done, r"stall|answer|time|no byte|slow")


# --- the machine -------------------------------------------------------------------------------


@pytest.mark.root
def test_full_disk(short_path, tmp_path):
    from support.daemon import running_daemon

    (short_path / "store").mkdir(mode=0o700)
    run("mount", "-t", "tmpfs", "-o", "size=12m,mode=700", "tmpfs", short_path / "store")
    try:
        with running_daemon(short_path) as daemon:
            daemon.expected_log.append("room|full|space")
            large = Image([Layer([file("large", content(40 * MIB))])])
            layout = write_layout(tmp_path, {"large": large, "good": GOOD})
            done = daemon.run("mount", f"oci:{layout}:large", daemon.target("t"), check=False)
            assert_refused(daemon, done, r"room|full|space")
            # And there is room again for what fits.
            daemon.run("mount", f"oci:{layout}:good", daemon.target("u"))
            daemon.run("unmount", str(daemon.base / "u"))
    finally:
        run("umount", short_path / "store")


@pytest.fixture
def good(tmp_path):
    return f"oci:{write_layout(tmp_path, {'x': GOOD})}:x"


def test_target_that_does_not_exist(daemon, good):
    done = daemon.run("mount", good, str(daemon.base / "absent"), check=False)
    assert done.returncode == 1
    assert re.search(r"not exist|no such|there is no|not found", done.stderr), done.stderr
    assert daemon.json("ps") == []


def test_target_that_is_a_file(daemon, good):
    (daemon.base / "file").write_text("x")
    done = daemon.run("mount", good, str(daemon.base / "file"), check=False)
    assert done.returncode == 1
    assert "directory" in done.stderr
    assert daemon.json("ps") == []


@pytest.mark.fault("F73")
def test_target_that_is_a_symbolic_link_is_not_followed_blindly(daemon, good):
    """The volume is at the directory that the link names, or refused; never in between."""
    real = daemon.target("real")
    os.symlink(real, daemon.base / "link")
    done = daemon.run("mount", good, str(daemon.base / "link"), check=False)
    if done.returncode == 0:
        assert [v["path"] for v in daemon.json("ps")] == [real]
        daemon.run("unmount", real)
    else:
        assert re.search(r"link", done.stderr)
    assert daemon.json("ps") == []


def test_target_that_is_mounted_already(daemon, good, tmp_path):
    target = daemon.target("t")
    daemon.run("mount", good, target)
    other = write_layout(tmp_path / "other", {"x": Image([BASE])})
    done = daemon.run("mount", f"oci:{other}:x", target, check=False)
    assert done.returncode == 1
    assert re.search(r"already|in use|mounted", done.stderr), done.stderr
    assert len(daemon.json("ps")) == 1
    daemon.run("unmount", target)
    assert os.listdir(target) == []


def test_busy_volume_is_unmounted_only_when_asked_twice(daemon, good):
    target = daemon.target("t")
    daemon.run("mount", good, target)
    with Agent() as agent:
        agent.ask("hold", path=target)
        done = daemon.run("unmount", target, check=False)
        assert done.returncode == 1
        assert re.search(r"busy|in use|used", done.stderr), done.stderr
        assert "--detach" in done.stderr
        assert [v["path"] for v in daemon.json("ps")] == [target]
        daemon.run("unmount", "--detach", target)
        assert os.listdir(target) == []
        agent.ask("release")
    assert daemon.json("ps") == []


def test_unmount_of_what_is_not_ours(daemon):
    done = daemon.run("unmount", daemon.target("t"), check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_unknown_command_and_missing_argument_are_misuse(daemon):
    assert daemon.run("mont", check=False).returncode == 2
    assert daemon.run("mount", check=False).returncode == 2
