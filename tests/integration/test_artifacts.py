"""Artifacts of a real registry, through the command and as a mounted directory."""

import json
import os

import pytest

from imgvol.oci.digest import Digest
from support.artifacts import Artifact, Blob
from support.images import Layer, directory, file
from support.programs import run, wait_until

pytestmark = [pytest.mark.servers, pytest.mark.fuse]

WEIGHTS = os.urandom(3 << 20)
MODEL = Artifact([Blob(b'{"layers": 2}', "config.json"), Blob(WEIGHTS, "weights/part-1")])


@pytest.fixture(scope="module")
def model(registry):
    return MODEL.push(registry, "artifacts/model", "v1")


def test_every_command_takes_an_artifact(daemon, agent, model):
    target = daemon.target("mnt")
    daemon.run("mount", model, target)
    assert agent.ask_bytes("content", path=f"{target}/config.json") == b'{"layers": 2}'
    digest = agent.ask("digest", path=f"{target}/weights/part-1")
    assert f"sha256:{digest}" == str(Digest.of(WEIGHTS))
    assert sorted(name for name, _ in agent.ask("list", path=target)) == ["config.json", "weights"]
    with pytest.raises(OSError, match="Read-only file system"):
        agent.ask("os", function="unlink", arguments=[f"{target}/config.json"])

    (listed,) = daemon.json("images")
    manifest = str(Digest.of(MODEL.manifest_bytes()))
    assert (listed["id"], listed["manifest"], listed["platform"]) == (manifest, manifest, "")
    assert "any" in daemon.run("images").stdout.split()
    details = daemon.json("inspect", model)
    assert details["config"] is None
    assert details["manifest"]["artifactType"] == "application/vnd.example.thing"
    assert manifest in daemon.run("inspect", model).stdout
    assert daemon.run("ls", model, "/weights").stdout.split() == ["part-1"]
    assert daemon.run("cat", model, "/config.json").stdout == '{"layers": 2}'
    assert daemon.run("ls", manifest[7:19]).stdout.split() == ["config.json", "weights"]

    daemon.run("unmount", target)
    removed = daemon.json("rmi", model)
    assert manifest in json.dumps(removed)
    assert daemon.json("images") == []
    wait_until(lambda: not os.listdir(daemon.root / "layers"), what="the files to go")


def test_an_artifact_is_mounted_again_after_a_restart(daemon, agent, model):
    target = daemon.target("mnt")
    daemon.run("mount", model, target)
    before = agent.ask("stat", path=f"{target}/config.json")
    daemon.terminate()
    daemon.start()
    assert agent.ask_bytes("content", path=f"{target}/config.json") == b'{"layers": 2}'
    # The device is the mount's, which is another one.
    after = agent.ask("stat", path=f"{target}/config.json")
    assert {**after, "st_dev": 0} == {**before, "st_dev": 0}


@pytest.mark.parametrize("platform", ["linux/amd64", "linux/s390x"])
def test_an_artifact_is_for_every_platform(daemon, model, platform):
    daemon.run("pull", "--platform", platform, model)
    for asked in ("linux/arm64", platform):
        assert daemon.run("cat", "--platform", asked, model, "/config.json").stdout


@pytest.mark.parametrize("title", ["../../escaped", "/etc/cron.d/evil", "a//b", "x\ny"])
def test_an_artifact_with_a_hostile_title_is_refused(daemon, registry, title):
    artifact = Artifact([Blob(b"good", "good"), Blob(b"evil", title)])
    reference = artifact.push(registry, "artifacts/hostile", "latest")
    refused = daemon.run("mount", reference, daemon.target("mnt"), check=False)
    assert refused.returncode != 0
    assert "cannot have this name" in refused.stderr
    assert daemon.json("images") == []
    assert os.listdir(daemon.root / "ingest") == os.listdir(daemon.root / "layers") == []


def test_a_damaged_blob_is_refused(daemon, registry):
    artifact = Artifact([Blob(b"about to be damaged", "file")])
    reference = artifact.push(registry, "artifacts/damaged", "latest")
    registry.blob_path(artifact.layers[0].digest).write_bytes(b"about to be DAMAGED")
    refused = daemon.run("pull", reference, check=False)
    assert refused.returncode != 0
    assert "does not match its digest" in refused.stderr
    assert os.listdir(daemon.root / "layers") == []


def test_images_as_oras_pushes_them_are_mounted(daemon, agent, registry):
    """A config without diff IDs, a directory as a tar: the example of Kubernetes' KEP-4639."""
    layer = Layer([directory("dir"), file("dir/file", b"1"), file("file", b"2")], "gzip")
    image = Artifact(
        [
            Blob(
                layer.blob,
                "dir",
                "application/vnd.oci.image.layer.v1.tar+gzip",
                {"io.deis.oras.content.unpack": "true"},
            )
        ],
        artifact_type="",
        config_type="application/vnd.oci.image.config.v1+json",
        config=b'{"architecture":"amd64","os":"linux"}',
    )
    reference = image.push(registry, "artifacts/oras-image", "latest")
    target = daemon.target("mnt")
    daemon.run("mount", reference, target)
    assert agent.ask_bytes("content", path=f"{target}/dir/file") == b"1"
    details = daemon.json("inspect", reference)
    assert details["image"]["layers"][0]["diff_id"] == layer.diff_id


def test_artifacts_in_layouts_and_archives_are_read(daemon, model, tmp_path):
    for scheme, name in (("oci", "layout"), ("oci-archive", "archive.tar")):
        local = f"{scheme}:{tmp_path}/{name}:v1"
        run("skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{model}", local)
        assert daemon.run("cat", local, "/config.json").stdout == '{"layers": 2}'
