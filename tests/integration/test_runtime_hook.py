"""Images in containers of real runtimes, by the hook: what is mounted, and what is left."""

import json
import sys
import time

import pytest

from support import bundle
from support.images import Image, Layer, directory, file, symlink, write_layout
from support.programs import require, wait_until

pytestmark = [pytest.mark.fuse, pytest.mark.servers]

IMAGE = Image([Layer([directory("etc"), file("etc/motd", b"hello\n"), symlink("m", "etc/motd")])])


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> str:
    return f"oci:{write_layout(tmp_path_factory.mktemp('hook'), {'x': IMAGE})}:x"


@pytest.fixture(params=["runc", "crun"])
def runtime(request, short_path):
    require(request.param)
    return bundle.Runtime(request.param, short_path / "state")


def hook(imgvol, stage, *options):
    command = [sys.executable, *imgvol.command[1:], "hook", stage, *options]
    return {"path": command[0], "args": command}


def hooked_bundle(directory, imgvol, script, annotations, *options, **bundle_options):
    """A bundle that runs a shell script with images at the paths of the annotations."""
    made = bundle.write_bundle(directory, ["/bin/sh", "-c", script], [], **bundle_options)
    config = json.loads((made / "config.json").read_text())
    config["annotations"] = {
        f"io.imgvol.volumes{path}": image for path, image in annotations.items()
    }
    # runc shows what a hook has written; crun throws it away unless it is told where to put it.
    config["annotations"]["run.oci.hooks.stderr"] = str(directory / "hook.log")
    config["hooks"] = {
        "createRuntime": [hook(imgvol, "createRuntime", *options)],
        "poststop": [hook(imgvol, "poststop")],
    }
    (made / "config.json").write_text(json.dumps(config))
    return made


def sandboxes(imgvol):
    """Those that have volumes, and containers that have left a lease."""
    leases = [lease["id"] for lease in imgvol.json("lease", "ls")]
    with_volumes = [volume["sandbox"] for volume in imgvol.json("ps")]
    return sorted({*with_volumes, *(name for name in leases if name.startswith("oci-"))})


def test_a_container_has_the_images_that_it_asks_for(runtime, daemon, image, short_path):
    script = (
        "cat /data/etc/motd /made/for/it/motd /word; touch /data/new 2>&1;"
        "grep -E ' (/data|/word|/made/for/it) ' /proc/self/mountinfo | cut -d' ' -f5,6"
    )
    made = hooked_bundle(
        short_path / "b",
        daemon,
        script,
        {
            "/data": image,
            "/made/for/it": f"{image}?subpath=etc",
            "/word": f"{image}?subpath=m&pull=never",
        },
    )
    *read, refused, one, two, three = runtime.run(made, "reader").stdout.splitlines()
    assert read == ["hello"] * 3
    assert "Read-only file system" in refused
    options = dict(line.split() for line in (one, two, three))
    assert options.keys() == {"/data", "/made/for/it", "/word"}
    for given in options.values():
        assert {"ro", "nosuid", "nodev"} <= set(given.split(","))
    wait_until(lambda: sandboxes(daemon) == [], what="the volumes to be released")


def test_a_volume_lives_as_long_as_its_container(runtime, daemon, image, short_path):
    made = hooked_bundle(short_path / "b", daemon, "read go; cat /data/etc/motd", {"/data": image})
    with runtime.running(made, "long") as container:
        wait_until(lambda: sandboxes(daemon) == ["oci-long"], what="the container to start")
        container.stdin.write("go\n")
        container.stdin.flush()
        assert container.stdout.read() == "hello\n"
        assert container.wait(20) == 0
    wait_until(lambda: sandboxes(daemon) == [], what="the volumes to be released")


def test_a_link_in_the_root_file_system_leads_no_mount_out_of_it(
    runtime, daemon, image, short_path
):
    outside = short_path / "outside"
    outside.mkdir()
    made = hooked_bundle(short_path / "b", daemon, "cat /evil/dir/etc/motd", {"/evil/dir": image})
    (made / "rootfs/evil").symlink_to(f"../../../../../../..{outside}")
    (made / f"rootfs{outside}").mkdir(parents=True)
    assert runtime.run(made, "linked").stdout == "hello\n"
    assert list(outside.iterdir()) == []


def test_a_container_in_a_user_namespace_has_its_image(runtime, daemon, image, short_path):
    made = hooked_bundle(
        short_path / "b", daemon, "cat /data/etc/motd", {"/data": image}, has_user_namespace=True
    )
    assert runtime.run(made, "mapped").stdout == "hello\n"


def told(made, done):
    """What the runtime, and the hooks, have to say."""
    log = made / "hook.log"
    return done.stderr + (log.read_text() if log.exists() else "")


@pytest.mark.parametrize(
    ("annotations", "reason"),
    [
        ({"/data": "oci:/nowhere:x"}, "nowhere"),
        ({"/data": "IMAGE?subpath=missing"}, "sub path"),
        ({"/data": "IMAGE", "/more": "IMAGE?nosuch=1"}, "IMAGE?OPTION=VALUE"),
        ({"/../data": "IMAGE"}, "clean path"),
        ({"/": "IMAGE"}, "clean path"),
        ({"/etc/passwd/below": "IMAGE"}, "Not a directory"),
    ],
)
def test_what_cannot_be_mounted_keeps_the_container_from_starting(
    runtime, daemon, image, short_path, annotations, reason
):
    wanted = {path: value.replace("IMAGE", image) for path, value in annotations.items()}
    made = hooked_bundle(short_path / "b", daemon, "echo started", wanted)
    (made / "rootfs/etc/passwd").write_text("root\n")
    done = runtime.run(made, "bad", check=False)
    assert done.returncode != 0
    assert "started" not in done.stdout
    assert reason in told(made, done)
    assert sandboxes(daemon) == []


def test_without_a_daemon_the_container_does_not_start(runtime, daemon, image, short_path):
    made = hooked_bundle(short_path / "b", daemon, "echo started", {"/data": image})
    daemon.terminate()
    done = runtime.run(made, "alone", check=False)
    daemon.start()
    assert done.returncode != 0
    assert "started" not in done.stdout
    assert "no daemon is running" in told(made, done)


def test_containers_without_annotations_need_no_daemon(runtime, daemon, short_path):
    made = hooked_bundle(short_path / "b", daemon, "echo started", {})
    daemon.terminate()
    done = runtime.run(made, "plain", check=False)
    daemon.start()
    assert (done.returncode, done.stdout) == (0, "started\n")


def test_a_hook_gives_up_when_its_time_is_over(daemon, registry, proxy, short_path):
    require("runc")
    runtime = bundle.Runtime("runc", short_path / "state")
    proxy.delay(30)
    reference = proxy.reference("hook/stalled:v1")
    made = hooked_bundle(
        short_path / "b", daemon, "echo started", {"/data": reference}, "--deadline", "1"
    )
    began = time.monotonic()
    done = runtime.run(made, "late", check=False)
    assert time.monotonic() - began < 10
    assert done.returncode != 0
    assert "not ready after 1 s" in told(made, done)
    assert sandboxes(daemon) == []


def test_a_container_called_cli_leaves_what_the_command_has_mounted(
    runtime, daemon, image, short_path
):
    target = daemon.target("mnt")
    daemon.run("mount", image, target)
    runtime.run(hooked_bundle(short_path / "b", daemon, "true", {"/data": image}), "cli")
    wait_until(lambda: sandboxes(daemon) == ["cli"], what="the container's volume to go")
