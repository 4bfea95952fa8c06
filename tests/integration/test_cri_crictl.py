"""crictl, the command that people and scripts ask the CRI with, against the real daemon."""

import json
import subprocess
import tempfile
from pathlib import Path

import pytest

from support import guards
from support.daemon import running_daemon
from support.images import Image, Layer, file, push, write_layout
from support.peers import require_peer
from support.programs import require_root

pytestmark = pytest.mark.servers

SECONDS = 60.0


class Crictl:
    """The command with its endpoints."""

    def __init__(self, program: Path, socket: Path) -> None:
        endpoint = f"unix://{socket}"
        # No configuration of this machine's.
        config = ["--config", "/dev/null"]
        self._command = [program, *config, "-r", endpoint, "-i", endpoint]

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [*self._command, *arguments],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def __call__(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, f"crictl {arguments}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def json(self, *arguments: str):
        return json.loads(self(*arguments))


@pytest.fixture(scope="module")
def crictl(our_roots):
    require_root()
    program = require_peer("crictl")
    with (
        tempfile.TemporaryDirectory(dir=our_roots[1]) as base,
        running_daemon(Path(base), "--runtime-handler", "kata=", serves_cri=True) as daemon,
    ):
        guards.shared_processes.add(daemon.process.pid)
        daemon.expected_log = ["but not mounted"]
        yield Crictl(program, daemon.cri_socket)
        guards.shared_processes.discard(daemon.process.pid)


@pytest.fixture(scope="module")
def reference(registry, tmp_path_factory):
    image = Image([Layer([file("a", b"a")], "gzip")], config={"User": "1002:3"})
    other = Image([Layer([file("b", b"b")], "gzip")])
    layout = write_layout(
        tmp_path_factory.mktemp("crictl") / "layout", {"v1": image, "v2": image, "v3": other}
    )
    for tag in ("v1", "v2", "v3"):
        push(layout, tag, registry.reference(f"crictl/x:{tag}"))
    return registry.reference("crictl/x")


@pytest.fixture(autouse=True)
def empty(crictl):
    yield
    for image in crictl.json("images", "-o", "json")["images"]:
        crictl("rmi", image["id"])
    assert crictl.json("images", "-o", "json")["images"] == []


def test_it_connects(crictl):
    assert "RuntimeName:  imgvol" in crictl("version")
    conditions = crictl.json("info")["status"]["conditions"]
    assert {c["type"]: c["status"] for c in conditions} == {
        "RuntimeReady": False,
        "NetworkReady": False,
    }


def test_an_image_is_pulled_listed_and_removed(crictl, reference):
    said = crictl("pull", f"{reference}:v1")
    image = said.split()[-1]
    assert "up to date" in said
    crictl("pull", f"{reference}:v2")

    (listed,) = crictl.json("images", "-o", "json")["images"]
    assert image in {listed["id"], *listed["repoDigests"]}
    assert listed["repoTags"] == [f"{reference}:v1", f"{reference}:v2"]
    assert int(listed["size"]) > 0
    assert listed["uid"]["value"] == "1002"
    assert listed["pinned"] is False

    crictl("rmi", f"{reference}:v1")
    assert crictl("images", "-q") == ""
    again = crictl.run("rmi", f"{reference}:v1")
    assert again.returncode != 0
    assert "no such image" in again.stderr


def test_every_flag_of_pull(crictl, reference, tmp_path):
    pod = tmp_path / "pod.json"
    pod.write_text(json.dumps({"metadata": {"name": "p", "namespace": "n", "uid": "u"}}))
    for flags in (
        ["--creds", "me:secret"],
        ["--auth", "bWU6c2VjcmV0"],
        ["--pod-config", str(pod)],
        ["--annotation", "a=b"],
        ["--pull-timeout", "30s"],
    ):
        assert "up to date" in crictl("pull", *flags, f"{reference}:v1"), flags
    late = crictl.run("pull", "--pull-timeout", "1ms", f"{reference}:v3")
    assert late.returncode != 0
    assert "DeadlineExceeded" in late.stderr


def test_every_flag_of_images(crictl, reference):
    crictl("pull", f"{reference}:v1")
    crictl("pull", f"{reference}:v3")
    everything = crictl.json("images", "-o", "json")["images"]
    assert len(everything) == 2
    ids = {image["id"] for image in everything}
    assert set(crictl("images", "-q").split()) == ids
    assert set(crictl("images", "-q", "--no-trunc").split()) == ids
    manifest = everything[0]["repoDigests"][0].rpartition("sha256:")[2]
    assert manifest[:12] in crictl("images", "--digests")
    assert f"ID: {everything[0]['id']}" in crictl("images", "-v")
    assert "repoTags:" in crictl("images", "-o", "yaml")
    assert reference in crictl("images", "-o", "table")
    shown = crictl("images", "--pinned").splitlines()
    assert "PINNED" in shown[0]
    assert [line.split()[-1] for line in shown[1:]] == ["false", "false"]
    assert len(crictl("images", "-q", f"{reference}:v1").split()) == 1
    assert crictl("images", "-q", f"{reference}:v2") == ""
    assert len(crictl("images", "-q", "-f", f"reference={reference}").split()) == 2
    assert crictl("images", "-q", "-f", "dangling=true") == ""
    assert len(crictl("images", "-q", "-f", "dangling=false").split()) == 2


def test_every_flag_of_inspecti(crictl, reference):
    crictl("pull", f"{reference}:v1")
    shown = crictl.json("inspecti", f"{reference}:v1")
    assert shown["status"]["username"] == ""
    assert shown["status"]["uid"]["value"] == "1002"
    info = shown["info"]
    assert info["chainID"].startswith("sha256:")
    assert info["imageSpec"]["config"]["User"] == "1002:3"
    assert "chainID" not in crictl("inspecti", "-q", f"{reference}:v1")
    assert "repoTags:" in crictl("inspecti", "-o", "yaml", f"{reference}:v1")
    template = ["-o", "go-template", "--template", "{{.status.id}}"]
    assert crictl("inspecti", *template, f"{reference}:v1").strip() == shown["status"]["id"]
    missing = crictl.run("inspecti", f"{reference}:v2")
    assert missing.returncode != 0
    assert "no such image" in missing.stderr


def test_all_are_removed_at_once(crictl, reference):
    crictl("pull", f"{reference}:v1")
    crictl("pull", f"{reference}:v3")
    crictl("rmi", "--all")
    assert crictl("images", "-q") == ""


def test_pruning_asks_a_runtime_for_its_containers_and_there_is_none(crictl, reference):
    crictl("pull", f"{reference}:v1")
    refused = crictl.run("rmi", "--prune")
    assert refused.returncode != 0
    assert "Unimplemented" in refused.stderr
    assert len(crictl("images", "-q").split()) == 1


def test_the_disk_is_told(crictl):
    (disk,) = crictl.json("imagefsinfo", "-o", "json")["status"]["imageFilesystems"]
    assert int(disk["usedBytes"]["value"]) > 0
    assert int(disk["inodesUsed"]["value"]) > 0
    assert Path(disk["fsId"]["mountpoint"]).is_dir()
    assert "mountpoint" in crictl("imagefsinfo", "-o", "yaml")
