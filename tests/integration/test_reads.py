"""Reads of every kind and at every place give the reference's bytes, exactly as many."""

import os
import random
import threading

import pytest

from support import transports
from support.agent import Agent
from support.edge_cases import MIB, content
from support.images import Image, Layer, directory, file, hardlink, sparse, write_layout

pytestmark = [pytest.mark.fuse, transports.each_way]

HOLES = [(4096, content(600, 2)), (2 * MIB + 512, content(5000, 3)), (3 * MIB, b"")]
FILES = {
    "empty": b"",
    "byte": b"x",
    "page": content(4096, 7),
    "small": content(70_001, 8),
    "almost-large": content(MIB - 1, 9),
    "large": content(MIB, 10),
    "larger": content(9 * MIB + 12_345, 11),
}
METHODS = ("pread", "read", "mmap", "sendfile")


def holes() -> bytes:
    seen = bytearray(3 * MIB)
    for offset, data in HOLES:
        seen[offset : offset + len(data)] = data
    return bytes(seen)


@pytest.fixture(scope="module")
def reference():
    return {**FILES, "holes": holes()}


@pytest.fixture(scope="module")
def view(shared_daemon, tmp_path_factory):
    entries = [directory("d"), *(file(f"d/{name}", data) for name, data in FILES.items())]
    entries += [sparse("d/holes", 3 * MIB, HOLES), hardlink("d/same", "d/larger")]
    half = len(entries) // 2
    layers = [
        Layer(entries[:half], "gzip"),
        Layer(entries[half:-1], "zstd"),
        Layer([entries[-1]], "none"),
    ]
    layout = write_layout(tmp_path_factory.mktemp("reads"), {"x": Image(layers)})
    target = shared_daemon.target("reads")
    shared_daemon.run("mount", f"oci:{layout}:x", target)
    yield f"{target}/d"
    shared_daemon.run("unmount", target)


def ranges(seed, size, count):
    """Offsets and sizes: at random, round the edges of pages and pieces, and beyond the end."""
    chosen = random.Random(seed)
    edges = [0, 4096, 65_536, 131_072, MIB, size - 1, size]
    for _ in range(count):
        near = chosen.choice(edges) + chosen.randint(-2, 2)
        offset = chosen.choice([near, chosen.randrange(size + 1)])
        length = chosen.choice([1, 511, 4096, 4097, 131_072, 300_000, chosen.randint(1, 200_000)])
        yield max(0, offset), length


@pytest.mark.fault("F75")
@pytest.mark.parametrize("name", [*FILES, "holes"])
@pytest.mark.parametrize("method", METHODS)
def test_random_ranges(view, agent, reference, name, method):
    expected = reference[name]
    fd = agent.ask("open", path=f"{view}/{name}")
    for offset, length in ranges(f"{name} {method}", len(expected), 40):
        wanted = expected[offset : offset + length]
        if method == "read":
            agent.ask("seek", fd=fd, offset=offset, whence=os.SEEK_SET)
            got = agent.ask_bytes("read", fd=fd, size=length)
        elif method == "mmap":  # which must be within the file
            size = len(wanted)
            got = agent.ask_bytes("mmap", fd=fd, size=size, offset=offset) if size else b""
        else:
            got = agent.ask_bytes(method, fd=fd, size=length, offset=offset)
        assert got == wanted, (offset, length)
    agent.ask("close", fd=fd)


@pytest.mark.parametrize("name", [*FILES, "holes"])
def test_whole_file(view, agent, reference, name):
    assert agent.ask_bytes("content", path=f"{view}/{name}") == reference[name]
    status = agent.ask("stat", path=f"{view}/{name}")
    assert status["st_size"] == len(reference[name])


@pytest.mark.fault("F75")
def test_direct_reads(view, agent, reference):
    fd = agent.ask("open", path=f"{view}/larger", flags=os.O_RDONLY | os.O_DIRECT)
    for offset in (0, 4096, 5 * MIB, 9 * MIB):
        expected = reference["larger"][offset : offset + 65_536]
        assert agent.ask_bytes("pread", fd=fd, size=65_536, offset=offset) == expected


def test_end_of_file_is_where_it_should_be(view, agent, reference):
    fd = agent.ask("open", path=f"{view}/small")
    size = len(reference["small"])
    assert agent.ask("seek", fd=fd, offset=0, whence=os.SEEK_END) == size
    assert agent.ask_bytes("pread", fd=fd, size=10, offset=size) == b""
    assert agent.ask_bytes("pread", fd=fd, size=10, offset=size + MIB) == b""
    assert len(agent.ask_bytes("pread", fd=fd, size=10, offset=size - 3)) == 3


def test_hard_link_of_a_lower_layer_reads_the_same(view, agent, reference):
    assert agent.ask_bytes("content", path=f"{view}/same") == reference["larger"]
    one, other = (agent.ask("stat", path=f"{view}/{name}") for name in ("same", "larger"))
    assert one["st_ino"] == other["st_ino"]
    assert one["st_nlink"] == other["st_nlink"] == 2


@pytest.mark.fault("F75")
def test_many_readers_at_once(view, reference):
    wrong = []

    def read(seed):
        with Agent() as agent:
            fd = agent.ask("open", path=f"{view}/larger")
            for offset, length in ranges(seed, len(reference["larger"]), 25):
                got = agent.ask_bytes("pread", fd=fd, size=length, offset=offset)
                if got != reference["larger"][offset : offset + length]:
                    wrong.append((seed, offset, length))

    readers = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(60)
    assert not any(reader.is_alive() for reader in readers)
    assert wrong == []


def test_open_file_outlives_a_detached_volume(shared_daemon, view, agent, reference):
    image = next(v["image"] for v in shared_daemon.json("ps") if v["path"] == os.path.dirname(view))
    target = shared_daemon.target("detached")
    shared_daemon.run("mount", image, target)
    fd = agent.ask("open", path=f"{target}/d/larger")
    shared_daemon.run("unmount", "--detach", target)
    assert agent.ask("list", path=target) == []
    got = agent.ask_bytes("pread", fd=fd, size=5000, offset=7 * MIB)
    assert got == reference["larger"][7 * MIB : 7 * MIB + 5000]
    agent.ask("close", fd=fd)
