"""Collection when the worst comes: killed at any call, no room, damage at rest (F01, F20, F22, F27,
F30, F31, F38)."""

import contextlib
import os
import random
import re
import shutil
import signal
from functools import partial
from hashlib import sha256

import pytest

from support import images
from support.crash import Crash, calls, has_fired, prelude
from support.daemon import Imgvol
from support.programs import require_root, run, stop, wait_until

pytestmark = pytest.mark.fuse

NOISE = random.Random(5)
SHARED = NOISE.randbytes(1_100_000)
BASE = images.Layer([images.file("etc/base", b"base"), images.file("shared", SHARED)], "none")
KEPT = images.Image([BASE, images.Layer([images.file("kept", b"kept")], "gzip")])
GOING = images.Image(
    [
        BASE,
        images.Layer([images.file("going", b"x"), images.file("twin", SHARED)], "none"),
        images.Layer([images.file("own", NOISE.randbytes(1_200_000))], "none"),
    ]
)
# Every call takes some minutes; otherwise every so-manieth.
STEP = 1 if os.environ.get("IMGVOL_EVERY_CALL") == "1" else 8


@pytest.fixture
def layout(short_path):
    return images.write_layout(short_path / "layout", {"kept": KEPT, "going": GOING})


@pytest.fixture
def imgvol(short_path):
    """Started and killed by the test."""
    imgvol = Imgvol(short_path, supervisor=False)
    yield imgvol
    if imgvol.process is not None and imgvol.process.poll() is None:
        imgvol.terminate()


def files_below(root):
    return sorted(
        os.path.relpath(os.path.join(directory, name), root)
        for home in ("layers", "lazy", "places", "blobs", "files", "ingest")
        for directory, _, names in os.walk(root / home)
        for name in names
    )


@pytest.mark.slow
def test_a_daemon_that_dies_anywhere_in_a_collection_leaves_a_whole_store(imgvol, layout):
    imgvol.start()
    imgvol.run("pull", f"oci:{layout}:kept")
    expected = files_below(imgvol.root)
    imgvol.run("pull", f"oci:{layout}:going")
    imgvol.terminate()
    before = imgvol.base / "before"
    run("cp", "-a", imgvol.root, before)  # hard links stay hard links
    log = imgvol.base / "calls"

    def start(crash):
        shutil.rmtree(imgvol.root)
        run("cp", "-a", before, imgvol.root)
        log.unlink(missing_ok=True)
        imgvol.prelude = prelude(crash, log)
        imgvol.start()
        imgvol.prelude = "pass"

    start(Crash("name", 0))
    first = calls(log)
    imgvol.run("rmi", f"oci:{layout}:going")
    last = calls(log)
    stop(imgvol.process)
    points = [
        Crash(kind, number)
        for kind in ("name", "commit")
        for number in range(first[kind] + 1, last[kind] + 1)
    ]
    assert len(points) > 15
    fired = 0
    for crash in points[::STEP]:
        start(crash)
        imgvol.run("rmi", f"oci:{layout}:going", check=False)
        if imgvol.process.poll() is None:
            imgvol.process.terminate()
        died = imgvol.process.wait(20) == -signal.SIGKILL
        assert died == has_fired(crash, log)
        fired += died
        # Whatever is wrong by now, the next start puts right, and nothing else is wrong.
        imgvol.start()
        assert imgvol.json("fsck")["wrong"] == [], crash
        names = {name for image in imgvol.json("images") for name in image["names"]}
        assert f"oci:{layout}:kept" in names
        imgvol.run("rmi", f"oci:{layout}:going", check=False)
        imgvol.run("gc")
        assert imgvol.run("cat", f"oci:{layout}:kept", "/kept").stdout == "kept"
        imgvol.terminate()
        assert files_below(imgvol.root) == expected, crash
    assert fired > 0.8 * len(points[::STEP])


# --- no room --------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(imgvol):
    """The store on a filesystem of 24 MiB and 200 inodes."""
    require_root()
    imgvol.root.mkdir(mode=0o700)
    options = "size=24m,nr_inodes=200,mode=0700"
    run("mount", "-t", "tmpfs", "-o", options, "tmpfs", imgvol.root)
    yield imgvol
    if imgvol.process is not None and imgvol.process.poll() is None:
        imgvol.terminate()
    run("umount", imgvol.root)


def image_of(megabytes, files=0):
    small = [images.file(f"f{n}", b"x") for n in range(files)]
    large = images.file("large", NOISE.randbytes(megabytes << 20))
    return images.Image([images.Layer([large, *small], "none")])


@pytest.mark.fault("F20", "F22")
@pytest.mark.parametrize("lacking", ["blocks", "inodes"])
def test_a_pull_that_finds_no_room_collects_and_succeeds(small_disk, short_path, lacking):
    source = images.write_layout(short_path / "source", {"a": image_of(12), "b": image_of(4)})
    small_disk.start()
    small_disk.run("pull", f"oci:{source}:b")
    stray = small_disk.root / "layers" / ("0" * 64)
    stray.mkdir()
    if lacking == "blocks":
        (stray / "data").write_bytes(bytes(10 << 20))
    else:
        with contextlib.suppress(OSError):
            for number in range(1000):
                (stray / str(number)).touch()
    small_disk.run("pull", f"oci:{source}:a")
    assert "the disk is full: collected" in small_disk.log_end()
    assert not stray.exists()
    assert len(small_disk.json("images")) == 2
    assert small_disk.json("scrub")["faults"] == []


@pytest.mark.fault("F20")
def test_a_pull_that_can_never_fit_fails_once_and_leaves_nothing(small_disk, short_path):
    source = images.write_layout(short_path / "source", {"a": image_of(40), "b": image_of(4)})
    small_disk.start()
    small_disk.run("pull", f"oci:{source}:b")
    before = files_below(small_disk.root)
    failed = small_disk.run("pull", f"oci:{source}:a", check=False)
    assert failed.returncode == 1
    assert "no room" in failed.stderr
    assert small_disk.log_end().count("the disk is full") == 1
    assert files_below(small_disk.root) == before
    assert small_disk.json("fsck")["wrong"] == []
    assert small_disk.run("cat", f"oci:{source}:b", "/large", "--help").returncode == 0
    assert len(small_disk.json("images")) == 1


# --- damage at rest -------------------------------------------------------------------------------


def flip(path, offset):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0x10]))


def layer_of(imgvol, name, position=0):
    (image,) = [i for i in imgvol.json("images") if name in i["names"]]
    return imgvol.root / "layers" / image["layers"][position]["digest"].split(":")[1]


@pytest.mark.fault("F27")
@pytest.mark.parametrize("has_pieces", [True, False], ids=["pieces", "none"])
@pytest.mark.parametrize("where", ["data", "files/0"])
def test_a_flipped_bit_is_found_by_a_scrub_and_repaired_by_it(
    imgvol, layout, agent, where, has_pieces
):
    """All of these files are in one piece."""
    imgvol.start()
    name, target = f"oci:{layout}:kept", imgvol.target("mnt")
    imgvol.run("pull", name)
    imgvol.run("mount", name, target)
    assert imgvol.run("scrub").returncode == 0
    flip(layer_of(imgvol, name) / where, 700)
    assert imgvol.run("fsck", check=False).returncode == 0, "it does not read the data"
    if not has_pieces:
        (layer_of(imgvol, name) / "pieces").unlink()
    assert imgvol.run("scrub", check=False).returncode == 1
    assert agent.errno_of("digest", path=f"{target}/etc/base") == "EIO"
    other = imgvol.run("mount", "--pull=never", name, imgvol.target("other"), check=False)
    if has_pieces:
        assert agent.errno_of("digest", path=f"{imgvol.base}/other/etc/base") == "EIO"
    else:
        assert "has changed since" in other.stderr
    found = imgvol.run("fsck", check=False)
    assert found.returncode == 1
    assert "found to be bad" in found.stdout

    report = imgvol.json("scrub", "--repair")
    assert [fault["is_repaired"] for fault in report["faults"]] == [True]
    if not has_pieces:
        imgvol.run("unmount", target)
        # The layer closes with its last file, and the kernel tells of that in its own time.
        mounts = partial(imgvol.run, "mount", name, target, check=False)
        wait_until(lambda: mounts().returncode == 0, what="the layer to be opened anew")
    assert agent.ask("digest", path=f"{target}/etc/base") == sha256(b"base").hexdigest()
    assert agent.ask("digest", path=f"{target}/shared") == sha256(SHARED).hexdigest()
    assert imgvol.run("fsck").returncode == imgvol.run("scrub").returncode == 0


LARGE = NOISE.randbytes(5 << 20)
PIECE = 1 << 20
PARTS = images.Image(
    [
        images.Layer([images.file("large", LARGE), images.file("small", b"small")], "gzip"),
        images.Layer([images.file("above", b"above")], "gzip"),
    ]
)


def read_page(agent, path, offset):
    """The digest of a page of a file, or the name of the error."""
    (read,) = agent.ask("read_together", reads=[(path, offset, 4096)], readers=1)
    return read


def page_of(offset):
    return sha256(LARGE[offset : offset + 4096]).hexdigest()


@pytest.mark.fault("F27")
def test_only_the_damaged_part_of_a_layer_gives_errors(imgvol, short_path, agent):
    layout = images.write_layout(short_path / "parts", {"x": PARTS})
    imgvol.expected_log.append("is damaged")
    imgvol.start()
    name, target = f"oci:{layout}:x", imgvol.target("mnt")
    imgvol.run("pull", name)
    imgvol.run("mount", name, target)
    large = f"{target}/large"
    # The kernel has read it, and would go on showing it.
    assert agent.ask("digest", path=large) == sha256(LARGE).hexdigest()
    flip(layer_of(imgvol, name) / "files/0", 3 * PIECE)

    report = imgvol.json("scrub", check=False)
    (fault,) = report["faults"]
    assert [place["files"] for place in fault["places"]] == [["/large"]]
    assert fault["places"][0]["offset"] in range(2 * PIECE, 3 * PIECE + 1024)
    assert "/large" in imgvol.run("scrub", check=False).stdout

    def check_served():
        for offset in (0, PIECE, 4 * PIECE + 4096, len(LARGE) - 4096):
            assert read_page(agent, large, offset) == page_of(offset)
        assert read_page(agent, large, 3 * PIECE) == "EIO"
        assert agent.errno_of("digest", path=large) == "EIO"
        for path in ("small", "above"):
            digest = agent.ask("digest", path=f"{target}/{path}")
            assert digest == sha256(path.encode()).hexdigest()

    check_served()
    imgvol.process.send_signal(signal.SIGKILL)
    imgvol.process.wait(10)
    imgvol.start()
    check_served()  # mounted again, and the rest still served

    report = imgvol.json("scrub", "--repair")
    assert [fault["is_repaired"] for fault in report["faults"]] == [True]
    assert agent.ask("digest", path=large) == sha256(LARGE).hexdigest(), "where it was mounted"
    assert imgvol.run("fsck").returncode == imgvol.run("scrub").returncode == 0


@pytest.mark.fault("F01")
def test_a_daemon_that_dies_while_it_seals_the_digests_of_pieces(imgvol, short_path):
    image = images.Image([images.Layer([images.file("large", LARGE[: 2 * PIECE])], "gzip")])
    layout = images.write_layout(short_path / "sealed", {"x": image})
    name, log = f"oci:{layout}:x", imgvol.base / "calls"

    def start(crash):
        shutil.rmtree(imgvol.root, ignore_errors=True)
        log.unlink(missing_ok=True)
        imgvol.prelude = prelude(crash, log)
        imgvol.start()
        imgvol.prelude = "pass"

    start(Crash("write", 0))
    imgvol.run("pull", name)
    sealed = (layer_of(imgvol, name) / "pieces").read_bytes()
    imgvol.terminate()
    noted = re.findall(r"^call (\w+) (\d+) .*/pieces$", log.read_text(), re.MULTILINE)
    points = [Crash(kind, int(number)) for kind, number in noted]
    assert {point.kind for point in points} == {"write", "sync"}
    for crash in points:
        start(crash)
        imgvol.run("pull", name, check=False)
        assert imgvol.process.wait(20) == -signal.SIGKILL
        assert has_fired(crash, log), crash
        imgvol.start()
        assert imgvol.json("images") == []
        assert os.listdir(imgvol.root / "layers") == os.listdir(imgvol.root / "ingest") == []
        imgvol.run("pull", name)
        assert (layer_of(imgvol, name) / "pieces").read_bytes() == sealed
        assert imgvol.run("scrub").returncode == 0
        imgvol.terminate()


@pytest.mark.slow
@pytest.mark.fault("F27")
def test_a_daemon_that_dies_while_it_writes_down_what_is_damaged(imgvol, short_path, agent):
    layout = images.write_layout(short_path / "parts", {"x": PARTS})
    imgvol.expected_log.append("is damaged")
    name, target = f"oci:{layout}:x", imgvol.target("mnt")
    log = imgvol.base / "calls"
    imgvol.start()
    imgvol.run("pull", name)
    imgvol.terminate()
    good = imgvol.base / "good"
    run("cp", "-a", imgvol.root, good)

    def start(crash):
        shutil.rmtree(imgvol.root)
        run("cp", "-a", good, imgvol.root)
        log.unlink(missing_ok=True)
        imgvol.prelude = prelude(crash, log)
        imgvol.start()
        imgvol.prelude = "pass"
        flip(layer_of(imgvol, name) / "files/0", 3 * PIECE)
        # As of a layer that was stored before: the other one's are written anew, too.
        (layer_of(imgvol, name, 1) / "pieces").unlink()

    start(Crash("name", 0))
    first = calls(log)
    assert imgvol.run("scrub", check=False).returncode == 1
    last = calls(log)
    stop(imgvol.process)
    points = [
        Crash(kind, number)
        for kind in ("write", "sync", "name", "commit")
        for number in range(first[kind] + 1, last[kind] + 1)
    ]
    assert len(points) > 8
    for crash in points[:: 1 if STEP == 1 else 10]:
        start(crash)
        imgvol.run("scrub", check=False)
        imgvol.process.wait(20)
        assert has_fired(crash, log), crash
        imgvol.start()
        assert len(imgvol.json("scrub", check=False)["faults"]) == 1, crash
        imgvol.run("mount", "--pull=never", name, target)
        large = f"{target}/large"
        assert read_page(agent, large, 3 * PIECE) == "EIO"
        assert read_page(agent, large, 0) == page_of(0)
        assert imgvol.json("scrub", "--repair")["faults"][0]["is_repaired"], crash
        assert agent.ask("digest", path=large) == sha256(LARGE).hexdigest()
        imgvol.run("unmount", target)
        assert imgvol.run("scrub").returncode == 0
        imgvol.terminate()


@pytest.mark.fault("F31")
def test_a_damaged_database_is_told_rebuilt_and_kept(imgvol, layout, agent):
    imgvol.start()
    name, target = f"oci:{layout}:kept", imgvol.target("mnt")
    imgvol.run("pull", name)
    imgvol.terminate()
    imgvol.start()
    imgvol.run("mount", name, target)
    imgvol.process.send_signal(signal.SIGKILL)
    imgvol.process.wait(10)
    (imgvol.root / "imgvol.db").write_bytes(b"garbage" * 10_000)
    for suffix in ("-wal", "-shm"):
        (imgvol.root / f"imgvol.db{suffix}").unlink(missing_ok=True)
    with pytest.raises(AssertionError, match=re.escape("imgvol fsck --repair")):
        imgvol.start()

    found = imgvol.run("fsck", check=False)
    assert found.returncode == 1
    assert "database" in found.stdout
    assert target in found.stdout, "its daemon is gone"
    repaired = imgvol.run("fsck", "--repair")
    (kept,) = imgvol.root.glob("imgvol.db.damaged-*")
    assert str(kept) in repaired.stderr
    assert kept.read_bytes().startswith(b"garbage")
    assert agent.ask("list", path=target) == [], "detached"
    assert imgvol.run("fsck").stderr == "Nothing is wrong.\n"

    imgvol.start()
    (image,) = imgvol.json("images")
    assert image["names"] == [name]
    imgvol.run("mount", "--pull=never", name, target)
    assert agent.ask("digest", path=f"{target}/shared") == sha256(SHARED).hexdigest()


def test_repairing_is_refused_while_a_daemon_has_the_store(imgvol):
    imgvol.start()
    refused = imgvol.run("fsck", "--repair", check=False)
    assert refused.returncode == 1
    assert "imgvol stop" in refused.stderr


def test_a_mount_that_the_daemon_does_not_know_is_told(imgvol, layout):
    imgvol.start()
    target, other = imgvol.target("mnt"), imgvol.target("other")
    imgvol.run("mount", f"oci:{layout}:kept", target)
    run("mount", "--bind", target, other)
    try:
        (finding,) = imgvol.json("fsck", check=False)["wrong"]
        assert finding["subject"] == f"mount {other}"
    finally:
        run("umount", other)
    run("umount", target)
    (finding,) = imgvol.json("fsck", check=False)["wrong"]
    assert (finding["subject"], finding["problem"]) == (f"volume at {target}", "is not mounted")
    run("mount", "-t", "tmpfs", "tmpfs", target)  # unmount would refuse what is not ours
    run("umount", target)


def test_gc_explains_itself(imgvol, layout):
    imgvol.start()
    name, target = f"oci:{layout}:kept", imgvol.target("mnt")
    imgvol.run("pull", name)
    imgvol.run("mount", name, target)
    stray = imgvol.root / "layers" / ("0" * 64)
    stray.mkdir()
    table = imgvol.run("gc", "--dry-run").stdout
    assert re.search(r"^goes +layer +000000000000 +nothing$", table, re.MULTILINE)
    assert re.search(rf"^stays +image .*name {re.escape(name)}", table, re.MULTILINE)
    assert stray.exists()
    fates = imgvol.json("gc", "--dry-run")
    kinds = {reason["kind"] for fate in fates for reason in fate["reasons"]}
    assert kinds == {"name", "volume", "open view"}
    removed = imgvol.json("gc")
    assert [thing["digest"] for thing in removed["removed"]] == [f"sha256:{'0' * 64}"]
    assert not stray.exists()
    imgvol.run("unmount", target)
