"""The metrics of a real daemon with a real mount, while reads hang and registries fail.

The layer is made by hand: a file that fills the background's first window, and three that come
after it, so that readers alone ask for these. The registry answers a range when the test lets it.
"""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from support import images
from support.metrics import scrape
from support.programs import wait_until
from support.scripted_registry import ScriptedServer, respond, serve
from support.toc_blobs import Body, stargz_blob

pytestmark = pytest.mark.fuse

MIB = 1 << 20
NOISE = random.Random(5)
FILES = {
    name: NOISE.randbytes(size)
    for name, size in {"first": 5 * MIB, "one": 300_000, "two": 300_000, "three": 300_000}.items()
}
REPOSITORY = "/v2/some/image"
# A scrape that waits for anything that the tests hold back takes for ever.
PROMPT = 2.0


class GatedRegistry:
    """Serves one image; each file's bytes only after `release`."""

    def __init__(self, server: ScriptedServer):
        self.server = server
        self.is_open = {name: threading.Event() for name in FILES}
        self.is_gone: set[str] = set()
        body = Body()
        for name, content in FILES.items():
            body.file(name, content, mode=0o644)
        self.offsets = {entry["offset"]: entry["name"] for entry in body.entries}
        self.layer = images.Layer([])
        self.layer.blob, self.layer.annotations = stargz_blob(body)
        self.layer.digest, self.layer.size = images.sha256(self.layer.blob), len(self.layer.blob)
        image = images.Image([self.layer])
        manifest, config = image.manifest_bytes(), image.config_bytes()
        answer = respond(200, manifest, Content_Type=f"{images.OCI}.manifest.v1+json")
        for tag in ("v1", images.sha256(manifest)):
            for method in ("GET", "HEAD"):
                server.on(method, f"{REPOSITORY}/manifests/{tag}", answer)
        server.on("GET", f"{REPOSITORY}/blobs/{images.sha256(config)}", serve(config))
        server.on("GET", f"{REPOSITORY}/blobs/{self.layer.digest}", self._serve_layer)

    def _serve_layer(self, connection, request):
        start, _ = request.range or (0, None)
        # What begins elsewhere is the blob's tail, where the table of contents is.
        if name := self.offsets.get(start):
            if name in self.is_gone:
                respond(404, fault=name)(connection, request)
                return
            while not self.is_open[name].is_set():
                connection.pause(0.02)
        serve(self.layer.blob)(connection, request)


@pytest.fixture
def registry():
    with ScriptedServer() as server:
        yield GatedRegistry(server)


@pytest.fixture
def mounted(daemon, registry):
    target = daemon.target("mnt")
    daemon.run("mount", f"{registry.server.domain}/some/image:v1", target)
    return target


def test_metrics_answer_while_a_read_hangs_and_then_have_counted_it(
    daemon, registry, mounted, agent
):
    socket = daemon.run_dir / "imgvol.sock"
    at_rest = scrape(socket)
    assert at_rest["imgvol_volumes"] == 1
    assert at_rest["imgvol_views", "state=published"] == 1
    assert at_rest["imgvol_layers", "state=lazy"] == 1
    assert at_rest["imgvol_missing_bytes"] == registry.layer.size
    assert at_rest["imgvol_pulls_total", "result=ok"] == 1
    assert at_rest["imgvol_on_demand_reads_waiting"] == 0

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(agent.ask, "digest", path=f"{mounted}/one")
        try:
            wait_until(
                lambda: scrape(socket, PROMPT)["imgvol_on_demand_reads_waiting"],
                what="a read to hang",
            )
            hanging = [scrape(socket, PROMPT) for _ in range(20)]
            assert not reading.done()
        finally:
            registry.is_open["one"].set()
        assert reading.result() == images.sha256(FILES["one"]).partition(":")[2]
    first, last = hanging[0], hanging[-1]
    oldest = "imgvol_on_demand_oldest_wait_seconds"
    assert 0 < first[oldest] < last[oldest]
    assert last["imgvol_filesystem_requests_in_progress", "operation=read"] >= 1
    assert last["imgvol_queue_running", "queue=fetch"] >= 1
    assert last["imgvol_fetched_bytes_total", "purpose=read"] == 0
    assert last["imgvol_failing", "component=registry"] == 0

    # The reader has its bytes a moment before the whole range has landed.
    wait_until(lambda: scrape(socket)["imgvol_fetch_seconds_count"], what="the range to land")
    after = scrape(socket)
    assert after["imgvol_on_demand_reads_waiting"] == after[oldest] == 0
    assert after["imgvol_on_demand_read_seconds_count"] >= 1
    assert after["imgvol_on_demand_read_seconds_sum"] > last[oldest]
    # Readahead may want what the reader has not asked for; the file is what there is to want.
    assert after["imgvol_filesystem_read_bytes_total"] == len(FILES["one"])
    assert 0 < after["imgvol_on_demand_read_bytes_total"] <= len(FILES["one"])
    needed = after["imgvol_needed_bytes_total"]
    assert len(FILES["one"]) <= needed < 1.1 * len(FILES["one"])
    assert after["imgvol_fetched_bytes_total", "purpose=read"] >= needed
    assert after["imgvol_fetches_total", "purpose=read", "result=ok"] == 1
    assert after["imgvol_fetch_seconds_count"] == 1
    assert after["imgvol_filesystem_requests_total", "operation=read", "result=ok"] >= 1
    assert after["imgvol_filesystem_requests_total", "operation=lookup", "result=ok"] >= 1
    missing = after["imgvol_missing_bytes"]
    assert missing == registry.layer.size - after["imgvol_fetched_bytes_total", "purpose=read"]


def test_failing_says_what_is_wrong_and_when_it_is_over(daemon, registry, mounted, agent):
    socket = daemon.run_dir / "imgvol.sock"
    daemon.expected_log.append("its registry fails")
    registry.is_gone.add("two")
    assert agent.errno_of("digest", path=f"{mounted}/two") == "EIO"
    failed = scrape(socket)
    assert failed["imgvol_failing", "component=registry"] == 1
    assert failed["imgvol_failing", "component=layers"] == 0
    assert failed["imgvol_failing", "component=filesystem"] == 0
    assert failed["imgvol_filesystem_requests_total", "operation=read", "result=failed"] >= 1
    assert failed["imgvol_fetches_total", "purpose=read", "result=failed"] >= 1

    registry.is_gone.clear()
    registry.is_open["two"].set()
    wait_until(
        lambda: agent.errno_of("digest", path=f"{mounted}/two") == "OK", what="the registry again"
    )
    # The reader was served by a part of a range; the whole of it tells that all is well.
    wait_until(
        lambda: scrape(socket)["imgvol_failing", "component=registry"] == 0, what="no failure"
    )

    # The blob is no tar: when all of it is here, that comes out.
    daemon.expected_log.append("ERROR imgvol.images.lazy: layer .* is bad")
    for gate in registry.is_open.values():
        gate.set()
    wait_until(
        lambda: scrape(socket)["imgvol_failing", "component=layers"], what="the layer to be bad"
    )
    bad = scrape(socket)
    assert bad["imgvol_layers", "state=bad"] == 1
    assert bad["imgvol_layers", "state=lazy"] == 0
    assert bad["imgvol_layers_verified_total", "result=bad"] == 1
    assert bad["imgvol_fetches_total", "purpose=background", "result=ok"] >= 1

    daemon.run("unmount", mounted)
    wait_until(
        lambda: not scrape(socket)["imgvol_failing", "component=layers"], what="the view to close"
    )
    over = scrape(socket)
    assert over["imgvol_volumes"] == over["imgvol_layers", "state=bad"] == 0
    assert over["imgvol_layers_verified_total", "result=bad"] == 1, "counters stay"
