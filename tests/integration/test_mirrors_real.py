"""A daemon and real registries that stand for each other: pulls, and readers of mounted images."""

import json
from contextlib import ExitStack

import pytest

from support.daemon import running_daemon
from support.images import Image, Layer, file, push, sha256, write_layout
from support.programs import require, require_fuse, stop, wait_until
from support.proxy import running_proxy
from support.registry import PASSWORD, USERNAME, running_registry

pytestmark = pytest.mark.servers

CONTENT = b"the same everywhere" * 1000


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    image = Image([Layer([file("data", CONTENT)], "gzip")])
    return write_layout(tmp_path_factory.mktemp("layout"), {"v1": image})


class Network:
    """Registries, and what a daemon is told of them."""

    def __init__(self, stack, base):
        self._stack = stack
        self._base = base
        self.hosts_dir = base / "certs.d"
        self.yaml = base / "registries.yaml"
        self.hosts_dir.mkdir()
        self.yaml.write_text("{}")

    def registry(self, name, **settings):
        directory = self._base / name
        directory.mkdir()
        return self._stack.enter_context(running_registry(directory, **settings))

    def daemon(self, **limits):
        options = ("--hosts-dir", str(self.hosts_dir), "--registries-file", str(self.yaml))
        directory = self._base / "daemon"
        directory.mkdir(mode=0o755)
        return self._stack.enter_context(running_daemon(directory, *options, **limits))

    def hosts(self, domain, text):
        (self.hosts_dir / domain).mkdir(exist_ok=True)
        (self.hosts_dir / domain / "hosts.toml").write_text(text)

    def write_yaml(self, **document):
        self.yaml.write_text(json.dumps(document))


@pytest.fixture
def network(short_path):
    require("docker-registry", "skopeo")
    with ExitStack() as stack:
        yield Network(stack, short_path)


def asked(registry, name):
    return [line for line in registry.requests() if f"/v2/{name}/" in line]


def blobs(lines):
    return [line for line in lines if "/blobs/" in line]


def test_a_pull_goes_to_the_mirror_and_falls_back_without_a_restart(network, layout):
    own, mirror = network.registry("own"), network.registry("mirror")
    for name in ("both/image", "home/image"):
        push(layout, "v1", own.reference(f"{name}:v1"))
    push(layout, "v1", mirror.reference("both/image:v1"))
    before = len(blobs(own.requests()))
    network.hosts(own.host, f'[host."http://{mirror.host}"]\n')
    imgvol = network.daemon()

    imgvol.run("pull", own.reference("both/image:v1"))
    assert len(blobs(own.requests())) == before
    assert any("ns=" in line for line in asked(mirror, "both/image"))
    assert imgvol.run("cat", own.reference("both/image:v1"), "data").stdout == CONTENT.decode()

    # The mirror does not have this one.
    imgvol.run("rmi", own.reference("both/image:v1"))
    imgvol.run("pull", own.reference("home/image:v1"))
    assert any(" 404 " in line for line in asked(mirror, "home/image"))
    assert len(blobs(own.requests())) > before

    # And now it has gone.
    imgvol.run("rmi", own.reference("home/image:v1"))
    stop(mirror.process)
    imgvol.run("pull", own.reference("both/image:v1"))
    assert "is asked last for a while" in imgvol.log_end()


def test_a_mirror_that_may_only_deliver_and_knows_other_names(network, layout):
    own, mirror = network.registry("own"), network.registry("mirror")
    push(layout, "v1", own.reference("team/image:v1"))
    push(layout, "v1", mirror.reference("cache/own/team/image:any"))
    before = len(asked(own, "team/image"))
    network.write_yaml(
        mirrors={own.host: {"endpoint": [f"http://{mirror.host}"], "rewrite": {"(.*)": "none/$1"}}}
    )
    network.hosts(
        own.host,
        f'[host."http://{mirror.host}/v2/cache/own"]\noverride_path = true\n'
        'capabilities = ["pull"]\n',
    )
    imgvol = network.daemon()
    imgvol.run("pull", own.reference("team/image:v1"))
    mirrored = [line for line in asked(mirror, "cache/own/team/image") if line.startswith("GET")]
    assert len(mirrored) >= 3
    assert not any("/manifests/v1" in line for line in asked(mirror, "cache/own/team/image"))
    since = asked(own, "team/image")[before:]
    assert [line.split()[0] for line in since] == ["HEAD"]
    # hosts.toml speaks, until it is gone: then it is registries.yaml, by other names.
    (network.hosts_dir / own.host / "hosts.toml").unlink()
    imgvol.run("rmi", own.reference("team/image:v1"))
    imgvol.run("pull", own.reference("team/image:v1"))
    assert any(" 404 " in line for line in asked(mirror, "none/team/image"))


def test_a_login_is_configured_and_changed_without_a_restart(network, layout, tmp_path):
    own = network.registry("own", with_password=True)
    mirror = network.registry("mirror", with_password=True)
    plain = network.registry("plain")
    push(layout, "v1", plain.reference("some/image:v1"))
    stop(plain.process)
    # Its files as those of a registry that asks for a password.
    plain.root.rename(mirror.root)
    network.hosts(own.host, f'[host."http://{mirror.host}"]\n')
    imgvol = network.daemon()
    reference = own.reference("some/image:v1")

    refused = imgvol.run("pull", reference, check=False)
    assert refused.returncode != 0
    assert f"http://{mirror.host}/v2" in refused.stderr
    network.write_yaml(
        configs={mirror.host: {"auth": {"username": USERNAME, "password": PASSWORD}}}
    )
    imgvol.run("pull", reference)
    network.yaml.write_text("configs: {")
    imgvol.run("rmi", reference)
    broken = imgvol.run("pull", reference, check=False)
    assert broken.returncode != 0
    assert str(network.yaml) in broken.stderr
    everything = f"{refused.stderr}{broken.stderr}{imgvol.log.read_text()}"
    assert PASSWORD not in everything


@pytest.mark.parametrize("how", ["down", "reset"])
def test_readers_of_a_mounted_image_do_not_notice_that_a_mirror_goes_away(
    network, registry, lazy_images, agent, how
):
    require_fuse()
    image = lazy_images.get("podman")
    with running_proxy(registry.host) as own, running_proxy(registry.host) as mirror:
        network.hosts(own.host, f'[host."http://{mirror.host}"]\n')
        imgvol = network.daemon(FETCH_QUIET=0.2, FETCH_FLUSH=0.2)
        # Slow enough for the fault to come in the middle.
        line = mirror.throttle(2_000_000)
        target = imgvol.target("mnt")
        imgvol.run("mount", own.reference(image.name), target)
        assert own.seen == []
        reads = list(image.random_reads(target, 5, 40))
        if how == "down":
            wait_until(lambda: blobs_of(mirror), what="the mirror to be read")
            mirror.down()
        else:
            fault = mirror.reset_after(20_000, times=1000)
        read_together(agent, reads)
        wait_until(lambda: image.is_complete(imgvol), seconds=30, what="the layer to be complete")
        for name, data in image.files.items():
            assert f"sha256:{agent.ask('digest', path=f'{target}/{name}')}" == sha256(data), name
        assert blobs_of(own)
        asked_of_mirror = len(mirror.seen)
        if how == "reset":
            assert fault.fired
            # Ranges in flight at the same time find out together; those after them need not.
            assert fault.fired < len(blobs_of(own))
        line.lift()
        imgvol.run("unmount", target)
        assert len(mirror.seen) == asked_of_mirror
        assert "is asked last for a while" in imgvol.log.read_text()


def blobs_of(proxy):
    return [each for each in proxy.seen if each.is_blob]


def read_together(agent, reads):
    reads, wanted = zip(*reads, strict=True)
    found = agent.ask("read_together", reads=reads, readers=20, deadline=60)
    assert found == list(wanted)
