"""A container runtime's view of a daemon: its API, and what is mounted for sandboxes."""

import http.client
import json
import os
import socket

from support.daemon import Imgvol


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str):
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def call(imgvol: Imgvol, method: str, path: str, body=None) -> tuple[int, dict]:
    """One request to the API; its status and its document.

    Raises:
        OSError, http.client.HTTPException: There was no whole answer.
    """
    connection = _Connection(str(imgvol.run_dir / "imgvol.sock"))
    try:
        connection.request(method, f"/v1{path}", body=None if body is None else json.dumps(body))
        answer = connection.getresponse()
        # A stream has one document per line, of which the last one counts.
        return answer.status, json.loads(answer.read().splitlines()[-1])
    finally:
        connection.close()


def ask_mounts(imgvol: Imgvol, sandbox: str, *wanted: str) -> tuple[int, dict]:
    """Asks for the volumes of a container, one per image."""
    mounts = [
        {"container_path": f"/data/{number}", "readonly": True, "image": image}
        for number, image in enumerate(wanted)
    ]
    return call(imgvol, "POST", "/sandboxes/mounts", {"sandbox": sandbox, "mounts": mounts})


def mount_for(imgvol: Imgvol, sandbox: str, *wanted: str) -> list[str]:
    """The host paths of the volumes of a container, one per image."""
    status, answer = ask_mounts(imgvol, sandbox, *wanted)
    assert status == 200, answer
    return [mount["host_path"] for mount in answer["mounts"]]


def our_mounts(imgvol: Imgvol) -> list[str]:
    """Mount points below the directory of volumes, from the kernel's table."""
    with open("/proc/self/mountinfo") as table:
        points = [line.split()[4] for line in table]
    return sorted(point for point in points if point.startswith(f"{imgvol.run_dir}/volumes/"))


def left_below(imgvol: Imgvol) -> list[str]:
    """Whatever there is in the directory of volumes; of mounts, only their points."""
    top = imgvol.run_dir / "volumes"
    homes = [entry.path for entry in os.scandir(top)] if top.exists() else []
    return homes + [entry.path for home in homes for entry in os.scandir(home)]
