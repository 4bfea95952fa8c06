"""Logins that come with pulls: what they open later, and where they are never found."""

import base64
import json
import os
from pathlib import Path

import pytest

from support import api_client
from support.daemon import running_daemon
from support.gates import PasswordGate
from support.images import sha256
from support.programs import require_fuse, wait_until

pytestmark = [pytest.mark.fuse, pytest.mark.servers]

MIB = 1 << 20
CANARY = "c4n4ry-p4ssw0rd"
USER = "jane"


@pytest.fixture
def logins_file(tmp_path, monkeypatch):
    """The file that a daemon started from now on looks for logins in; empty."""
    file = tmp_path / "auth.json"
    file.write_text("{}")
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(file))
    return file


@pytest.fixture
def gate(proxy):
    gate = PasswordGate(CANARY)
    proxy.gates = [gate]
    return gate


@pytest.fixture
def daemon(short_path, logins_file):
    """A daemon whose background leaves the content to readers."""
    require_fuse()
    # Retries of the registry's client would only make the refusals slower.
    with running_daemon(short_path, "--background-rate", "1k") as running:
        running.expected_log = ["its registry fails", "waits to be completed"]
        yield running


def mount(daemon, reference, target, password, *options, check=True):
    return daemon.run(
        "mount", "--lazy=auto", "--username", USER, "--password-stdin", *options, reference, target,
        given=f"{password}\n", check=check,
    )  # fmt: skip


def is_right(agent, image, path):
    digest = agent.ask("digest", path=path)
    return f"sha256:{digest}" == sha256(image.files["usr/lib/large"])


@pytest.mark.parametrize("lazy_image", ["estargz"], indirect=True)
def test_a_new_password_with_the_next_pull_opens_what_the_old_one_does_not(
    proxy, gate, daemon, agent, lazy_image
):
    reference = proxy.reference(lazy_image.name)
    first, second = daemon.target("first"), daemon.target("second")
    mount(daemon, reference, first, CANARY)
    # It came once, with the mount; reads of what is not here are let in by it.
    agent.ask("digest", path=f"{first}/usr/lib/m1.py")
    assert not lazy_image.is_complete(daemon)

    gate.password = "rotated"
    before = gate.refused
    assert agent.errno_of("digest", path=f"{first}/usr/lib/large") == "EIO"
    assert gate.refused > before

    # One that is refused is not kept.
    assert mount(daemon, reference, second, "w", "--pull=always", check=False).returncode == 1
    assert agent.errno_of("digest", path=f"{first}/usr/lib/large") == "EIO"

    mount(daemon, reference, second, "rotated", "--pull=always")
    # The source that was opened for the first mount takes the new login.
    wait_until(
        lambda: agent.errno_of("digest", path=f"{first}/usr/lib/large") == "OK",
        what="reads to recover",
    )
    assert is_right(agent, lazy_image, f"{first}/usr/lib/large")


@pytest.mark.parametrize("lazy_image", ["estargz"], indirect=True)
def test_after_a_restart_logins_in_files_serve(proxy, gate, daemon, agent, lazy_image, logins_file):
    target = daemon.target("mnt")
    mount(daemon, proxy.reference(lazy_image.name), target, CANARY)
    daemon.kill()
    daemon.start()
    path = f"{target}/usr/lib/large"
    assert agent.errno_of("digest", path=path) == "EIO"
    auth = base64.b64encode(f"{USER}:{CANARY}".encode()).decode()
    logins_file.write_text(json.dumps({"auths": {proxy.host: {"auth": auth}}}))
    wait_until(lambda: agent.errno_of("digest", path=path) == "OK", what="reads to be let in")
    assert is_right(agent, lazy_image, path)


def forms(secret):
    """A secret as it is, and as it is sent."""
    pair = base64.b64encode(f"{USER}:{secret}".encode()).decode()
    return [secret.encode(), pair.encode()]


def find_in_files(directory, wanted):
    return [
        (path, form)
        for parent, _, names in os.walk(directory)
        for name in names
        if (path := Path(parent, name)).is_file()
        for form in wanted
        if form in path.read_bytes()
    ]


@pytest.mark.parametrize("lazy_image", ["estargz"], indirect=True)
def test_a_login_is_found_nowhere(proxy, gate, daemon, agent, lazy_image, tmp_path):
    """Not on disk, in the log, in answers, metrics, command lines or environments."""
    reference, shown = proxy.reference(lazy_image.name), []

    def post(path, **body):
        answer = api_client.ask(
            daemon.run_dir / "imgvol.sock", "POST", f"/v1{path}", json.dumps(body).encode()
        )
        shown.append(answer.body)
        return answer

    target = daemon.target("mnt")
    shown.append(mount(daemon, reference, target, CANARY).stderr.encode())
    agent.errno_of("digest", path=f"{target}/usr/lib/large")
    pair = base64.b64encode(f"{USER}:{CANARY}".encode()).decode()
    for login in (
        {"username": USER, "password": CANARY},
        {"auth": pair},
        # And what can only be refused.
        {"auth": CANARY},
        {"registry_token": f"{CANARY} x"},
        {"password": [CANARY]},
        {"username": USER, "password": CANARY + "\0"},
    ):
        post("/images/pull", image=reference, **login)
    gate.challenge = f'Bearer realm="http://{proxy.host}/token"'
    for login in ({"identity_token": CANARY}, {"registry_token": CANARY}):
        answer = post("/images/pull", image=reference, **login)
        assert answer.documents[-1]["error"]["code"] == "unauthorized", answer.body
    gate.challenge = 'Basic realm="gate"'
    gate.password = "another"
    answer = post("/images/pull", image=reference, username=USER, password=CANARY)
    assert answer.documents[-1]["error"]["code"] == "unauthorized", answer.body
    agent.errno_of("digest", path=f"{target}/usr/lib/link")
    with pytest.raises(AssertionError, match="exited with 1") as refused:
        daemon.run("pull", "--username", USER, "--password-stdin", reference, given=CANARY)
    shown.append(str(refused.value).encode())
    metrics = api_client.ask(daemon.run_dir / "imgvol.sock", "GET", "/metrics")
    assert b"imgvol_" in metrics.body
    shown.append(metrics.body)
    processes = [Path(f"/proc/{pid}") for pid in (daemon.process.pid, daemon.worker_pid)]
    shown += [(each / name).read_bytes() for each in processes for name in ("cmdline", "environ")]
    wanted = forms(CANARY)
    # It was sent: what is looked for is what there would be to find.
    assert any(form.decode() in sent for sent in gate.seen for form in wanted)
    assert any(CANARY in sent for sent in gate.seen)
    for text in shown:
        assert not [form for form in wanted if form in text], text
    daemon.terminate()
    assert daemon.log.stat().st_size > 0
    assert (daemon.root / "imgvol.db").stat().st_size > 0
    assert find_in_files(daemon.base, wanted) == []
    # And that this finds what is there.
    (tmp_path / "kept").write_bytes(b"..." + wanted[1])
    assert find_in_files(tmp_path, wanted) == [(tmp_path / "kept", wanted[1])]
    daemon.start()
