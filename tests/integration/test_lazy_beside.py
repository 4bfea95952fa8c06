"""Lazy mounts of images whose tables of contents lie beside them in a real registry."""

import pytest

from support.images import Image, push, sha256, write_layout
from support.programs import wait_until

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
    check_all(agent, target, {"usr/last": image.files["usr/last"]})
