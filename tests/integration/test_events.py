"""Events of a real daemon, as a client of the API and the command line see them."""

import contextlib
import http.client
import json
import re
import socket
import subprocess
import threading

import pytest

from support import images
from support.daemon import running_daemon
from support.programs import stop, wait_until

IMAGE = images.Image([images.Layer([images.file("motd", b"hello")], "gzip")])


class Follower:
    """A connection that reads events in a thread until they end."""

    def __init__(self, imgvol, kinds=""):
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(imgvol.run_dir / "imgvol.sock"))
        self._connection = http.client.HTTPConnection("localhost")
        self._connection.sock = self._socket
        self._connection.request("GET", f"/v1/events?kinds={kinds}")
        self.answer = self._connection.getresponse()
        self.lines = [json.loads(self.answer.readline())]
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self):
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            for line in self.answer:
                self.lines.append(json.loads(line))

    def events(self):
        return [line for line in list(self.lines) if line["event"] != "alive"]

    def wait_end(self):
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._connection.close()


@pytest.fixture
def layout(short_path):
    return images.write_layout(short_path / "layout", {"v1": IMAGE})


def test_what_happens_to_an_image_is_told_to_all_who_follow(short_path, layout):
    name = f"oci:{layout}:v1"
    with running_daemon(short_path) as imgvol:
        everything, removals = Follower(imgvol), Follower(imgvol, "image.removed,pull.failed")
        assert everything.lines == [{"event": "alive"}], "from here on nothing is missed"
        imgvol.run("pull", name)
        image_id = imgvol.json("inspect", name)["image"]["id"]
        imgvol.run("rmi", name)
        absent = f"oci:{layout}:absent"
        assert imgvol.run("pull", absent, check=False).returncode == 1
        wait_until(lambda: len(removals.events()) == 2, what="both are told")
        told = [(e["event"], e["image"], e["id"], e["data"]) for e in everything.events()]
        assert told[0] == ("pull.progress", name, None, {"stage": "started"})
        assert ("pull.progress", name, image_id, {"stage": "done"}) in told
        steps = [(kind, image, id_) for kind, image, id_, _ in told]
        assert ("image.created", name, image_id) in steps
        assert ("image.removed", name, image_id) in steps
        kind, image, _, data = told[-1]
        assert (kind, image, data["code"]) == ("pull.failed", absent, "not-found")
        assert [e["event"] for e in removals.events()] == ["image.removed", "pull.failed"]
        imgvol.run("stop")
        for follower in (everything, removals):
            follower.wait_end()
            assert follower.lines[-1] == {"event": "done"}, "they are told that it ends"


def test_the_command_follows_until_the_daemon_ends(short_path, layout):
    name = f"oci:{layout}:v1"
    with running_daemon(short_path) as imgvol:
        plain, filtered = (
            subprocess.Popen(
                [*imgvol.command, "events", *options], stdout=subprocess.PIPE, text=True
            )
            for options in ([], ["--json", "--filter", "image.removed"])
        )
        try:
            # Both are connected once each has been told of a removal.
            told = []
            reader = threading.Thread(target=lambda: told.append(filtered.stdout.readline()))
            reader.start()
            while reader.is_alive():
                imgvol.run("pull", name)
                imgvol.run("rmi", name)
                reader.join(0.2)
            assert json.loads(told[0])["event"] == "image.removed"
            imgvol.run("pull", name)
            imgvol.run("stop")
            lines = plain.communicate(timeout=20)[0].splitlines()
            filtered.communicate(timeout=20)
            assert plain.returncode == filtered.returncode == 0
        finally:
            stop(plain)
            stop(filtered)
        shape = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d (\S+) (\S+)( [0-9a-f]{12})?( \S+=.*)?")
        assert all(shape.fullmatch(line) for line in lines), lines
        assert f" pull.progress {name} stage=started" in "\n".join(lines)


def test_a_kind_that_there_is_not_is_told_with_those_that_there_are(short_path):
    with running_daemon(short_path) as imgvol:
        failed = imgvol.run("events", "--filter", "image.eaten", check=False)
        assert failed.returncode == 1
        assert "image.eaten" in failed.stderr
        assert "image.created" in failed.stderr
