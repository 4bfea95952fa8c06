"""Traces: recorded from real mounts, shown, kept, and followed by later mounts."""

import json

import pytest

from imgvol.view.trace import TRACE_TYPE, parse_trace
from support import transports
from support.daemon import running_daemon
from support.images import OCI, Image, file, push, sha256, tar_bytes, to_json, write_layout
from support.lazy_images import LazyImage, content, lazy_layer
from support.programs import require_fuse, require_root, wait_until
from support.recordings import recording

pytestmark = [pytest.mark.servers, pytest.mark.fuse]

MIB = 1 << 20
# What the background asks for at once; readers and traces ask for less.
WINDOW = 4 * MIB
CRAWL = 20_000
# Small files from all over the layer, and a part of a large one.
MODULES = [f"usr/lib/m{number}.py" for number in (140, 3, 77, 12, 99)]
LARGE = "usr/lib/large"
OFFSET, SIZE = 4 * MIB, 5000
CHANGED = MODULES[2]


@pytest.fixture(scope="module")
def image(lazy_images):
    return lazy_images.get("zstd:chunked")


@pytest.fixture(scope="module")
def newer(lazy_images, image, tmp_path_factory) -> LazyImage:
    """The next tag of the same repository: no layer is the same, and nearly all files are."""
    where = tmp_path_factory.mktemp("newer")
    entries = [
        file(CHANGED, b"changed", mtime_ns=e.mtime_ns) if e.name == CHANGED else e
        for e in content()
    ]
    layer = lazy_layer(where, tar_bytes(entries), "zstd:chunked")
    name = image.name.rpartition(":")[0] + ":2"
    layout = write_layout(where / "image", {"x": Image([layer])})
    push(layout, "x", lazy_images.registry.reference(name))
    return LazyImage(name, layer, {e.name: e.content for e in entries if e.type == b"0"})


def read_start(agent, image, target):
    """What a start might read: modules in an order of their own, then a part of a large file."""
    for name in MODULES:
        assert agent.ask_bytes("content", path=f"{target}/{name}") == image.files[name]
    fd = agent.ask("open", path=f"{target}/{LARGE}")
    got = agent.ask_bytes("pread", fd=fd, offset=OFFSET, size=SIZE)
    assert got == image.files[LARGE][OFFSET:][:SIZE]
    agent.ask("close", fd=fd)


def record_start(daemon, agent, image, reference, *options, name="first"):
    """Mounts an image, reads it once unseen, and records how it is read again."""
    target = daemon.target(name)
    daemon.run("mount", reference, target)
    read_start(agent, image, target)
    with recording(daemon, target, *options) as said:
        read_start(agent, image, target)
    daemon.run("unmount", target)
    return said


def trace_in_use(daemon):
    (volume,) = daemon.json("ps")
    return volume["trace"]


def wait_followed(daemon):
    def is_over():
        trace = trace_in_use(daemon)
        return trace is not None and trace["state"] == "done"

    wait_until(is_over, what="the trace to be followed")


def asked_by_others(proxy, since):
    """Ranges but those of the background."""
    return [exchange.range for exchange in proxy.ranges(since=since) if exchange.asked < WINDOW]


@transports.each_way
def test_what_is_recorded_for_one_tag_is_brought_first_for_the_next(
    daemon, agent, proxy, image, newer
):
    proxy.throttle(CRAWL, at_least=WINDOW)
    out = daemon.base / "trace.json"
    said = record_start(daemon, agent, image, proxy.reference(image.name), "-o", str(out))
    trace = parse_trace(out.read_bytes())
    # In order, though every page had been read before; of the large file not much more than what
    # was asked for.
    assert [f.path.decode() for f in trace.files] == [*MODULES, LARGE]
    large = trace.files[-1]
    assert any(r.offset <= OFFSET and r.end >= OFFSET + SIZE for r in large.ranges)
    assert large.read_bytes < MIB
    assert said["manifest"] == str(trace.image)
    assert daemon.json("trace", "ls") == [said]

    target = daemon.target("second")
    before = len(proxy.seen)
    daemon.run("mount", proxy.reference(newer.name), target)
    wait_followed(daemon)
    used = trace_in_use(daemon)
    assert (used["matched"], used["traced"], used["image"]) == (5, 6, said["manifest"])
    assert 0 < used["planned"] <= used["launched"] < MIB
    assert proxy.blob_bytes(since=before) < newer.layer.size / 4
    asked = len(proxy.seen)
    read_start(agent, newer, target)
    # All of it was here, but for the one file that is another one now.
    assert len(asked_by_others(proxy, asked)) <= 1
    listed = daemon.run("ps", "--layers").stdout
    assert "5/6" in listed
    assert "done" in listed


@transports.each_way
def test_what_was_open_and_read_before_is_recorded_too(daemon, agent, proxy, image):
    target = daemon.target("mnt")
    daemon.run("mount", proxy.reference(image.name), target)
    name = MODULES[0]
    fd = agent.ask("open", path=f"{target}/{name}")
    first = agent.ask_bytes("pread", fd=fd, offset=0, size=4096)
    out = daemon.base / "trace.json"
    with recording(daemon, target, "-o", str(out)):
        assert agent.ask_bytes("pread", fd=fd, offset=0, size=4096) == first
    agent.ask("close", fd=fd)
    (traced,) = parse_trace(out.read_bytes()).files
    assert traced.path.decode() == name
    assert traced.read_bytes


def test_nothing_is_brought_where_nobody_wants_it(short_path, agent, proxy, image, newer):
    require_fuse()
    proxy.throttle(CRAWL, at_least=WINDOW)
    with running_daemon(short_path) as daemon:
        record_start(daemon, agent, image, proxy.reference(image.name))
        target = daemon.target("second")
        daemon.run("mount", "--no-trace", proxy.reference(newer.name), target)
        asked = len(proxy.seen)
        read_start(agent, newer, target)
        assert len(asked_by_others(proxy, asked)) >= len(MODULES) / 2
        assert trace_in_use(daemon) is None
        daemon.run("unmount", target)
        daemon.terminate()
        daemon.start("--no-traces")
        daemon.run("mount", proxy.reference(newer.name), target)
        read_start(agent, newer, target)
        assert trace_in_use(daemon) is None


def test_a_damaged_trace_is_no_obstacle(daemon, agent, proxy, image, newer):
    proxy.throttle(CRAWL, at_least=WINDOW)
    said = record_start(daemon, agent, image, proxy.reference(image.name))
    document = daemon.root / "blobs" / "sha256" / said["document"].partition(":")[2]
    document.write_bytes(b"{" + document.read_bytes()[1:].replace(b"m140", b"m041"))
    target = daemon.target("second")
    daemon.run("mount", proxy.reference(newer.name), target)
    read_start(agent, newer, target)
    assert trace_in_use(daemon) is None
    assert daemon.log.read_text().count("no trace is used") == 1
    assert "trace rm" not in daemon.run("trace", "rm", proxy.reference(image.name)).stdout
    assert daemon.json("trace", "ls") == []


def test_a_trace_outlives_its_image_with_its_repository(daemon, agent, proxy, image, newer):
    first, second = proxy.reference(image.name), proxy.reference(newer.name)
    said = record_start(daemon, agent, image, first)
    daemon.run("pull", second)
    daemon.run("rmi", first)
    daemon.run("gc")
    assert daemon.json("trace", "ls") == [said]
    assert daemon.run("trace", "show", second, "-q").stdout.split() == [*MODULES, LARGE]
    daemon.run("rmi", second)
    daemon.run("gc")
    assert daemon.json("trace", "ls") == []
    assert not (daemon.root / "blobs/sha256" / said["document"].partition(":")[2]).exists()


def test_a_recording_whose_caller_dies_leaves_nothing(daemon, agent, proxy, image):
    target = daemon.target("mnt")
    daemon.run("mount", proxy.reference(image.name), target)

    def die():
        with recording(daemon, target):
            read_start(agent, image, target)
            raise KeyboardInterrupt  # the block kills the recorder

    with pytest.raises(KeyboardInterrupt):
        die()
    assert daemon.json("trace", "ls") == []
    # And nothing is noted any more: reads are as quick as ever, and right.
    read_start(agent, image, target)
    with recording(daemon, target, "--for", "50s") as said:
        read_start(agent, image, target)
    assert said["files"] == len(MODULES) + 1


def test_commands_run_with_the_image_as_their_root(daemon, registry, tmp_path, static_program):
    require_root()
    entries = [
        file("bin/tool", static_program, mode=0o755),
        file("etc/data", b"d" * 300_000),
        file("etc/other", b"never read"),
    ]
    entries += [e for e in content() if e.name == "first"]
    config = {"Env": ["WHERE=/etc/data", "PATH=/bin"], "WorkingDir": "/etc"}
    layout = write_layout(tmp_path / "image", {"x": Image([_layer(entries)], config=config)})
    push(layout, "x", registry.reference("trace/tool:1"))
    reference = registry.reference("trace/tool:1")
    done = daemon.run("trace", "record", reference, "--", "tool", "data", check=False)
    assert done.returncode == 7, done.stderr
    assert done.stdout == "WHERE=/etc/data data 300000\n"
    assert daemon.json("ps") == []
    assert daemon.run("trace", "show", "-q", reference).stdout.split() == ["bin/tool", "etc/data"]

    missing = daemon.run("trace", "record", reference, "--", "nothing", check=False)
    assert missing.returncode == 127 or "nothing was read" in missing.stderr
    assert daemon.json("ps") == []

    script = 'cat "$IMGVOL_VIEW/etc/other"'
    done = daemon.run("trace", "record", "--host", reference, "--", "sh", "-c", script)
    assert done.stdout == "never read"
    assert daemon.run("trace", "show", "-q", reference).stdout.split() == ["etc/other"]


def _layer(entries):
    from support.images import Layer

    return Layer(entries, "gzip")


PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include <fcntl.h>
#include <unistd.h>
int main(int argc, char **argv) {
    static char buffer[1 << 20];
    int fd = open(argv[1], O_RDONLY);
    long size = read(fd, buffer, sizeof buffer);
    printf("WHERE=%s %s %ld\n", getenv("WHERE"), argv[1], size);
    return 7;
}
"""


@pytest.fixture(scope="module")
def static_program(tmp_path_factory) -> bytes:
    """A program that needs nothing else: it reads the file that it is given."""
    from support.programs import require, run

    require("gcc")
    where = tmp_path_factory.mktemp("program")
    (where / "tool.c").write_text(PROGRAM)
    run("gcc", "-static", "-O1", "-o", where / "tool", where / "tool.c")
    return (where / "tool").read_bytes()


# --- traces in registries -------------------------------------------------------------------------


def put_trace(registry, image, document: bytes, *, subject: str | None = None) -> None:
    """Pushes a trace of an image as others would, where there is no API for referrers."""
    name = image.name.rpartition(":")[0]
    target = subject or sha256(Image([image.layer]).manifest_bytes())
    manifest = to_json(
        {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.manifest.v1+json",
            "artifactType": TRACE_TYPE,
            "config": {
                "mediaType": "application/vnd.oci.empty.v1+json",
                "digest": sha256(b"{}"),
                "size": 2,
            },
            "layers": [
                {"mediaType": TRACE_TYPE, "digest": sha256(document), "size": len(document)}
            ],
            "subject": {
                "mediaType": f"{OCI}.manifest.v1+json",
                "digest": target,
                "size": len(Image([image.layer]).manifest_bytes()),
            },
        }
    )
    index = to_json(
        {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.index.v1+json",
            "manifests": [
                {
                    "mediaType": f"{OCI}.manifest.v1+json",
                    "digest": sha256(manifest),
                    "size": len(manifest),
                    "artifactType": TRACE_TYPE,
                }
            ],
        }
    )
    for blob in (b"{}", document):
        registry.put_blob(name, blob)
    manifests = {sha256(manifest): manifest, target.replace(":", "-"): index}
    for tag, raw in manifests.items():
        registry.put_manifest(name, tag, raw, json.loads(raw)["mediaType"])


def test_what_one_node_has_learnt_another_one_follows(daemon, short_path, agent, registry, newer):
    reference = registry.reference(newer.name)
    record_start(daemon, agent, newer, reference)
    first = daemon.json("trace", "push", reference)
    record_start(daemon, agent, newer, reference, name="again")
    document = daemon.base / "trace.json"
    document.write_text(json.dumps(daemon.json("trace", "show", reference)))
    second = daemon.json("trace", "push", reference, document)
    assert first["digest"] != second["digest"], "it has other times"

    def was_asked_for(pushed, since):
        return any(pushed["digest"] in line for line in registry.requests()[since:])

    other = short_path / "other"
    other.mkdir()
    with running_daemon(other) as node:
        target = node.target("mnt")
        before = len(registry.requests())
        node.run("mount", reference, target)
        read_start(agent, newer, target)
        assert trace_in_use(node) is None
        assert not any("/sha256-" in line for line in registry.requests()[before:])
        node.run("unmount", target)
        node.run("rmi", reference)
        node.terminate()
        node.start("--trace-referrers")
        before = len(registry.requests())
        node.run("mount", reference, target)
        wait_followed(node)
        used = trace_in_use(node)
        assert (used["source"], used["matched"]) == ("referrer", len(MODULES) + 1)
        # The second one has taken the place of the first.
        assert was_asked_for(second, before)
        assert not was_asked_for(first, before)
        (kept,) = node.json("trace", "ls")
        assert (kept["source"], kept["files"]) == ("referrer", len(MODULES) + 1)
        read_start(agent, newer, target)


@pytest.mark.parametrize(
    "document",
    [b"{}", b"\xff" * 100, b'{"version": 1}' + b" " * (5 * MIB)],
    ids=["empty", "noise", "huge"],
)
def test_a_hostile_trace_is_ignored_with_one_line(
    short_path, agent, registry, proxy, newer, document
):
    require_fuse()
    put_trace(registry, newer, document)
    with running_daemon(short_path, "--trace-referrers") as daemon:
        target = daemon.target("mnt")
        before = len(proxy.seen)
        daemon.run("mount", proxy.reference(newer.name), target)
        read_start(agent, newer, target)
        wait_until(lambda: "no trace is used" in daemon.log.read_text(), what="a word of the trace")
        assert daemon.log.read_text().count("no trace is used") == 1
        assert trace_in_use(daemon) is None
        assert daemon.json("trace", "ls") == []
        asked = [e.path for e in proxy.seen[before:] if sha256(document) in e.path]
        assert len(asked) == (0 if len(document) > 4 * MIB else 1)
