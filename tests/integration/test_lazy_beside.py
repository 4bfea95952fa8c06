"""Lazy mounts of images whose tables of contents lie beside them in a real registry."""

from dataclasses import replace

import pytest

from support import images
from support.daemon import running_daemon
from support.images import Image, Layer, push, sha256, write_layout
from support.lazy_images import LazyImage, content
from support.programs import require_fuse, wait_until
from support.soci import Draft, draft_of
from support.soci_images import push_referring_index

pytestmark = pytest.mark.servers


def formats(daemon) -> list[str]:
    (volume,) = daemon.json("ps")
    return [layer["format"] for layer in volume["layers"]]


def check_all(agent, target, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        digest = agent.ask("digest", path=f"{target}/{name}")
        assert f"sha256:{digest}" == sha256(data), name


# --- eStargz with its table of contents in another image -----------------------------------------


def test_image_is_mounted_by_the_table_of_contents_of_its_companion(
    daemon, agent, proxy, lazy_images
):
    image = lazy_images.get("external")
    crawl = proxy.throttle(100_000)
    target = daemon.target("mnt")
    daemon.run("mount", proxy.reference(image.name), target)
    assert formats(daemon) == ["eStargz (external)"]
    assert proxy.blob_bytes() < 400_000 < image.layer.size / 20
    assert not image.is_complete(daemon)
    got = agent.ask_bytes("content", path=f"{target}/usr/lib/m7.py")
    assert got == image.files["usr/lib/m7.py"]
    crawl.lift()
    check_all(agent, target, image.files)
    # The whole is proven as any lazy layer is.
    wait_until(lambda: image.is_complete(daemon), seconds=30, what="the layer is complete")
    check_all(agent, target, {"usr/last": image.files["usr/last"]})


def test_image_named_by_digest_is_pulled_whole(daemon, agent, proxy, lazy_images):
    image = lazy_images.get("external")
    digest = sha256(Image([image.layer]).manifest_bytes())
    repository = proxy.reference(image.name).rpartition(":")[0]
    target = daemon.target("mnt")
    daemon.run("mount", f"{repository}@{digest}", target)
    assert image.is_complete(daemon)
    assert not any("esgztoc" in exchange.path for exchange in proxy.seen)
    check_all(agent, target, {"usr/last": image.files["usr/last"]})


def test_image_without_its_companion_is_pulled_whole(
    daemon, agent, registry, lazy_images, tmp_path
):
    image = lazy_images.get("external")
    reference = registry.reference("lazy/alone:1")
    push(write_layout(tmp_path, {"x": Image([image.layer])}), "x", reference)
    target = daemon.target("mnt")
    daemon.run("mount", reference, target)
    assert image.is_complete(daemon)
    assert f"layer {image.layer.digest} is not read lazily" in daemon.log.read_text()
    # Nobody should have to look for that in a log (and it is known after a restart, too).
    daemon.terminate()
    daemon.start()
    ((layer,),) = [volume["layers"] for volume in daemon.json("ps")]
    assert (layer["format"], layer["state"]) == ("tar", "complete")
    assert "lazy/alone:1-esgztoc" in layer["reason"] or "no such" in layer["reason"]
    check_all(agent, target, {"usr/last": image.files["usr/last"]})


# --- SOCI indexes of version 1, under a tag: this registry has no referrers API -------------------


@pytest.fixture
def allowing(short_path):
    """A daemon whose operator allows indexes that only refer to an image."""
    require_fuse()
    with running_daemon(short_path, "--soci-referrers") as running:
        yield running


class Indexed:
    """An image of two layers in the registry, with a referring index for the lower one."""

    def __init__(self, registry, directory, name: str):
        self.registry, self.name = registry, name
        entries = content()
        self.lower = Layer(entries, "gzip")
        self.upper = Layer([images.file("usr/upper", b"not indexed")], "gzip")
        self.image = Image([self.lower, self.upper])
        self.files = {entry.name: entry.content for entry in entries if entry.type == b"0"}
        self.files["usr/upper"] = b"not indexed"
        self.lazy = LazyImage(f"{name}:1", self.lower, self.files)
        push(write_layout(directory, {"x": self.image}), "x", registry.reference(f"{name}:1"))

    def draft(self) -> Draft:
        # Checkpoints as SOCI wrote them first: the one at the start is left out.
        return draft_of(self.lower.tar, self.lower.blob, 1 << 20, version=1)

    def refer(self, draft: Draft) -> bytes:
        """Pushes a zTOC for the lower layer, and the index that refers to the image."""
        ztoc = draft.to_bytes()
        push_referring_index(self.registry, self.name, self.image, {self.lower: ztoc})
        return ztoc


@pytest.fixture
def indexed(registry, tmp_path, request):
    return Indexed(registry, tmp_path / "layout", f"soci/{request.node.name.lower()[:60]}")


def test_image_is_mounted_by_an_index_that_refers_to_it(allowing, agent, proxy, indexed):
    indexed.refer(indexed.draft())
    crawl = proxy.throttle(200_000)
    target = allowing.target("mnt")
    allowing.run("mount", proxy.reference(indexed.lazy.name), target)
    # The upper layer is not in the index.
    assert formats(allowing) == ["SOCI v1", "tar"]
    assert proxy.blob_bytes() < 1_500_000 < indexed.lower.size / 8
    got = agent.ask_bytes("content", path=f"{target}/usr/lib/m7.py")
    assert got == indexed.files["usr/lib/m7.py"]
    assert not indexed.lazy.is_complete(allowing)
    crawl.lift()
    wait_until(lambda: indexed.lazy.is_complete(allowing), seconds=30, what="the layer is complete")
    check_all(agent, target, indexed.files)


def test_nobody_looks_for_referrers_unless_the_operator_allows_it(daemon, agent, proxy, indexed):
    indexed.refer(indexed.draft())
    target = daemon.target("mnt")
    daemon.run("mount", proxy.reference(indexed.lazy.name), target)
    assert formats(daemon) == ["tar", "tar"]
    asked = [exchange.path for exchange in proxy.seen]
    assert not any("/referrers/" in path or "manifests/sha256-" in path for path in asked)
    check_all(agent, target, {"usr/last": indexed.files["usr/last"]})


def test_index_that_lies_is_found_out(allowing, agent, proxy, indexed):
    honest = indexed.draft()
    entries = [
        replace(entry, name=b"usr/lib/evil.py") if entry.name == b"usr/lib/m7.py" else entry
        for entry in honest.entries
    ]
    indexed.refer(replace(honest, entries=entries))
    allowing.expected_log.append("ERROR imgvol.images.lazy: layer .* is bad")
    crawl = proxy.throttle(200_000)
    target = allowing.target("mnt")
    allowing.run("mount", proxy.reference(indexed.lazy.name), target)
    assert formats(allowing) == ["SOCI v1", "tar"]
    assert agent.ask("stat", path=f"{target}/usr/lib/evil.py")["st_size"] > 0
    crawl.lift()

    def is_bad() -> bool:
        (volume,) = allowing.json("ps")
        return volume["layers"][0]["state"] == "bad"

    wait_until(is_bad, seconds=30, what="the proof to fail")
    # The next mount shows the tar.
    allowing.run("unmount", target)
    allowing.run("mount", proxy.reference(indexed.lazy.name), target)
    assert agent.errno_of("stat", path=f"{target}/usr/lib/evil.py") == "ENOENT"
    check_all(agent, target, indexed.files)


def test_index_whose_ztoc_is_gone_makes_the_layer_an_ordinary_one(
    allowing, agent, registry, indexed
):
    ztoc = indexed.refer(indexed.draft())
    registry.blob_path(sha256(ztoc)).unlink()
    target = allowing.target("mnt")
    allowing.run("mount", registry.reference(indexed.lazy.name), target)
    assert formats(allowing) == ["tar", "tar"]
    assert f"layer {indexed.lower.digest} is not read lazily" in allowing.log.read_text()
    check_all(agent, target, {"usr/last": indexed.files["usr/last"]})
