"""What `imgvol serve` is told about pulls, and what they then do."""

import random

import pytest

from support.daemon import Imgvol, running_daemon
from support.images import Image, Layer, file, push, write_layout
from support.programs import require_fuse

pytestmark = [pytest.mark.fuse, pytest.mark.servers]

MB = 1_000_000


def test_a_pull_without_bytes_is_given_up_and_can_be_repeated(
    short_path, registry, proxy, tmp_path
):
    require_fuse()
    layer = Layer([file("large", random.Random(1).randbytes(5 * MB))], "none")
    name = "pull-options/stall:1"
    push(write_layout(tmp_path / "layout", {"x": Image([layer])}), "x", registry.reference(name))
    with running_daemon(short_path, "--pull-progress-timeout", "2") as daemon:
        stall = proxy.stall_blob_after(layer.digest, 3 * MB)
        done = daemon.run("pull", proxy.reference(name), check=False)
        assert done.returncode == 1
        assert "stalled: no byte for 2 s" in done.stderr
        assert f"waiting_for blob {layer.digest}" in done.stderr
        assert stall.fired == 1
        assert daemon.json("images") == []
        assert not [path for path in (daemon.root / "ingest").rglob("*") if path.is_file()]
        daemon.run("pull", proxy.reference(name))


def test_a_handler_that_makes_no_sense_keeps_the_daemon_from_starting(short_path):
    daemon = Imgvol(short_path, options=("--runtime-handler", "kata"))
    with pytest.raises(AssertionError, match="not a runtime handler"):
        daemon.start()
