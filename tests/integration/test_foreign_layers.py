"""Mounts of images with layers that the registry is not to have."""

import pytest

from support import images
from support.daemon import running_daemon
from support.images import Image, Layer
from support.programs import require_fuse
from support.scripted_registry import ScriptedServer, serve
from support.soci import draft_of
from support.soci_images import MANIFEST, push_referring_index
from support.stargz import TIME, Stargz

pytestmark = pytest.mark.servers

FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
CONTENT = b"distributed elsewhere" * 20_000


@pytest.fixture
def elsewhere():
    with ScriptedServer("127.0.0.2") as running:
        yield running


def foreign(layer: Layer, elsewhere: ScriptedServer) -> Layer:
    """The layer, given out by another server."""
    elsewhere.on("GET", "/layer", serve(layer.blob))
    layer.media_type, layer.urls = FOREIGN, (f"{elsewhere.url}/layer",)
    return layer


def push(registry, repository: str, image: Image, *layers: Layer) -> str:
    """Uploads an image with only these layers."""
    for data in (image.config_bytes(), *(layer.blob for layer in layers)):
        registry.put_blob(repository, data)
    registry.put_manifest(repository, "1", image.manifest_bytes(), MANIFEST)
    return registry.reference(f"{repository}:1")


def formats(daemon) -> list[str]:
    (volume,) = daemon.json("ps")
    return [layer["format"] for layer in volume["layers"]]


def stargz() -> Layer:
    return Stargz([images.file("file", CONTENT, mtime_ns=TIME)]).layer()


def test_layer_that_the_registry_does_not_have_comes_from_its_url(
    daemon, agent, registry, elsewhere
):
    base = foreign(Layer([images.file("file", CONTENT)]), elsewhere)
    top = Layer([images.file("top", b"here")])
    reference = push(registry, "foreign/missing", Image([base, top]), top)
    target = daemon.target("mnt")
    daemon.run("mount", reference, target)
    assert agent.ask_bytes("content", path=f"{target}/file") == CONTENT
    assert agent.ask_bytes("content", path=f"{target}/top") == b"here"
    assert [seen.path for seen in elsewhere.seen] == ["/layer"]


def test_layer_that_the_registry_has_is_not_looked_for_elsewhere(
    daemon, agent, registry, elsewhere
):
    base = foreign(stargz(), elsewhere)
    reference = push(registry, "foreign/present", Image([base]), base)
    target = daemon.target("mnt")
    daemon.run("mount", reference, target)
    # It is read lazily, as any other.
    assert formats(daemon) == ["eStargz"]
    assert agent.ask_bytes("content", path=f"{target}/file") == CONTENT
    assert elsewhere.seen == []


def test_lazy_layer_that_the_registry_does_not_have_is_pulled_whole(
    daemon, agent, registry, elsewhere
):
    base = foreign(stargz(), elsewhere)
    reference = push(registry, "foreign/lazy", Image([base]))
    target = daemon.target("mnt")
    daemon.run("mount", reference, target)
    assert formats(daemon) == ["tar"]
    assert agent.ask_bytes("content", path=f"{target}/file") == CONTENT
    assert [seen.range for seen in elsewhere.seen] == [None]


@pytest.mark.parametrize("is_present", [True, False])
def test_ztoc_of_a_foreign_layer_is_used_if_the_registry_has_the_blob(
    short_path, agent, registry, elsewhere, is_present
):
    base = foreign(Layer([images.file("file", CONTENT)]), elsewhere)
    repository = f"foreign/soci-{str(is_present).lower()}"
    reference = push(registry, repository, Image([base]), *([base] if is_present else []))
    ztoc = draft_of(base.tar, base.blob, 1 << 20).to_bytes()
    push_referring_index(registry, repository, Image([base]), {base: ztoc})
    require_fuse()
    with running_daemon(short_path, "--soci-referrers") as daemon:
        target = daemon.target("mnt")
        daemon.run("mount", reference, target)
        assert formats(daemon) == ["SOCI v1" if is_present else "tar"]
        assert agent.ask_bytes("content", path=f"{target}/file") == CONTENT
        assert bool(elsewhere.seen) is not is_present


def test_other_bytes_than_the_digest_names_are_refused(daemon, registry, elsewhere):
    base = foreign(Layer([images.file("file", CONTENT)]), elsewhere)
    damaged = bytearray(base.blob)
    damaged[len(damaged) // 2] ^= 1
    elsewhere.on("GET", "/layer", serve(bytes(damaged)))
    reference = push(registry, "foreign/damaged", Image([base]))
    done = daemon.run("mount", reference, daemon.target("mnt"), check=False)
    assert done.returncode != 0
    assert elsewhere.seen
    assert daemon.json("ps") == []


def test_layer_that_nobody_has_is_told(daemon, registry, elsewhere):
    base = foreign(Layer([images.file("file", CONTENT)]), elsewhere)
    base.urls = (f"{elsewhere.url}/gone",)
    reference = push(registry, "foreign/gone", Image([base]))
    done = daemon.run("mount", reference, daemon.target("mnt"), check=False)
    assert done.returncode != 0
    assert "the server that the image names has no blob" in done.stderr
