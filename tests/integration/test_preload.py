"""The preload directory of a real daemon, with archives that skopeo has made."""

import base64
import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter

import pytest

from imgvol import limits
from support.daemon import Imgvol, running_daemon
from support.images import Image, Layer, directory, file, push, write_layout
from support.programs import require, stop
from support.registry import PASSWORD, USERNAME, running_registry

SLOW_WRITER = """
import sys, time
data = open(sys.argv[1], "rb").read()
with open(sys.argv[2], "wb", buffering=0) as out:
    step = len(data) // 8 + 1
    for start in range(0, len(data), step):
        out.write(data[start : start + step])
        time.sleep(0.1)
"""

LARGE = 2_000_000_000


def image_of(name, size=0):
    content = name.encode() * (size // len(name) + 1)
    return Image([Layer([directory("etc"), file("etc/name", content)], "gzip")])


def copy(layout, tag, target):
    require("skopeo")
    command = ["skopeo", "--insecure-policy", "copy", "--quiet", f"oci:{layout}:{tag}", target]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Real archives: oci-archives and docker-archives in turns, some compressed."""
    home = tmp_path_factory.mktemp("archives")
    layout = write_layout(home / "layout", {f"v{n}": image_of(f"image {n}") for n in range(6)})
    made = []
    for number in range(6):
        name = f"registry.example/team/app{number}:v{number}"
        path = home / f"app{number}.tar"
        kind = "docker-archive" if number % 2 else "oci-archive"
        copy(layout, f"v{number}", f"{kind}:{path}:{name}")
        if number in {2, 3}:
            packed = path.with_suffix(".tar.gz")
            packed.write_bytes(gzip.compress(path.read_bytes()))
            path = packed
        made.append(path)
    return made


def status(imgvol):
    return imgvol.json("preload", "status")


def wait(imgvol, condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition(now := status(imgvol)):
        assert time.monotonic() < deadline, json.dumps(now, indent=1)[-4000:]
        time.sleep(0.1)
    return now


def states(now):
    return {os.path.basename(each["path"]): each["state"] for each in now["files"]}


def write_large_archive(path, name, workshop):
    """A docker-archive of two gigabytes, most of it zeros, so that little of it takes time."""
    layer = workshop / "layer.tar"
    big = tarfile.TarInfo("big")
    big.size = LARGE
    with open(layer, "wb") as out:
        out.write(big.tobuf())
        for position in range(0, LARGE, LARGE // 16):
            out.seek(tarfile.BLOCKSIZE + position)
            out.write(os.urandom(limits.MIB))
        out.truncate(tarfile.BLOCKSIZE + LARGE + 2 * tarfile.BLOCKSIZE)
    with open(layer, "rb") as read:
        diff_id = f"sha256:{hashlib.file_digest(read, 'sha256').hexdigest()}"
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        }
    ).encode()
    entry = {"Config": "config.json", "RepoTags": [name], "Layers": [layer.name]}
    with tarfile.open(path, "w") as archive:
        for member, data in (
            ("config.json", config),
            ("manifest.json", json.dumps([entry]).encode()),
        ):
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        archive.add(layer, layer.name)
    layer.unlink()


def place(source, target):
    """Puts a file there as one should."""
    beside = target.with_name(f".{target.name}")
    shutil.copyfile(source, beside)
    beside.rename(target)


def arrive(archives, images, count):
    """What a busy administrator does; returns the names of good files and of bad ones."""
    good, bad, writers = [], [], []
    for number in range(count):
        source = archives[number % len(archives)]
        suffix = "".join(source.suffixes)
        target = images / f"{number:02}{suffix}"
        match number % 10:
            case 3:
                data = source.read_bytes()
                target.write_bytes(data[: len(data) // 10])
                bad.append(target.name)
                continue
            case 4:
                writers.append(
                    subprocess.Popen([sys.executable, "-c", SLOW_WRITER, str(source), str(target)])
                )
            case 5:
                os.link(source, target)
            case 6:
                place(source, target.with_name(target.name.upper()))
                target = target.with_name(target.name.upper())
            case 7:
                (images / "below" / str(number)).mkdir(parents=True)
                target = images / "below" / str(number) / target.name
                place(source, target)
            case _:
                shutil.copyfile(source, target)
        good.append(target.name)
    for writer in writers:
        assert writer.wait(30) == 0
    return good, bad


def test_fifty_archives_come_in_while_some_are_written_and_some_are_cut(short_path, archives):
    base = short_path
    images = base / "images"
    images.mkdir()
    (images / ".cache.json").touch()
    with running_daemon(base, "--preload", str(images)) as imgvol:
        imgvol.expected_log.append(r"\.tar(\.gz)?: failed: ")
        write_large_archive(images / "large.tar", "registry.example/large:1", base)
        good, bad = arrive(archives, images, 50)
        good.append("large.tar")
        now = wait(imgvol, lambda now: not now["is_busy"] and len(now["files"]) == 51, 120)
        found = states(now)
        assert {name for name, state in found.items() if state == "imported"} == set(good)
        assert {name for name, state in found.items() if state == "failed"} == set(bad)
        assert now["imported"] == len(good), "each once"
        assert now["failed"] == len(bad), "each once"
        told = Counter(
            name
            for line in imgvol.log.read_text().splitlines()
            for name in bad
            if f"{name}: " in line
        )
        assert told == Counter(bad)
        listed = imgvol.json("images")
        assert all(image["pinned"] for image in listed)
        assert len(listed) == 7
        bad_count = len(bad)
        imgvol.terminate()
        imgvol.start()
        now = wait(imgvol, lambda now: not now["is_busy"] and now["is_ready"])
        assert (now["imported"], now["unchanged"]) == (0, len(good)), "as the cache file says"
        assert now["failed"] == bad_count, "tried again at each start"
        assert all(image["pinned"] for image in imgvol.json("images"))
        done = imgvol.run("preload", "status", "--wait", "--quiet", check=False)
        assert (done.returncode, done.stdout) == (1, "")
        # What is removed is not pinned any more, and stays.
        (images / "large.tar").unlink()
        wait(imgvol, lambda now: "large.tar" not in states(now))
        (image,) = [
            image for image in imgvol.json("images") if "registry.example/large:1" in image["names"]
        ]
        assert not image["pinned"]
        assert imgvol.run("ls", "registry.example/large:1", "/").stdout.strip() == "big"


def test_without_options_a_daemon_of_the_machine_preloads_from_its_store(short_path, archives):
    if os.getuid() != 0:
        pytest.skip("needs root: only its daemon is the machine's")
    with running_daemon(short_path, preloads=True) as imgvol:
        now = status(imgvol)
        assert now["directory"] == str(imgvol.root / "images")
        assert now["is_watched"]
        (imgvol.root / "images").mkdir()
        place(archives[0], imgvol.root / "images" / "a.tar")
        wait(imgvol, lambda now: states(now) == {"a.tar": "imported"})
        assert "a.tar" in imgvol.run("preload", "status").stdout
        assert imgvol.run("fsck").returncode == 0
        imgvol.terminate()
        imgvol.start("--no-preload")
        assert status(imgvol)["directory"] is None
        assert not any(image["pinned"] for image in imgvol.json("images"))
        assert "no preload directory" in imgvol.run("preload", "status").stderr


def test_a_daemon_that_waits_is_ready_when_all_of_it_is_here(short_path, archives):
    images = short_path / "images"
    images.mkdir()
    for number, path in enumerate(archives):
        shutil.copyfile(path, images / f"{number}{''.join(path.suffixes)}")
    options = ("--preload", str(images), "--preload-wait", "--retag-registry", "mirror.example/")
    with running_daemon(short_path, *options) as imgvol:
        assert set(states(status(imgvol)).values()) == {"imported"}
        names = {name for image in imgvol.json("images") for name in image["names"]}
        assert "registry.example/team/app0:v0" in names
        assert "mirror.example/team/app0:v0" in names


def test_a_list_is_pulled_once_and_works_without_a_network(short_path, registry):
    reference = registry.reference("preload/app:1")
    push(write_layout(short_path / "layout", {"x": image_of("listed")}), "x", reference)
    images = short_path / "images"
    images.mkdir()
    absent = registry.reference("preload/nobody:1")
    (images / "a.txt").write_text(f"# what we need\n\nBAD\n{absent}\n{reference}\n")
    with running_daemon(short_path, "--preload", str(images)) as imgvol:
        imgvol.expected_log.append(r"a\.txt: partial: line 3: ")
        now = wait(imgvol, lambda now: states(now) == {"a.txt": "partial"})
        (listed,) = now["files"]
        assert listed["images"] == [reference]
        assert [problem[:7] for problem in listed["problems"]] == ["line 3:", "line 4:"]
        (image,) = imgvol.json("images")
        assert image["pinned_by"] == [f"preload:{images}/a.txt"]
        (images / "a.txt").write_text(f"{reference}\n")
        now = wait(imgvol, lambda now: states(now) == {"a.txt": "imported"})


def test_a_list_is_pulled_with_the_logins_of_the_daemon(short_path, tmp_path, monkeypatch):
    require("docker-registry", "skopeo")
    images = short_path / "images"
    images.mkdir()
    logins = tmp_path / "auth.json"
    logins.write_text("{}")
    (tmp_path / "registry").mkdir()
    with running_registry(tmp_path / "registry", with_password=True) as registry:
        # Not before: docker-registry would take it for a part of its configuration.
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(logins))
        login = f"{USERNAME}:{PASSWORD}"
        reference = registry.reference("preload/private:1")
        layout = write_layout(short_path / "layout", {"x": image_of("private")})
        push(layout, "x", reference, login=login)
        (images / "a.txt").write_text(f"{reference}\n")
        with running_daemon(short_path, "--preload", str(images)) as imgvol:
            imgvol.expected_log.append(r"a\.txt: failed: line 1: ")
            wait(imgvol, lambda now: states(now) == {"a.txt": "failed"})
            auth = base64.b64encode(login.encode()).decode()
            logins.write_text(json.dumps({"auths": {registry.host: {"auth": auth}}}))
            os.utime(images / "a.txt")
            wait(imgvol, lambda now: states(now) == {"a.txt": "imported"})
            assert PASSWORD not in imgvol.log.read_text()


def test_killed_while_it_imports_it_imports_again_and_nothing_is_left(short_path, archives):
    """A large archive takes long enough to be killed in its middle."""
    images = short_path / "images"
    images.mkdir()
    (images / ".cache.json").touch()
    layout = write_layout(
        short_path / "layout", {"l": Image([Layer([file("big", os.urandom(60_000_000))], "gzip")])}
    )
    copy(layout, "l", f"oci-archive:{images}/large.tar:registry.example/large:1")
    imgvol = Imgvol(short_path, options=("--preload", str(images)), supervisor=False)
    imgvol.start()
    try:
        # Looked at right here: a command that asks would take as long as the import.
        ingest = imgvol.root / "ingest"
        deadline = time.monotonic() + 20
        while not any(ingest.iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        imgvol.process.kill()
        imgvol.process.wait()
        assert any(ingest.iterdir()), "it was in the middle of it"
        imgvol.start()
        now = wait(imgvol, lambda now: states(now) == {"large.tar": "imported"})
        assert now["imported"] == 1
        (image,) = imgvol.json("images")
        assert image["pinned"]
        assert not any(ingest.iterdir())
        assert imgvol.run("fsck").returncode == 0
    finally:
        stop(imgvol.process)


def test_told_to_stop_while_it_imports_it_goes_in_good_order(short_path):
    images = short_path / "images"
    images.mkdir()
    big = Image([Layer([file("big", os.urandom(60_000_000))], "gzip")])
    layout = write_layout(short_path / "layout", {"l": big})
    copy(layout, "l", f"oci-archive:{images}/large.tar:registry.example/large:1")
    imgvol = Imgvol(short_path, options=("--preload", str(images)))
    imgvol.start()
    try:
        wait(imgvol, lambda now: states(now) == {"large.tar": "working"})
        imgvol.terminate()
        assert imgvol.unexpected_log() == []
    finally:
        stop(imgvol.process)


def test_told_to_stop_while_it_waits_for_images_it_goes_in_good_order(short_path):
    """The registry takes the connection, and never answers."""
    images = short_path / "images"
    images.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        (images / "a.txt").write_text(f"{host}/x:1\n")
        imgvol = Imgvol(short_path, options=("--preload", str(images), "--preload-wait"))
        with open(imgvol.log, "ab") as log:
            imgvol.process = subprocess.Popen(imgvol._serve_command, stdout=log, stderr=log)
        try:
            silent.settimeout(30)
            connection, _ = silent.accept()
            with connection:
                assert states(status(imgvol)) == {"a.txt": "working"}, "the socket answers already"
                assert "ready: version" not in imgvol.log.read_text()
                imgvol.terminate()
        finally:
            stop(imgvol.process)
    assert imgvol.unexpected_log() == []


@contextlib.contextmanager
def refusing_proxy():
    """Refuses everybody; gives its URL, and what it was asked for."""
    asked = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    asked.append(connection.recv(4096).partition(b"\r\n")[0].decode())
                    connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def test_pulls_have_an_environment_of_their_own_and_the_log_a_file(short_path):
    """Another proxy is named for everything else, in the letters that come first."""
    log = short_path / "imgvol.log"
    with refusing_proxy() as (url, asked):
        changes = {
            "IMGVOL_ENV_HTTPS_PROXY": url,
            "https_proxy": "http://127.0.0.1:9",
            "IMGVOL_LOG_FILE": str(log),
        }
        imgvol = Imgvol(short_path, prelude=f"import os; os.environ.update({changes!r})")
        imgvol.start()
        try:
            assert imgvol.run("pull", "registry.example/app:1", check=False).returncode == 1
        finally:
            stop(imgvol.process)
    assert "CONNECT registry.example:443 HTTP/1.1" in asked
    assert "ready: version" in log.read_text()
    assert "ready: version" not in imgvol.log.read_text()
