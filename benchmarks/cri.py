"""The cri task: what a kubelet asks all the time, of a daemon with many images.

The client is gRPC's own, in this process; its time counts, too.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.cri import Client, client_of
from support.daemon import running_daemon
from support.edge_cases import content
from support.images import Image, Layer, file, push, write_layout
from support.registry import Registry

IMAGES = 1000
CLIENTS = 8
CALLS = 200

State = Callable[[str, str, str], None]


def bench_cri(registry: Registry, work: Path, size: int, state: State) -> None:
    """Lists images and asks for single ones, with nothing else to do and beside a pull.

    Args:
        size: Bytes of the image that is pulled beside.
        state: Told the task, what was seen, and the aim.
    """
    layer = Layer([file("a", b"a")])
    images = {
        f"v{number}": Image([layer], config={"Labels": {"number": str(number)}})
        for number in range(IMAGES)
    }
    blobs = [layer.blob, *(image.config_bytes() for image in images.values())]
    registry.put("cri", {tag: i.manifest_bytes() for tag, i in images.items()}, blobs)
    large = registry.reference("cri-large:x")
    layout = write_layout(work / "cri", {"x": Image([Layer([file("large", content(size))])])})
    push(layout, "x", large)
    references = [registry.reference(f"cri:{tag}") for tag in images]
    base = work / "cri-daemon"
    base.mkdir()
    with running_daemon(base, serves_cri=True) as daemon, client_of(daemon.cri_socket) as client:
        began = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(client.pull, references))
        took = time.perf_counter() - began
        state(f"PullImage, {IMAGES:,} small images, {CLIENTS} at once", f"{took:.1f} s", "")
        _measure(client, references, state, "nothing else to do", range(CALLS))
        pull = client.start_pull(large, timeout=600)
        beside = _while(lambda: not pull.done())
        _measure(client, references, state, f"while {size >> 20:,} MiB are pulled", beside)
        pull.result()


def _while(goes_on: Callable[[], bool]) -> Iterator[None]:
    while goes_on():
        yield


def _measure(client: Client, references, state: State, when: str, rounds) -> None:
    lists, statuses = [], []
    for number, _ in enumerate(rounds):
        began = time.perf_counter()
        assert len(client.images()) >= IMAGES
        lists.append(time.perf_counter() - began)
        began = time.perf_counter()
        assert client.find(references[number % IMAGES]) is not None
        statuses.append(time.perf_counter() - began)
    state(f"ListImages, {IMAGES:,} images, {when}", _shown(lists), "aim: 50 ms")
    state(f"ImageStatus of one, {when}", _shown(statuses), "aim: 5 ms")


def _shown(times: list[float]) -> str:
    ordered = sorted(times)
    late = ordered[int(len(ordered) * 0.99)]
    return f"{statistics.median(ordered) * 1000:.1f} ms, 99 %: {late * 1000:.1f} ({len(times)})"
