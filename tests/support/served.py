"""A daemon that is asked odd things, and what has to be the same when all is over."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from support import images
from support.api_client import Answer, ask
from support.daemon import Imgvol, running_daemon
from support.guards import mounts_below

LEASE = "pod"


class Served:
    """A daemon with an image, a volume of it and a lease, and what else there is at first.

    Attributes:
        image: What it can pull without a network, and has pulled.
        layout: Where that is, and can be imported from.
        target: An empty directory to mount at.
    """

    def __init__(self, daemon: Imgvol, layout: Path, tag: str) -> None:
        self.daemon, self.layout, self.image = daemon, str(layout), f"oci:{layout}:{tag}"
        image = self.image
        self.target = daemon.target("target")
        daemon.run("mount", image, daemon.target("kept"))
        self.socket = daemon.run_dir / "imgvol.sock"
        self.post("leases", lease=LEASE)
        self.volumes, self.leases = self._volumes(), self._leases()
        self.images, self.mounts = self._images(), self._mounts()
        self.names = self._names()
        self.files = self._files()

    def post(self, path: str, **body: object) -> Answer:
        """Asks for what may fail; the answer says."""
        return ask(self.socket, "POST", f"/v1/{path}", json.dumps(body).encode())

    def restore(self) -> None:
        """Takes away what a request that was right has made, and makes what it has taken."""
        for volume in self._volumes() - self.volumes:
            self._delete("volumes", volume=volume)
        for lease in self._leases() - self.leases:
            self._delete("leases", lease=lease, drain=0)
        if self.post("leases/renew", lease=LEASE, expires=86_400).status == 404:
            assert self.post("leases", lease=LEASE).status == 200
        for name in self._names() - self.names:
            self._delete("images", image=name)
        if self._images() != self.images:
            self.post("images/unpin", image=self.image)
            answer = self.post("images/pull", image=self.image)
            assert answer.status == 200, answer.body

    def check_nothing_left(self) -> None:
        """Whatever is not there any more, or is there and was not."""
        self.restore()
        assert self._volumes() == self.volumes
        assert self._leases() == self.leases
        assert self._images() == self.images
        assert self._mounts() == self.mounts
        assert os.listdir(self.daemon.root / "ingest") == []
        assert [*(self.daemon.run_dir / "volumes").glob("*")] == []
        assert self._get("check")["wrong"] == []
        # What the pool of threads and sqlite keep open differs a little.
        assert self._files() <= self.files + 10

    def _delete(self, path: str, **query: object) -> None:
        answer = ask(self.socket, "DELETE", f"/v1/{path}?{urlencode(query)}")
        assert answer.status == 200, answer.body

    def _get(self, path: str) -> Any:
        return json.loads(ask(self.socket, "GET", f"/v1/{path}").body)

    def _volumes(self) -> set[str]:
        return {volume["id"] for volume in self._get("volumes")["volumes"]}

    def _leases(self) -> set[str]:
        return {lease["id"] for lease in self._get("leases")["leases"]}

    def _images(self) -> set[tuple[str, str, bool]]:
        return {
            (image["id"], str(image["names"]), image["pinned"])
            for image in self._get("images")["images"]
        }

    def _names(self) -> set[str]:
        return {name for image in self._get("images")["images"] for name in image["names"]}

    def _mounts(self) -> object:
        return mounts_below([str(self.daemon.base)])

    def _files(self) -> int:
        return len(os.listdir(f"/proc/{self.daemon.worker_pid}/fd"))


@contextlib.contextmanager
def served_daemon(base: Path) -> Iterator[Served]:
    """A daemon in a new directory; in the end it has what it had, and its log is clean."""
    base.mkdir(mode=0o755)
    content = images.Layer([images.file("etc/motd", b"hello")], "gzip")
    layout = images.write_layout(base / "layout", {"v": images.Image([content])})
    with pytest.MonkeyPatch.context() as environment:
        # Nothing is asked of the network: whatever is not on this machine is refused at once.
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            environment.setenv(name, "http://127.0.0.1:1")
        with running_daemon(base, RETRIES=0, CONNECT_RETRIES=0) as daemon:
            served = Served(daemon, layout, "v")
            yield served
            served.check_nothing_left()
