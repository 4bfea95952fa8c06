"""`imgvol index`: made by one daemon, pushed to a real registry, read lazily by another."""

import json
import os
import subprocess
import tempfile
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgvol.layers.lazy import soci_twin
from support import guards, images
from support.daemon import running_daemon
from support.images import Image, Layer, push, sha256, write_layout
from support.lazy_images import LazyImage, content
from support.programs import require_fuse, wait_until

pytestmark = pytest.mark.servers

SOCI_INDEX = "application/vnd.amazon.soci.index.v2+json"
SPANS = ("--span-size", "512K")


class Plain:
    """An image in a registry that nothing makes lazy: a large layer, a small one, one of zstd."""

    def __init__(self, registry, directory, name: str) -> None:
        self.registry, self.name = registry, name
        entries = content()
        self.lower = Layer(entries, "gzip")
        self.upper = Layer([images.file("usr/upper", b"not indexed")], "gzip")
        self.zstd = Layer([images.file("usr/zstd", os.urandom(100_000))], "zstd")
        self.plain = Layer([images.file("usr/plain", os.urandom(300_000))], "none")
        self.image = Image([self.lower, self.upper, self.zstd, self.plain])
        self.files = {entry.name: entry.content for entry in entries if entry.type == b"0"}
        self.reference = registry.reference(f"{name}:1")
        layout = write_layout(directory, {"x": self.image})
        push(layout, "x", self.reference)
        self.lazy = LazyImage(f"{name}:1", self.lower, self.files)

    def document(self, reference: str) -> dict:
        kinds = ("manifest", "index")
        accepted = ", ".join(f"application/vnd.oci.image.{kind}.v1+json" for kind in kinds)
        url = f"http://{self.registry.host}/v2/{reference}"
        request = urllib.request.Request(url, headers={"Accept": accepted})
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read())


@pytest.fixture(scope="module")
def plain(registry, tmp_path_factory):
    """One for all tests: each pushes under a name of its own."""
    return Plain(registry, tmp_path_factory.mktemp("plain") / "layout", "index/plain")


@pytest.fixture(scope="module")
def our_maker():
    require_fuse()
    with (
        tempfile.TemporaryDirectory(prefix="imgvol-m-", dir="/tmp") as base,
        running_daemon(Path(base)) as running,
    ):
        guards.shared_processes.add(running.process.pid)
        yield running
        guards.shared_processes.discard(running.process.pid)


@pytest.fixture
def maker(our_maker):
    """The daemon that makes indexes; it has nothing yet."""
    for index in our_maker.json("index", "ls"):
        our_maker.run("index", "rm", index["image"])
    for name in {name for image in our_maker.json("images") for name in image["names"]}:
        our_maker.run("rmi", name)
    return our_maker


@contextmanager
def other_daemon(short_path, *options):
    """A daemon with another root: nothing of the image is here."""
    require_fuse()
    base = short_path / "other"
    base.mkdir()
    with running_daemon(base, *options) as running:
        yield running


def formats(daemon) -> list[str]:
    (volume,) = daemon.json("ps")
    return [layer["format"] for layer in volume["layers"]]


def check_mounted_lazily(daemon, agent, proxy, reference: str, plain: Plain, expected: list[str]):
    crawl = proxy.throttle(300_000)
    target = daemon.target("mnt")
    daemon.run("mount", reference, target)
    assert formats(daemon) == expected
    assert not plain.lazy.is_complete(daemon)
    assert proxy.blob_bytes() < plain.lower.size / 4
    got = agent.ask_bytes("content", path=f"{target}/usr/lib/m7.py")
    assert got == plain.files["usr/lib/m7.py"]
    crawl.lift()
    for name, data in plain.files.items():
        assert f"sha256:{agent.ask('digest', path=f'{target}/{name}')}" == sha256(data), name
    wait_until(lambda: plain.lazy.is_complete(daemon), seconds=30, what="the layer is complete")


def test_an_index_by_annotation_makes_another_daemon_mount_lazily(
    maker, short_path, agent, proxy, plain
):
    made = maker.json("index", "create", plain.reference, "--min-layer-size", "50K", *SPANS)
    lower, upper, zstd, tar = made["layers"]
    assert lower["spans"] > 5
    assert (upper["ztoc"], zstd["ztoc"]) == (None, None)
    assert "small" in upper["reason"]
    assert zstd["reason"].startswith("one zstd frame: can only be read from its beginning")
    assert (tar["spans"], tar["reason"]) == (1, "")
    assert lower["twin"]["size"] < lower["ztoc"]["size"] / 4
    target = plain.reference.replace(":1", ":1-lazy")
    pushed = maker.json("index", "push", plain.reference, target)
    assert pushed["name"] == target
    # Layers and config were there: three zTOCs with their twins, less the layers left out.
    assert (pushed["uploaded"], pushed["existing"]) == (5, 5)
    with other_daemon(short_path) as other:
        reference = proxy.reference(f"{plain.name}:1-lazy")
        expected = ["SOCI", "tar", "tar", "SOCI"]
        check_mounted_lazily(other, agent, proxy, reference, plain, expected)
        paths = [exchange.path for exchange in proxy.seen]
        assert any(lower["twin"]["digest"] in path for path in paths)
        assert not any(lower["ztoc"]["digest"] in path for path in paths)


def test_an_index_by_referrer_leaves_the_image_as_it_is(maker, short_path, agent, proxy, plain):
    before = plain.document(f"{plain.name}/manifests/1")
    maker.run("index", "create", plain.reference, "--min-layer-size", "1M", *SPANS)
    pushed = maker.json("index", "push", plain.reference, "--v1")
    assert pushed["name"].startswith(plain.reference.removesuffix(":1") + "@sha256:")
    assert plain.document(f"{plain.name}/manifests/1") == before
    with other_daemon(short_path, "--soci-referrers") as other:
        reference = proxy.reference(f"{plain.name}:1")
        expected = ["SOCI v1", "tar", "tar", "tar"]
        check_mounted_lazily(other, agent, proxy, reference, plain, expected)


def test_the_converted_image_is_as_soci_convert_writes_it(maker, plain):
    maker.run("index", "create", plain.reference, "--min-layer-size", "1M", *SPANS)
    target = plain.reference.replace(":1", ":2")
    pushed = maker.json("index", "push", plain.reference, target)
    top = plain.document(f"{plain.name}/manifests/2")
    manifest, index = top["manifests"]
    assert pushed["digest"] != manifest["digest"]
    assert manifest["platform"] == index["platform"] == {"architecture": "amd64", "os": "linux"}
    assert index["artifactType"] == SOCI_INDEX
    assert manifest["annotations"] == {"com.amazon.soci.index-digest": index["digest"]}
    assert index["annotations"] == {"com.amazon.soci.image-manifest-digest": manifest["digest"]}
    document = plain.document(f"{plain.name}/manifests/{index['digest']}")
    assert document["config"]["mediaType"] == SOCI_INDEX
    ztoc, twin = document["layers"]
    assert ztoc["mediaType"] == "application/octet-stream"
    assert ztoc["annotations"]["com.amazon.soci.image-layer-digest"] == plain.lower.digest
    assert twin["mediaType"] == soci_twin.MEDIA_TYPE
    # Made again, everything is there.
    again = maker.json("index", "push", plain.reference, target)
    assert (again["uploaded"], again["digest"]) == (0, pushed["digest"])


@pytest.mark.fault("F98")
def test_a_damaged_twin_does_not_hide_the_ztoc(maker, short_path, agent, proxy, plain):
    spans = ("--span-size", "300K")
    made = maker.json("index", "create", plain.reference, "--min-layer-size", "1M", *spans)
    twin = made["layers"][0]["twin"]["digest"]
    target = plain.reference.replace(":1", ":1-damaged")
    maker.run("index", "push", plain.reference, target)
    path = plain.registry.blob_path(twin)
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + b"\xff" * 8 + whole[208:])
    with other_daemon(short_path) as other:
        reference = proxy.reference(f"{plain.name}:1-damaged")
        check_mounted_lazily(other, agent, proxy, reference, plain, ["SOCI", "tar", "tar", "tar"])
        assert f"compressed zTOC {twin} is not used" in other.log.read_text()


def test_a_platform_without_an_index_comes_along(maker, plain, registry):
    arm = Image([Layer([images.file("arm", b"64")], "gzip")], architecture="arm64")
    both = [
        {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": sha256(image.manifest_bytes()),
            "size": len(image.manifest_bytes()),
            "platform": {"os": "linux", "architecture": image.architecture},
        }
        for image in (plain.image, arm)
    ]
    index = images.to_json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": both,
        }
    )
    reference = registry.reference(f"{plain.name}-both:1")
    layers = [layer.blob for image in (plain.image, arm) for layer in image.layers]
    blobs = [*layers, plain.image.config_bytes(), arm.config_bytes()]
    manifests = {"amd": plain.image.manifest_bytes(), "arm": arm.manifest_bytes()}
    registry.put(f"{plain.name}-both", manifests, blobs)
    kind = "application/vnd.oci.image.index.v1+json"
    registry.put_manifest(f"{plain.name}-both", "1", index, kind)
    maker.run("index", "create", reference, "--min-layer-size", "1M", *SPANS)
    # To another repository: what is not there is taken from the image's, or sent.
    target = registry.reference(f"{plain.name}-moved:lazy")
    maker.run("index", "push", reference, target)
    top = plain.document(f"{plain.name}-moved/manifests/lazy")
    platforms = [entry["platform"]["architecture"] for entry in top["manifests"]]
    assert platforms == ["amd64", "arm64", "amd64"]
    assert top["manifests"][1]["digest"] == sha256(arm.manifest_bytes())
    maker.run("pull", target, "--platform", "linux/arm64")
    maker.run("pull", target, "--platform", "linux/amd64")


def test_indexes_survive_a_restart_and_go_when_they_are_removed(maker, plain):
    made = maker.json("index", "create", plain.reference, "--min-layer-size", "1M", *SPANS)
    guards.shared_processes.discard(maker.process.pid)
    maker.terminate()
    maker.start()
    guards.shared_processes.add(maker.process.pid)
    (index,) = maker.json("index", "ls")
    assert index == made
    assert "1/4" in maker.run("index", "ls").stdout
    shown = maker.run("index", "ls", plain.reference).stdout
    assert "small: sooner" in shown
    assert "gzip" in shown
    ztoc = maker.root / "blobs" / "sha256" / made["layers"][0]["ztoc"]["digest"][7:]
    maker.run("gc")
    assert ztoc.exists()
    reasons = maker.run("gc", "--explain", "--json", check=False).stdout
    assert "index" in reasons or not reasons
    maker.run("index", "rm", plain.reference)
    assert not ztoc.exists()
    assert maker.json("index", "ls") == []
    assert "no index of this image" in maker.run("index", "rm", plain.reference, check=False).stderr


def test_an_index_goes_with_its_image(maker, plain):
    maker.run("index", "create", plain.reference, "--min-layer-size", "1M", *SPANS)
    maker.run("pull", plain.reference)
    maker.run("pull", plain.reference)
    assert len(maker.json("index", "ls")) == 1
    maker.run("rmi", plain.reference)
    assert maker.json("index", "ls") == []
    assert not list((maker.root / "blobs" / "sha256").iterdir())


def test_a_layer_that_is_indexed_already_is_not_read_again(maker, proxy, plain):
    reference = proxy.reference(f"{plain.name}:1")
    maker.run("index", "create", reference, "--min-layer-size", "1M", *SPANS)
    before = proxy.blob_bytes()
    assert before > plain.lower.size
    again = maker.json("index", "create", reference, "--min-layer-size", "1M", *SPANS)
    assert proxy.blob_bytes() - before < 100_000
    assert again["layers"][0]["spans"] > 5
    maker.run("index", "create", reference, "--min-layer-size", "1M", "--span-size", "1M")
    assert proxy.blob_bytes() - before > plain.lower.size


def test_images_of_local_sources_are_indexed_and_pushed(maker, plain, registry, tmp_path):
    layout = write_layout(tmp_path / "local", {"x": plain.image})
    maker.run("index", "create", f"oci:{layout}:x", "--min-layer-size", "1M", *SPANS)
    refused = maker.run("index", "push", f"oci:{layout}:x", "--v1", check=False)
    assert refused.returncode == 1
    assert "beside its image" in refused.stderr
    target = registry.reference(f"{plain.name}-local:1")
    maker.run("index", "push", f"oci:{layout}:x", target)
    maker.run("pull", target)


# --- what goes wrong ------------------------------------------------------------------------------


def nothing_is_left(maker) -> bool:
    blobs = maker.root / "blobs" / "sha256"
    left = list(blobs.iterdir()) if blobs.exists() else []
    return not left and not list((maker.root / "ingest").iterdir())


@pytest.mark.fault("F98")
def test_a_blob_that_is_not_what_the_manifest_says_leaves_nothing(maker, plain, registry):
    path = registry.blob_path(plain.lower.digest)
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-9] + bytes(9))
        done = maker.run("index", "create", plain.reference, "--min-layer-size", "1", check=False)
    finally:
        path.write_bytes(whole)
    assert done.returncode == 1
    assert "does not match its" in done.stderr or "damaged" in done.stderr
    assert maker.json("index", "ls") == []
    assert nothing_is_left(maker)


@pytest.mark.fault("F98")
def test_a_registry_that_goes_away_leaves_nothing(maker, proxy, plain):
    reference = proxy.reference(f"{plain.name}:1")
    proxy.throttle(200_000)
    command = [*maker.command, "index", "create", reference, "--min-layer-size", "1M"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: proxy.blob_bytes() > 300_000, seconds=20, what="the blob is coming")
        process.terminate()
    # Nobody waits for it any more: the helper ends, and its files go.
    wait_until(lambda: nothing_is_left(maker), seconds=20, what="all is tidy")
    assert not helpers()


def helpers() -> list[str]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    command = file.read()
            except OSError:
                continue
            if b"imgvol.publish.worker_main" in command:
                found.append(name)
    return found


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("create", "{image}", "--span-size", "1K"), "make no sense"),
        (("create", "{image}", "--span-size", "1G"), "make no sense"),
        (("create", "{image}", "--span-size", "lots"), "no size"),
        (("create", "{registry}/nothing:here"), "no manifest"),
        (("ls", "{image}"), "no index"),
        (("push", "{image}"), "give TARGET"),
        (("push", "{image}", "{image}", "--v1"), "give TARGET"),
        (("push", "{image}", "{image}2"), "no index"),
    ],
)
def test_what_cannot_be_is_refused(maker, plain, arguments, text):
    names = {"image": plain.reference, "registry": plain.registry.host}
    done = maker.run("index", *(word.format(**names) for word in arguments), check=False)
    assert done.returncode in (1, 2)
    assert text in done.stderr


def test_an_image_of_small_layers_is_told_layer_by_layer(maker, plain):
    done = maker.run("index", "create", plain.reference, "--min-layer-size", "1G", check=False)
    assert done.returncode == 1
    assert done.stdout.count("small") == 4
    assert "nothing to keep" in done.stderr
    assert nothing_is_left(maker)


def test_a_registry_that_refuses_the_push_is_told(maker, plain, tmp_path):
    maker.run("index", "create", plain.reference, "--min-layer-size", "1M", *SPANS)
    done = maker.run("index", "push", plain.reference, "127.0.0.1:9/team/app:1", check=False)
    assert done.returncode == 1
    assert "127.0.0.1:9" in done.stderr
    assert len(maker.json("index", "ls")) == 1
