"""Volumes of sandboxes, with real mounts: shared, rolled back, cleaned up, found again."""

import os
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from support import images
from support.daemon import Imgvol
from support.programs import wait_until
from support.runtime import ask_mounts, call, left_below, mount_for, our_mounts

pytestmark = pytest.mark.fuse

ONE = images.Image([images.Layer([images.directory("etc"), images.file("etc/motd", b"one")])])
TWO = images.Image([images.Layer([images.file("motd", b"two")], "zstd")])
READY_SECONDS = 2.0


@pytest.fixture
def layout(short_path):
    return images.write_layout(short_path / "layout", {"one": ONE, "two": TWO})


@pytest.fixture
def names(layout):
    return f"oci:{layout}:one", f"oci:{layout}:two"


@pytest.fixture
def pulled(daemon, names):
    for name in names:
        daemon.run("pull", name)
    return daemon


def test_two_containers_of_a_sandbox_share_one_mount(pulled, names, agent):
    one, two = names
    (first,) = mount_for(pulled, "pod-1", one)
    image_id = pulled.json("inspect", one)["image"]["id"]
    again, second = mount_for(pulled, "pod-1", image_id, two)
    assert again == first
    assert our_mounts(pulled) == sorted([first, second])
    (elsewhere,) = mount_for(pulled, "pod-2", one)
    assert elsewhere != first
    for path, content in [
        (f"{first}/etc/motd", b"one"),
        (f"{second}/motd", b"two"),
        (f"{elsewhere}/etc/motd", b"one"),
    ]:
        assert agent.ask_bytes("content", path=path) == content
    assert agent.errno_of("os", function="mkdir", arguments=[f"{first}/new"]) == "EROFS"
    pulled.run("lease", "rm", "pod-1")
    assert our_mounts(pulled) == [elsewhere]
    pulled.run("lease", "rm", "pod-2")
    assert left_below(pulled) == []
    assert pulled.json("lease", "ls") == []


def test_mounts_of_something_else_are_returned_as_they_are(pulled, names):
    ordinary = {"container_path": "/c", "host_path": "/srv", "propagation": "bidirectional"}
    wanted = {"container_path": "/d", "readonly": True, "image": names[0]}
    body = {"sandbox": "pod", "mounts": [ordinary, wanted]}
    status, answer = call(pulled, "POST", "/sandboxes/mounts", body)
    assert status == 200
    assert answer["mounts"][0].items() >= ordinary.items()
    assert answer["mounts"][1]["host_path"].startswith(f"{pulled.run_dir}/volumes/pod/")
    body = {"sandbox": "no-pod", "mounts": [ordinary]}
    assert call(pulled, "POST", "/sandboxes/mounts", body)[0] == 200
    assert [lease["id"] for lease in pulled.json("lease", "ls")] == ["pod"]


@pytest.mark.parametrize(
    ("change", "status", "text"),
    [
        ({"host_path": "/srv"}, 400, "hostpath must be empty while mount image"),
        ({"readonly": False}, 400, "readonly must be true while mount image"),
        ({"image": ""}, 400, "image not specified"),
        ({"image": "example.com/absent:1"}, 404, 'failed to resolve image "example.com/absent:1"'),
        ({"image": "UPPER::"}, 400, ""),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else None,
)
def test_one_bad_mount_undoes_all(pulled, names, change, status, text):
    good = {"container_path": "/a", "readonly": True, "image": names[0]}
    bad = {"container_path": "/b", "readonly": True, "image": names[1], **change}
    body = {"sandbox": "pod", "mounts": [good, bad]}
    got, answer = call(pulled, "POST", "/sandboxes/mounts", body)
    assert (got, answer["error"]["code"]) == (status, "image-volume-mount-failed")
    assert answer["error"]["message"].startswith(f"ImageVolumeMountFailed: {text}")
    assert our_mounts(pulled) == left_below(pulled) == []
    assert pulled.json("ps") == []


def test_a_mount_that_fails_in_the_kernel_undoes_those_before_it(pulled, names, agent):
    """Somebody has put something at the second target, which cannot be foreseen from the table."""
    (second,) = mount_for(pulled, "pod", names[1])
    pulled.run("lease", "rm", "pod")
    os.makedirs(second)
    with open(f"{second}/in-the-way", "w"):
        pass
    status, answer = ask_mounts(pulled, "pod", *names)
    assert status == 409
    assert "ImageVolumeMountFailed" in answer["error"]["message"]
    assert our_mounts(pulled) == []
    assert pulled.json("ps") == []
    os.unlink(f"{second}/in-the-way")
    mount_for(pulled, "pod", *names)


@pytest.mark.parametrize(
    "sandbox",
    ["..", ".", "a/b", "/etc", "../../etc", "a\nb", "a\x00b", "é", "", "a" * 129, "-", " ", "a b"],
)
def test_hostile_ids_are_refused(pulled, names, sandbox):
    status, answer = ask_mounts(pulled, sandbox, names[0])
    assert status == 400, answer
    status, _ = call(pulled, "POST", "/leases", {"lease": sandbox or "..", "images": [names[0]]})
    assert status == 400
    body = {"image": names[0], "sandbox": sandbox or ".."}
    assert call(pulled, "POST", "/volumes", body)[0] in {200, 400}
    assert left_below(pulled) == our_mounts(pulled) == []
    assert pulled.json("ps") == pulled.json("lease", "ls") == []


@pytest.mark.fault("F91")
def test_many_containers_at_once_get_one_mount(pulled, names):
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: mount_for(pulled, "pod", *names), range(24)))
    assert len({tuple(answer) for answer in answers}) == 1
    assert our_mounts(pulled) == sorted(answers[0])
    assert len(pulled.json("ps")) == 2


@pytest.mark.fault("F91")
def test_mounting_and_deleting_at_once_ends_in_one_of_both(pulled, names):
    def churn(number):
        if number % 3:
            return ask_mounts(pulled, "pod", *names)[0]
        return call(pulled, "DELETE", "/leases?lease=pod&drain=5")[0]

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(churn, range(60))) == {200}
    assert len(our_mounts(pulled)) == len(pulled.json("ps"))
    pulled.run("lease", "rm", "pod")
    assert left_below(pulled) == []


def test_an_image_is_never_pulled_for_a_sandbox(daemon, names):
    status, answer = ask_mounts(daemon, "pod", names[0])
    assert status == 404
    assert "imgvol pull" in answer["error"]["hint"]
    assert daemon.json("images") == []


def test_what_somebody_has_unmounted_is_bound_again(pulled, names, agent):
    (path,) = mount_for(pulled, "pod", names[0])
    subprocess.run(["umount", path], check=True)
    (volume,) = pulled.json("ps")
    assert (volume["state"], volume["reason"]) == ("lost", "somebody has unmounted it")
    assert mount_for(pulled, "pod", names[0]) == [path]
    assert our_mounts(pulled) == [path]
    assert agent.ask_bytes("content", path=f"{path}/etc/motd") == b"one"


@pytest.mark.fault("F73")
def test_somebody_elses_mount_is_not_taken_for_ours_and_not_unmounted(pulled, names):
    (path,) = mount_for(pulled, "pod", names[0])
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path], check=True)
    try:
        assert ask_mounts(pulled, "pod", names[0])[0] == 409
        status, answer = call(pulled, "DELETE", "/leases?lease=pod&drain=0&detach=true")
        assert status == 409
        assert "something else is mounted" in answer["error"]["fields"]["reasons"]
        assert our_mounts(pulled) == [path, path]
    finally:
        subprocess.run(["umount", path], check=True)
    pulled.run("lease", "rm", "pod")
    assert left_below(pulled) == []


@pytest.mark.fault("F72")
def test_a_lease_is_deleted_while_readers_hold_files(pulled, names, agent):
    busy, idle = mount_for(pulled, "pod", *names)
    handle = agent.ask("open", path=f"{busy}/etc/motd")
    failed = pulled.run("lease", "rm", "pod", "--drain", "1s", check=False)
    assert failed.returncode == 1
    assert "in use" in failed.stderr
    assert our_mounts(pulled) == [busy], "what was not in use is gone"
    assert not os.path.exists(idle)
    (lease,) = pulled.json("lease", "ls")
    assert lease["id"] == "pod"
    (gone,) = pulled.json("lease", "rm", "pod", "--drain", "0.1s", "--detach")
    assert gone == {"lease": "pod", "existed": True, "unmounted": [busy], "detached": [busy]}
    assert our_mounts(pulled) == left_below(pulled) == []
    assert agent.ask_bytes("read", fd=handle, size=10) == b"one", "readers keep what is open"
    agent.ask("close", fd=handle)


def test_a_lease_waits_for_readers_to_leave(pulled, names, agent):
    (path,) = mount_for(pulled, "pod", names[0])
    handle = agent.ask("open", path=f"{path}/etc/motd")
    timer = threading.Timer(1.0, lambda: agent.ask("close", fd=handle))
    timer.start()
    began = time.monotonic()
    pulled.run("lease", "rm", "pod", "--drain", "20s")
    timer.join()
    assert 0.9 < time.monotonic() - began < 10
    assert left_below(pulled) == []


def test_a_lease_that_runs_out_takes_its_volumes_along(pulled, names):
    pulled.run("lease", "create", "pod", "--expires", "1s")
    mount_for(pulled, "pod", names[0])
    wait_until(lambda: pulled.json("ps") == [], what="the volume has gone with its lease")
    assert pulled.json("lease", "ls") == []
    assert left_below(pulled) == []


def test_an_image_of_a_lease_stays_without_a_mount(pulled, names):
    pulled.run("lease", "create", "keep", "--image", names[0], "--label", "team=web")
    refused = pulled.run("rmi", names[0], check=False)
    assert refused.returncode == 1
    assert "imgvol lease rm keep" in refused.stderr
    assert [lease["id"] for lease in pulled.json("lease", "ls", "--label", "team=web")] == ["keep"]
    assert pulled.json("lease", "ls", "--label", "team=db") == []
    pulled.run("lease", "rm", "keep")
    pulled.run("rmi", names[0])
    unknown = pulled.run("lease", "rm", "keep", check=False)
    assert unknown.returncode == 1
    assert "no such lease" in unknown.stderr


# --- restarts ------------------------------------------------------------------------------------


@pytest.fixture
def killed(short_path, names):
    imgvol = Imgvol(short_path, supervisor=False)
    imgvol.start()
    for name in names:
        imgvol.run("pull", name)
    yield imgvol
    if imgvol.process.poll() is None:
        imgvol.terminate()
    assert not imgvol.unexpected_log()


def kill(imgvol):
    imgvol.process.send_signal(signal.SIGKILL)
    assert imgvol.process.wait(10) == -signal.SIGKILL


@pytest.mark.alone("measures time")
@pytest.mark.fault("F04")
def test_a_killed_daemon_leaves_errors_and_the_next_one_binds_every_volume_again(
    killed, names, agent
):
    paths = [path for n in range(60) for path in mount_for(killed, f"pod-{n}", *names)]
    kill(killed)
    assert {agent.errno_of("list", path=path) for path in paths} == {"ENOTCONN"}
    # Somebody unmounts one of the dead, and a mount that nobody recorded is left behind.
    subprocess.run(["umount", "-l", paths[0]], check=True)
    orphan = killed.run_dir / "volumes" / "gone" / "abc"
    orphan.mkdir(parents=True)
    subprocess.run(["mount", "--bind", paths[1], orphan], check=True)
    began = time.monotonic()
    killed.start()
    assert time.monotonic() - began < READY_SECONDS + 2
    assert our_mounts(killed) == sorted(paths)
    assert not orphan.parent.exists()
    assert {v["state"] for v in killed.json("ps")} == {"mounted"}
    for path in paths:
        content = "etc/motd" if "etc" in os.listdir(path) else "motd"
        assert agent.ask_bytes("content", path=f"{path}/{content}") in {b"one", b"two"}
    assert mount_for(killed, "pod-7", *names) == paths[14:16]
    assert our_mounts(killed) == sorted(paths)
    for n in range(60):
        assert call(killed, "DELETE", f"/leases?lease=pod-{n}")[0] == 200
    assert left_below(killed) == []


@pytest.mark.fault("F07")
def test_a_restart_by_signal_leaves_no_empty_directory(killed, names, agent):
    (path,) = mount_for(killed, "pod", names[0])
    killed.terminate()
    assert not os.path.exists(path)
    killed.start()
    assert agent.ask_bytes("content", path=f"{path}/etc/motd") == b"one"


def test_a_volume_that_cannot_be_restored_is_lost_until_it_can(killed, names, agent):
    killed.expected_log.append("cannot mount .* again")
    (path,) = mount_for(killed, "pod", names[0])
    kill(killed)
    index = _layer_of(killed, ONE) / "index"
    whole = index.read_bytes()
    index.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    killed.start()
    (volume,) = killed.json("ps")
    assert volume["state"] == "lost"
    assert volume["reason"]
    assert volume["reason"][:20] in killed.run("ps").stdout
    assert not os.path.exists(path), "no empty directory where files were"
    assert our_mounts(killed) == []
    (lease,) = killed.json("lease", "ls")
    assert lease["id"] == "pod"
    assert killed.run("rmi", names[0], check=False).returncode == 1, "the lease keeps it"

    index.write_bytes(whole)
    kill(killed)
    killed.start()
    assert [v["state"] for v in killed.json("ps")] == ["mounted"]
    assert agent.ask_bytes("content", path=f"{path}/etc/motd") == b"one"


def test_a_lost_volume_is_mounted_by_the_next_who_asks_or_goes_with_its_lease(killed, names):
    killed.expected_log.append("cannot mount .* again")
    paths = [*mount_for(killed, "pod", names[0]), *mount_for(killed, "other", names[0])]
    index = _layer_of(killed, ONE) / "index"
    whole = index.read_bytes()
    kill(killed)
    index.write_bytes(b"")
    killed.start()
    assert ask_mounts(killed, "pod", names[0])[0] == 500
    assert [v["state"] for v in killed.json("ps")] == ["lost", "lost"]
    index.write_bytes(whole)
    assert mount_for(killed, "pod", names[0]) == paths[:1]
    assert sorted(v["state"] for v in killed.json("ps")) == ["lost", "mounted"]
    killed.run("lease", "rm", "other")
    killed.run("lease", "rm", "pod")
    assert left_below(killed) == []


def test_somebody_mounts_over_a_dead_volume_and_keeps_it(killed, names, agent):
    killed.expected_log.append("cannot mount .* again")
    (path,) = mount_for(killed, "pod", names[0])
    kill(killed)
    subprocess.run(["mount", "-t", "tmpfs", "mine", path], check=True)
    try:
        killed.start()
        assert [v["state"] for v in killed.json("ps")] == ["lost"]
        with open("/proc/self/mountinfo") as table:
            assert f" {path} " in "".join(line for line in table if "tmpfs mine" in line)
        assert killed.run("lease", "rm", "pod", check=False).returncode == 1
    finally:
        subprocess.run(["umount", path], check=True)
    kill(killed)
    killed.start()
    assert agent.ask_bytes("content", path=f"{path}/etc/motd") == b"one"


def _layer_of(imgvol, image):
    return imgvol.root / "layers" / image.layers[0].digest.partition(":")[2]
