"""Images whose tables of contents lie: found out when the tar is here, and told of. Every lie there
is: tests/unit/images/test_comparison.py."""

from dataclasses import replace

import pytest

from support import images, soci
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


@pytest.mark.parametrize("push", [push_estargz, push_soci])
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
