"""The volume plugin: its protocol by a plain client, and its use by podman.

There is no dockerd here: that Docker itself gets along with the plugin is not tested. What is
tested is Docker's protocol as its documentation has it, and podman, which speaks the same one.
"""

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from imgvol import limits
from support.artifacts import Artifact, Blob
from support.bundle import make_rootfs
from support.daemon import running_daemon
from support.images import Image, Layer, directory, file, symlink, write_layout
from support.plugins import Plugin
from support.programs import SEARCH, require, require_fuse, require_root, run, wait_until

pytestmark = [pytest.mark.servers, pytest.mark.fuse]

IMAGE = Image(
    [
        Layer(
            [
                directory("data"),
                file("data/word", b"hello"),
                file("top", b"t"),
                symlink("link", "/data"),
                symlink("away", "../../../../etc"),
            ],
            "gzip",
        )
    ]
)


@pytest.fixture
def source(tmp_path):
    return f"oci:{write_layout(tmp_path / 'layout', {'v1': IMAGE})}:v1"


@pytest.fixture
def plugin_daemon(short_path):
    require_fuse()
    require_root()
    with running_daemon(short_path, "--docker-plugin", str(short_path / "imgvol.spec")) as imgvol:
        yield imgvol


@pytest.fixture
def plugin(plugin_daemon):
    return Plugin(plugin_daemon.run_dir / "docker.sock")


def volumes_of(daemon):
    return [volume["sandbox"] for volume in daemon.json("ps")]


def test_docker_finds_the_plugin(plugin_daemon, plugin):
    spec = plugin_daemon.base / "imgvol.spec"
    assert spec.read_text() == f"unix://{plugin_daemon.run_dir}/docker.sock\n"
    for body in (b"", b"null", b"{}"):
        assert plugin.send("/Plugin.Activate", body) == (200, {"Implements": ["VolumeDriver"]})
    assert plugin.call("Capabilities") == {"Capabilities": {"Scope": "local"}}
    plugin_daemon.terminate()
    plugin_daemon.start()
    spec.write_text("unix:///run/other.sock\n")
    plugin_daemon.terminate()
    with pytest.raises(AssertionError, match="names another socket"):
        plugin_daemon.start()
    assert spec.read_text() == "unix:///run/other.sock\n"
    spec.unlink()
    plugin_daemon.expected_log = ["spec file", "--docker-plugin"]
    plugin_daemon.start()


def test_a_volume_lives_from_create_to_remove(plugin_daemon, plugin, agent, source):
    plugin.call("Create", Name="words", Opts={"image": source})
    assert plugin.call("Path", Name="words") == {"Mountpoint": ""}
    assert volumes_of(plugin_daemon) == [], "nothing is mounted before it is used"

    path = plugin.call("Mount", Name="words", ID="one")["Mountpoint"]
    assert agent.ask_bytes("content", path=f"{path}/data/word") == b"hello"
    with pytest.raises(OSError, match="Read-only file system"):
        agent.ask("os", function="unlink", arguments=[f"{path}/top"])
    assert plugin.call("Mount", Name="words", ID="two") == {"Mountpoint": path}
    assert plugin.call("Mount", Name="words", ID="two") == {"Mountpoint": path}
    assert volumes_of(plugin_daemon) == ["docker-words"]
    assert plugin.call("Path", Name="words") == {"Mountpoint": path}
    found = plugin.call("Get", Name="words")["Volume"]
    assert (found["Name"], found["Mountpoint"]) == ("words", path)
    assert found["Status"] == {"image": source, "subpath": ""}
    (listed,) = plugin.call("List")["Volumes"]
    assert (listed["Name"], listed["Mountpoint"]) == ("words", path)

    assert "in use" in plugin.refusal("Remove", Name="words")
    plugin.call("Unmount", Name="words", ID="two")
    assert agent.ask_bytes("content", path=f"{path}/data/word") == b"hello"
    plugin.call("Unmount", Name="words", ID="nobody")
    assert volumes_of(plugin_daemon) == ["docker-words"]
    plugin.call("Unmount", Name="words", ID="one")
    assert volumes_of(plugin_daemon) == []
    assert plugin_daemon.json("lease", "ls") == []
    assert os.listdir(plugin_daemon.run_dir / "docker") == []
    plugin.call("Unmount", Name="words", ID="one")
    plugin.call("Remove", Name="words")
    assert plugin.call("List") == {"Volumes": []}
    assert "no such volume" in plugin.refusal("Get", Name="words")


def test_the_longest_name(plugin, agent, source):
    name = "n" * limits.NAMED_VOLUME_NAME
    plugin.call("Create", Name=name, Opts={"image": source})
    path = plugin.call("Mount", Name=name, ID="1")["Mountpoint"]
    assert agent.ask_bytes("content", path=f"{path}/top") == b"t"


def test_a_name_stands_for_one_image(plugin, source):
    plugin.call("Create", Name="a", Opts={"image": source})
    plugin.call("Create", Name="a", Opts={"image": source, "pull": "missing"})
    assert "another image" in plugin.refusal("Create", Name="a", Opts={"image": "alpine:3"})
    assert "another image" in plugin.refusal(
        "Create", Name="a", Opts={"image": source, "subpath": "data"}
    )


@pytest.mark.parametrize(
    ("subpath", "content"),
    [("data", b"hello"), ("link", b"hello"), ("../data", b"hello"), ("/data/.", b"hello")],
)
def test_a_sub_path_is_resolved_inside_the_image(plugin, agent, source, subpath, content):
    plugin.call("Create", Name="part", Opts={"image": source, "subpath": subpath})
    path = plugin.call("Mount", Name="part", ID="1")["Mountpoint"]
    assert agent.ask_bytes("content", path=f"{path}/word") == content
    plugin.call("Unmount", Name="part", ID="1")


@pytest.mark.parametrize("subpath", ["away", "missing", "top", "data/word/more"])
def test_a_sub_path_that_is_no_directory_is_refused(plugin_daemon, plugin, source, subpath):
    plugin.call("Create", Name="part", Opts={"image": source, "subpath": subpath})
    assert "sub path" in plugin.refusal("Mount", Name="part", ID="1")
    assert volumes_of(plugin_daemon) == []
    plugin.call("Remove", Name="part")


def test_what_may_not_be_pulled_is_not(plugin_daemon, plugin, registry):
    reference = Artifact([Blob(b"w", "weights")]).push(registry, "plugin/model", "v1")
    plugin.call("Create", Name="m", Opts={"image": reference, "pull": "never"})
    assert "not in the store" in plugin.refusal("Mount", Name="m", ID="1")
    plugin_daemon.run("pull", reference)
    path = plugin.call("Mount", Name="m", ID="1")["Mountpoint"]
    assert path == f"{plugin_daemon.run_dir}/docker/m"
    plugin.call("Unmount", Name="m", ID="1")
    plugin_daemon.run("rmi", reference)
    plugin.call("Create", Name="n", Opts={"image": reference})
    plugin.call("Mount", Name="n", ID="1")


@pytest.mark.parametrize("signal", ["terminate", "kill"])
def test_volumes_and_users_outlive_the_daemon(plugin_daemon, plugin, agent, source, signal):
    plugin.call("Create", Name="used", Opts={"image": source})
    plugin.call("Create", Name="idle", Opts={"image": source})
    path = plugin.call("Mount", Name="used", ID="1")["Mountpoint"]
    plugin.call("Mount", Name="used", ID="2")
    if signal == "terminate":
        plugin_daemon.terminate()
    else:
        plugin_daemon.kill()
    plugin_daemon.start()
    assert [v["Name"] for v in plugin.call("List")["Volumes"]] == ["idle", "used"]
    assert agent.ask_bytes("content", path=f"{path}/data/word") == b"hello"
    plugin.call("Unmount", Name="used", ID="1")
    assert "in use" in plugin.refusal("Remove", Name="used")
    plugin.call("Unmount", Name="used", ID="2")
    plugin.call("Remove", Name="used")


def test_users_of_what_is_not_mounted_any_more_are_forgotten(plugin_daemon, plugin, source):
    plugin.call("Create", Name="v", Opts={"image": source})
    plugin.call("Mount", Name="v", ID="1")
    plugin_daemon.run("stop", "--force")
    plugin_daemon.process.wait()
    plugin_daemon.start()
    plugin.call("Remove", Name="v")


def test_a_mount_that_somebody_took_away_is_made_again(plugin, agent, source):
    plugin.call("Create", Name="v", Opts={"image": source})
    path = plugin.call("Mount", Name="v", ID="1")["Mountpoint"]
    run("umount", path)
    assert plugin.call("Mount", Name="v", ID="2") == {"Mountpoint": path}
    assert agent.ask_bytes("content", path=f"{path}/top") == b"t"


def test_many_users_at_once_share_one_mount(plugin_daemon, plugin, source):
    plugin.call("Create", Name="v", Opts={"image": source})
    with ThreadPoolExecutor(20) as users:
        paths = set(
            users.map(lambda n: plugin.call("Mount", Name="v", ID=str(n))["Mountpoint"], range(40))
        )
        assert len(paths) == 1
        assert volumes_of(plugin_daemon) == ["docker-v"]
        list(users.map(lambda n: plugin.call("Unmount", Name="v", ID=str(n)), range(40)))
    assert volumes_of(plugin_daemon) == []
    plugin.call("Remove", Name="v")


HOSTILE_NAMES = ["", "/", "..", ".", "a/b", "../x", "a\0", "a\n", "-a", "ä", "n" * 121, 5, None, []]


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=repr)
def test_a_name_that_is_none_is_refused(plugin_daemon, plugin, source, name):
    plugin.refusal("Create", Name=name, Opts={"image": source})
    for call in ("Mount", "Unmount", "Get", "Path", "Remove"):
        plugin.refusal(call, Name=name, ID="1")
    assert plugin.call("List") == {"Volumes": []}
    assert not os.path.exists(plugin_daemon.run_dir / "docker")


@pytest.mark.parametrize(
    "options",
    [
        None,
        {},
        {"image": ""},
        {"image": "UPPER"},
        {"image": "oci:relative/path"},
        {"image": "alpine", "pull": "always"},
        {"image": "alpine", "subpath": "a\0b"},
        {"image": "alpine", "subpath": "a" * (limits.PATH_LENGTH + 1)},
        {"image": "alpine", "device": "/dev/sda"},
        {"image": 5},
        {"image": ["alpine"]},
        ["image"],
        "image",
    ],
    ids=lambda options: repr(options)[:40],
)
def test_options_that_make_no_sense_are_refused(plugin, options):
    plugin.refusal("Create", Name="v", Opts=options)
    assert plugin.call("List") == {"Volumes": []}


@pytest.mark.parametrize("user", ["i" * 256, 5, {}])
def test_the_id_of_a_mount_is_a_short_text(plugin_daemon, plugin, source, user):
    plugin.call("Create", Name="v", Opts={"image": source})
    plugin.refusal("Mount", Name="v", ID=user)
    assert volumes_of(plugin_daemon) == []


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/VolumeDriver.List", b"", 405),
        ("POST", "/VolumeDriver.Nothing", b"{}", 404),
        ("POST", "/v1/images", b"{}", 404),
        ("POST", "/VolumeDriver.Create", b"{", 400),
        ("POST", "/VolumeDriver.Create", b"[]", 400),
        ("POST", "/VolumeDriver.Create", b'"x"', 400),
        ("POST", "/VolumeDriver.Create", b"\xff\xfe", 400),
        ("POST", "/VolumeDriver.Create", b'{"Name":"a","Name":"b"}', 400),
        ("POST", "/VolumeDriver.Create", b"[" * 100_000, 400),
        ("POST", "/VolumeDriver.List", b" " * (limits.API_BODY_SIZE + 1), 413),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_nonsense_gets_an_answer(plugin, method, path, body, status):
    found, answer = plugin.send(path, body, method)
    assert found == status
    assert answer.get("Err") or (status == 413 and answer["error"]["message"])
    assert plugin.call("List") == {"Volumes": []}


def test_members_that_are_unknown_are_left_alone(plugin):
    plugin.send("/VolumeDriver.List", b'{"Future": {"a": [1]}}')
    assert plugin.call("List", Future=1) == {"Volumes": []}


@pytest.fixture
def podman(plugin_daemon, short_path):
    """podman with stores of its own and the plugin; returns a function that runs it."""
    require("podman", "runc")
    configuration = short_path / "containers.conf"
    socket = plugin_daemon.run_dir / "docker.sock"
    configuration.write_text(
        f'[engine]\nvolume_path = "{short_path}/volumes"\n'
        f'[engine.volume_plugins]\nimgvol = "{socket}"\n'
    )
    places = {name: short_path / f"podman-{name}" for name in ("root", "runroot", "tmpdir")}
    command = ["podman", *(f"--{name}={path}" for name, path in places.items())]
    command += ["--storage-driver=vfs", "--runtime=runc", "--cgroup-manager=cgroupfs"]
    command += ["--events-backend=none"]

    def call(*arguments, check=True):
        return subprocess.run(
            [*command, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=120,
            check=check,
            env={
                "PATH": SEARCH,
                "HOME": str(short_path),
                "CONTAINERS_CONF": str(configuration),
            },
        )

    yield call
    call("volume", "rm", "--all", "--force", check=False)


def test_podman_keeps_volumes_in_the_plugin(plugin_daemon, plugin, podman, agent, source):
    podman("volume", "create", "--driver", "imgvol", "--opt", f"image={source}", "words")
    assert [v["Name"] for v in plugin.call("List")["Volumes"]] == ["words"]
    (found,) = json.loads(podman("volume", "inspect", "words").stdout)
    assert (found["Driver"], found["Options"]) == ("imgvol", {"image": source})
    podman("volume", "mount", "words")
    path = f"{plugin_daemon.run_dir}/docker/words"
    assert agent.ask_bytes("content", path=f"{path}/data/word") == b"hello"
    podman("volume", "unmount", "words")
    assert volumes_of(plugin_daemon) == []
    podman("volume", "rm", "words")
    assert plugin.call("List") == {"Volumes": []}
    refused = podman(
        "volume", "create", "--driver", "imgvol", "--opt", "image=UPPER", "bad", check=False
    )
    assert refused.returncode != 0
    assert "UPPER" in refused.stderr


def test_podman_runs_a_container_with_a_volume(plugin_daemon, podman, source, short_path):
    podman("volume", "create", "--driver", "imgvol", "--opt", f"image={source}", "words")
    # An image, for podman 4.3 does not unmount the volumes of containers that have --rootfs.
    archive = short_path / "rootfs.tar"
    run("tar", "-C", make_rootfs(short_path / "rootfs"), "-cf", archive, ".")
    podman("import", "--quiet", archive, "localhost/empty:1")
    # Not more than what whoever runs the tests may have.
    limited = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]
    done = podman(
        *("run", "--rm", "--network=none", "--log-driver=none", *limited),
        *("-v", "/usr:/usr:ro", "-v", "words:/data", "localhost/empty:1"),
        *("/bin/sh", "-c", "cat /data/data/word; touch /data/new"),
        check=False,
    )
    assert done.stdout == "hello", done.stderr
    assert "Read-only file system" in done.stderr
    wait_until(lambda: volumes_of(plugin_daemon) == [], what="the volume to be unmounted")
