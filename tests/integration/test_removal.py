"""Images that are removed and pinned in a daemon with real mounts and restarts."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from imgvol.fs.session import LINGERING_CHECK
from support import images
from support.daemon import Imgvol, running_daemon
from support.metrics import scrape
from support.programs import wait_until
from support.runtime import call, mount_for

pytestmark = pytest.mark.fuse

ONE = images.Image([images.Layer([images.file("motd", b"one" * 1000)], "gzip")])
TWO = images.Image([images.Layer([images.file("motd", b"two")], "zstd")])


@pytest.fixture
def layout(short_path):
    return images.write_layout(short_path / "layout", {"one": ONE, "two": TWO})


@pytest.fixture
def imgvol(short_path):
    imgvol = Imgvol(short_path)
    imgvol.start()
    yield imgvol
    if imgvol.process.poll() is None:
        imgvol.terminate()
    assert not imgvol.unexpected_log()


def stored(imgvol):
    return sorted(path.name for path in (imgvol.root / "layers").iterdir())


def test_a_removed_image_is_gone_and_its_volume_reads_on_over_a_restart(imgvol, layout, agent):
    name = f"oci:{layout}:one"
    imgvol.run("pull", name)
    image_id = imgvol.json("images")[0]["id"]
    (path,) = mount_for(imgvol, "pod", name)
    assert "mounted" in imgvol.run("rmi", name, check=False).stderr
    (report,) = imgvol.json("rmi", "--force", name)
    assert (report["untagged"], report["freed"]) == ([name], 0)
    assert agent.ask_bytes("content", path=f"{path}/motd") == b"one" * 1000
    assert [image["names"] for image in imgvol.json("images")] == [[]]

    imgvol.kill()
    imgvol.start()
    assert agent.ask_bytes("content", path=f"{path}/motd") == b"one" * 1000
    (volume,) = imgvol.json("ps")
    assert (volume["state"], volume["image_id"]) == ("mounted", image_id)
    # By force it has no name to lose any more: as if it were not here.
    (report,) = imgvol.json("rmi", "--force", image_id)
    assert (report["untagged"], report["deleted"]) == ([], [])

    imgvol.run("gc")
    assert len(stored(imgvol)) == 1
    imgvol.run("lease", "rm", "pod")
    # Nobody has to ask for it.
    wait_until(lambda: stored(imgvol) == [], what="the collection")
    assert imgvol.json("images") == []


def test_five_removals_at_once_all_succeed(imgvol, layout):
    imgvol.run("pull", f"oci:{layout}:one")
    image_id = imgvol.json("images")[0]["id"]
    with ThreadPoolExecutor(5) as pool:
        wanted = f"/images?image={image_id}&force=true"
        answers = list(pool.map(lambda _: call(imgvol, "DELETE", wanted), range(5)))
    assert [status for status, _ in answers] == [200] * 5
    assert sorted(len(report["untagged"]) for _, report in answers) == [0, 0, 0, 0, 1]
    assert imgvol.json("images") == []
    assert stored(imgvol) == []


def test_what_is_pinned_stays_over_a_restart_and_is_explained(imgvol, layout):
    name = f"oci:{layout}:one"
    imgvol.run("pull", name)
    image_id = imgvol.json("images")[0]["id"]
    imgvol.run("pin", image_id)
    imgvol.run("rmi", name)
    imgvol.terminate()
    imgvol.start()
    imgvol.run("gc")
    (image,) = imgvol.json("images")
    assert (image["names"], image["pinned"], image["pinned_by"]) == ([], True, ["user"])
    (fate,) = [thing for thing in imgvol.json("gc", "--dry-run") if thing["kind"] == "image"]
    assert fate["reasons"] == [{"kind": "pin", "name": "by user"}]
    imgvol.run("unpin", image_id)
    imgvol.run("gc")
    assert imgvol.json("images") == []
    assert stored(imgvol) == []


def test_what_the_configuration_pins_is_pinned_when_it_comes(short_path, layout):
    name = f"oci:{layout}:one"
    with running_daemon(short_path, "--pin-image", name) as daemon:
        daemon.run("pull", name)
        daemon.run("pull", f"oci:{layout}:two")
        pinned = {tuple(image["names"]): image["pinned_by"] for image in daemon.json("images")}
        assert pinned == {(name,): ["config"], (f"oci:{layout}:two",): []}
        assert "stays pinned by: config" in daemon.run("unpin", name).stderr


def test_a_name_that_cannot_be_pinned_ends_the_start(short_path):
    imgvol = Imgvol(short_path, options=("--pin-image", "Not A Name"))
    with pytest.raises(AssertionError, match="did not start") as failed:
        imgvol.start()
    assert "repository name must be lowercase" in str(failed.value)


DEEP = images.Image(
    [
        images.Layer(
            [
                images.directory("usr"),
                images.directory("usr/share"),
                images.file("usr/share/file", b"deep" * 1000),
            ]
        )
    ]
)


@pytest.mark.parametrize("transport", ["pyfuse3", "kernel"])
def test_a_view_is_let_go_once_its_last_open_file_is_closed(short_path, agent, transport):
    layout = images.write_layout(short_path / "layout", {"deep": DEEP})
    with running_daemon(short_path, "--transport", transport) as daemon:
        target = daemon.target("mnt")
        daemon.run("mount", f"oci:{layout}:deep", target)
        handle = agent.ask("open", path=f"{target}/usr/share/file")
        daemon.run("unmount", "--detach", target)
        time.sleep(2 * LINGERING_CHECK)
        assert lingering(daemon) == 1
        assert agent.ask_bytes("pread", fd=handle, size=8, offset=0) == b"deepdeep"
        agent.ask("close", fd=handle)
        wait_until(lambda: lingering(daemon) == 0, seconds=20, what="the view is let go")


def lingering(daemon):
    return scrape(daemon.run_dir / "imgvol.sock")["imgvol_views", "state=lingering"]
