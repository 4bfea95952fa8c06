"""Images whose tables of contents lie: found out when the tar is here, and told of. Every lie there
is: tests/unit/images/test_comparison.py."""

import gzip
from dataclasses import replace

import pytest

from support import frames, images, soci
from support.lazy_images import put_soci_image
from support.programs import wait_until
from support.stargz import TIME, Stargz

pytestmark = pytest.mark.servers

ENTRIES = [
    images.directory("bin", mtime_ns=TIME),
    images.file("bin/tool", b"#!/bin/sh\n" * 500, mtime_ns=TIME, mode=0o755),
    images.file("bin/other", b"other" * 5000, mtime_ns=TIME),
    images.file("secret", b"for root only", mtime_ns=TIME, mode=0o600),
]


def push_estargz(registry, name, directory) -> None:
    """Says that everybody may read what only root may."""
    made = Stargz(ENTRIES)
    made.entry("secret")["mode"] = 0o644
    image = images.Image([made.layer()])
    images.push(images.write_layout(directory, {"x": image}), "x", registry.reference(f"{name}:1"))


def push_soci(registry, name, directory) -> None:
    """Says that the other file is the tool."""

    def swap(draft: soci.Draft) -> soci.Draft:
        names = {b"bin/tool": b"bin/other", b"bin/other": b"bin/tool"}
        entries = [replace(e, name=names.get(e.name, e.name)) for e in draft.entries]
        return replace(draft, entries=entries)

    put_soci_image(registry, name, images.Layer(ENTRIES), 1 << 20, change=swap)


def push_zstd_frames(registry, name, directory) -> None:
    """Says the same of a zstd layer of several frames."""
    layer = images.Layer(ENTRIES, "zstd")
    pieces = frames.cut(layer.tar, 6000)
    draft, blob = frames.draft_of(layer.tar, pieces, [frames.frame(piece) for piece in pieces])
    with_blob(layer, blob)
    names = {b"bin/tool": b"bin/other", b"bin/other": b"bin/tool"}
    entries = [replace(e, name=names.get(e.name, e.name)) for e in draft.ztoc.entries]
    document = replace(draft, ztoc=replace(draft.ztoc, entries=entries)).to_bytes()
    index = soci.write_index({}, {layer.digest: document})
    image = images.Image([layer], annotations={soci.INDEX_DIGEST: images.sha256(index)})
    blobs = (document, b"{}", layer.blob, image.config_bytes())
    registry.put(name, {"soci": index, "1": image.manifest_bytes()}, blobs)


@pytest.mark.parametrize("push", [push_estargz, push_soci, push_zstd_frames])
def test_lie_ends_in_errors_and_the_next_mount_shows_the_tar(
    push, daemon, agent, registry, tmp_path
):
    daemon.expected_log += ["is bad, its readers get errors", "read: "]
    name = f"lies/{push.__name__.replace('_', '-')}"
    push(registry, name, tmp_path)
    target, reference = daemon.target("mnt"), registry.reference(f"{name}:1")
    daemon.run("mount", reference, target)
    before = agent.ask("stat_tree", path=target)

    def layer() -> dict:
        (volume,) = daemon.json("ps")
        (only,) = volume["layers"]
        return only

    wait_until(lambda: layer()["state"] == "bad", seconds=20, what="the lie to be found out")
    assert "does not tell what the layer holds" in layer()["reason"]
    shown = daemon.run("ps", "--layers").stdout
    assert "bad" in shown
    assert "does not tell what the layer holds" in " ".join(shown.split())
    assert agent.errno_of("content", path=f"{target}/bin/tool") == "EIO"
    # What has been shown stays so as long as somebody may know it.
    assert agent.ask("stat_tree", path=target) == before

    daemon.run("unmount", target)
    daemon.run("mount", reference, target)
    assert layer()["state"] == "complete"
    for entry in ENTRIES[1:]:
        assert agent.ask_bytes("content", path=f"{target}/{entry.name}") == entry.content
        status = agent.ask("stat", path=f"{target}/{entry.name}")
        assert status["st_mode"] & 0o7777 == entry.mode


def without_footer(layer: images.Layer) -> images.Layer:
    """The annotation announces a table of contents that nothing leads to."""
    return with_blob(layer, layer.blob + gzip.compress(b"", mtime=0))


def with_another_table(layer: images.Layer) -> images.Layer:
    """The table of contents is not the one that the annotation pins."""
    layer.annotations = dict.fromkeys(layer.annotations, images.sha256(b"another"))
    return layer


def with_blob(layer: images.Layer, blob: bytes) -> images.Layer:
    layer.blob, layer.size, layer.digest = blob, len(blob), images.sha256(blob)
    return layer


@pytest.mark.parametrize("spoil", [without_footer, with_another_table])
def test_layer_with_a_table_that_cannot_be_used_is_pulled_whole(
    spoil, daemon, agent, registry, tmp_path
):
    layer = spoil(Stargz(ENTRIES).layer())
    name = f"lies/{spoil.__name__.replace('_', '-')}"
    layout = images.write_layout(tmp_path, {"x": images.Image([layer])})
    images.push(layout, "x", registry.reference(f"{name}:1"))
    check_pulled_whole(daemon, agent, registry.reference(f"{name}:1"))
    assert "is not read lazily" in daemon.log_end()


@pytest.mark.parametrize("part", ["ztoc", "index"])
def test_soci_index_that_is_damaged_or_lost_is_as_if_there_were_none(part, daemon, agent, registry):
    damaged: list[bytes] = []
    name = f"lies/spoilt-{part}"

    def keep(draft: soci.Draft) -> soci.Draft:
        # A zTOC of its own for each case: the registry keeps equal ones once.
        draft = replace(draft, entries=[replace(e, gid=len(name)) for e in draft.entries])
        damaged.append(draft.to_bytes())
        return draft

    layer = images.Layer(ENTRIES)
    put_soci_image(registry, name, layer, 1 << 20, change=keep)
    data = damaged[0] if part == "ztoc" else soci.write_index({layer.digest: damaged[0]})
    stored = registry.blob_path(images.sha256(data))
    if part == "ztoc":
        stored.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:  # the registry itself notices when a manifest has changed
        stored.unlink()
    check_pulled_whole(daemon, agent, registry.reference(f"{name}:1"))
    said = "is not read lazily" if part == "ztoc" else "the SOCI index of"
    assert said in daemon.log_end()


def check_pulled_whole(daemon, agent, reference: str) -> None:
    target = daemon.target("mnt")
    daemon.run("mount", reference, target)
    (volume,) = daemon.json("ps")
    assert [(each["state"], each["format"]) for each in volume["layers"]] == [("complete", "tar")]
    for entry in ENTRIES[1:]:
        assert agent.ask_bytes("content", path=f"{target}/{entry.name}") == entry.content
