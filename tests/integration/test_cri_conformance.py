"""What the CRI's own conformance suite asks of an image service, against the real daemon.

The cases are those of critest (pkg/validate/image*.go, idempotence.go), with images that are made
here, in a registry on the loopback interface that has two names. Cases about containers are left
out: imgvol runs none.
"""

import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from support import guards
from support.cri import client_of
from support.daemon import running_daemon
from support.images import Image, Layer, file, push, write_layout
from support.metrics import scrape
from support.programs import require_root, wait_until
from support.registry import PASSWORD, USERNAME, running_registry

pytestmark = pytest.mark.servers


def made(content: str, user: str = "") -> Image:
    return Image([Layer([file(content, content.encode())], "gzip")], config={"User": user})


IMAGES = {
    "tag": {"test": made("tag"), "all": made("all")},
    "latest": {"latest": made("latest")},
    "digest": {"test": made("digest")},
    "one": {"latest": made("one")},
    "two": {"latest": made("two")},
    "three": {"latest": made("three")},
    "tags": dict.fromkeys(("1", "2", "3"), made("tags")),
    "pause": {"3": made("pause")},
    "user-uid": {"latest": made("uid", "1002")},
    "user-username": {"latest": made("username", "www-data")},
    "user-uid-group": {"latest": made("uid-group", "1003:users")},
    "user-username-group": {"latest": made("username-group", "www-data:100")},
    "nobody": {"latest": made("nobody")},
}


class Names:
    """What the images are called, by the registry's two names."""

    def __init__(self, registry) -> None:
        self.host = registry.host
        self.other = f"localhost:{registry.host.partition(':')[2]}"

    def __call__(self, name: str) -> str:
        return f"{self.host}/cri/{name}"

    def elsewhere(self, name: str) -> str:
        return f"{self.other}/cri/{name}"


@pytest.fixture(scope="module")
def names(registry, tmp_path_factory):
    named = Names(registry)
    for repository, tags in IMAGES.items():
        layout = write_layout(tmp_path_factory.mktemp(repository) / "layout", tags)
        for tag in tags:
            push(layout, tag, named(f"{repository}:{tag}"))
    return named


@pytest.fixture(scope="module")
def daemon(our_roots):
    require_root()
    with (
        tempfile.TemporaryDirectory(dir=our_roots[1]) as base,
        running_daemon(Path(base), serves_cri=True) as running,
    ):
        guards.shared_processes.add(running.process.pid)
        running.expected_log = ["but not mounted"]
        yield running
        guards.shared_processes.discard(running.process.pid)


@pytest.fixture
def client(daemon):
    with client_of(daemon.cri_socket) as client:
        yield client
        for image in client.images():
            client.remove(image.id)
        assert not client.images()


def test_an_image_with_a_tag_is_pulled_and_removed(client, names):
    """C1."""
    reference = names("tag:test")
    client.pull(reference)
    assert list(client.find(reference).repo_tags) == [reference]
    client.remove(reference)
    assert client.find(reference) is None


@pytest.mark.fault("F93")
def test_a_pull_ends_at_its_deadline(client, names):
    """C2."""
    with pytest.raises(grpc.RpcError) as caught:
        client.pull(names("tag:test"), timeout=0.001)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert client.pull(names("tag:test")), "and the next one is none the worse"


def test_an_image_without_a_tag_is_the_latest(client, names):
    """C3."""
    client.pull(names("latest"))
    assert list(client.find(names("latest")).repo_tags) == [names("latest:latest")]


def test_an_image_by_its_digest_has_no_tag(client, names):
    """C4."""
    client.pull(names("digest:test"))
    (by_digest,) = client.find(names("digest:test")).repo_digests
    client.remove(names("digest:test"))
    client.pull(by_digest)
    found = client.find(by_digest)
    assert (list(found.repo_tags), list(found.repo_digests)) == ([], [by_digest])
    assert by_digest.startswith(names("digest@sha256:"))


def test_a_status_is_the_same_by_every_kind_of_reference(client, names):
    """C5."""
    image = client.pull(names("tag:all"))
    expected = client.find(names("tag:all"))
    references = [image, image.partition(":")[2], *expected.repo_tags, *expected.repo_digests]
    assert len(references) == 4
    for reference in references:
        assert client.find(reference) == expected, reference


@pytest.mark.parametrize(
    ("name", "uid", "username"),
    [
        ("user-uid", 1002, ""),
        ("user-username", None, "www-data"),
        ("user-uid-group", 1003, ""),
        ("user-username-group", None, "www-data"),
        ("nobody", None, ""),
    ],
)
def test_a_status_tells_the_user(client, names, name, uid, username):
    """C6."""
    client.pull(names(name))
    found = client.find(names(name))
    assert found.username == username
    assert found.HasField("uid") == (uid is not None)
    assert found.uid.value == (uid or 0)
    assert found.size > 0


def test_three_images_are_listed_with_one_tag_each(client, names):
    """C7."""
    ids = [client.pull(names(name)) for name in ("one", "two", "three")]
    listed = client.images()
    assert sorted(image.id for image in listed) == sorted(ids)
    assert all(len(image.repo_tags) == 1 for image in listed)
    assert [image for batch in client.stream() for image in batch] == list(listed)


def test_one_image_is_listed_with_its_three_tags(client, names):
    """C8."""
    ids = {client.pull(names(f"tags:{tag}")) for tag in "123"}
    (image,) = client.images()
    assert {image.id} == ids
    assert list(image.repo_tags) == [names(f"tags:{tag}") for tag in "123"]


@pytest.mark.fault("F93")
def test_removing_one_tag_removes_them_all(client, names):
    """C9."""
    image = {client.pull(names(f"tags:{tag}")) for tag in "123"}.pop()
    client.remove(names("tags:1"))
    for reference in (image, *(names(f"tags:{tag}") for tag in "123")):
        assert client.find(reference) is None, reference


def test_removing_from_one_registry_removes_the_tags_of_others(client, names):
    """C10."""
    image = client.pull(names("pause:3"))
    assert client.pull(names.elsewhere("pause:3")) == image
    (listed,) = client.images()
    assert sorted(listed.repo_tags) == sorted([names("pause:3"), names.elsewhere("pause:3")])
    client.remove(names("pause:3"))
    assert client.find(names.elsewhere("pause:3")) is None
    assert client.find(image) is None


def test_what_is_removed_is_gone_at_once_and_what_is_pulled_is_there_at_once(client, names):
    """C11, C12."""
    for _ in range(5):
        image = client.pull(names("one"))
        assert [listed.id for listed in client.images()] == [image]
        assert client.find(image).id == image
        client.remove(image)
        assert not client.images()
        assert client.find(image) is None


@pytest.mark.fault("F93")
def test_many_may_remove_an_image_at_once(daemon, client, names):
    """C13."""
    image = client.pull(names("one"))

    def remove(_):
        with client_of(daemon.cri_socket) as own:
            own.remove(image)
            return own.find(image)

    with ThreadPoolExecutor(5) as pool:
        assert list(pool.map(remove, range(5))) == [None] * 5


def test_an_image_has_one_identifier_everywhere(client, names):
    """C14, without containers."""
    image = client.pull(names("one"))
    assert [listed.id for listed in client.images()] == [image]
    assert client.find(names("one")).id == image


def test_an_identifier_does_not_depend_on_the_registry(client, names):
    """C15."""
    assert client.pull(names("pause:3")) == client.pull(names.elsewhere("pause:3"))


@pytest.mark.fault("F93")
def test_removing_what_is_not_there_is_no_error(client):
    """C16."""
    for reference in (f"sha256:{'0' * 64}", "0" * 64, "registry.test/nothing:1"):
        client.remove(reference)
        client.remove(reference)


def test_the_disk_is_told_with_numbers(client, daemon):
    """C17 is not written in critest; that there is an entry is what kubelets need."""
    (disk,) = client.filesystems().image_filesystems
    assert disk.timestamp > 0
    assert os.path.isdir(disk.fs_id.mountpoint)
    assert disk.used_bytes.value > 0
    assert disk.inodes_used.value > 0


# --- beyond critest -------------------------------------------------------------------------------


def test_a_filter_gives_the_image_it_names(client, names):
    client.pull(names("one"))
    image = client.pull(names("two"))
    assert [found.id for found in client.images(names("two"))] == [image]
    assert [found.id for found in client.images(image[:20])] == [image]
    assert not client.images(names("three"))


def test_the_config_is_in_a_verbose_status(client, names):
    client.pull(names("user-uid"))
    info = client.status(names("user-uid"), verbose=True).info["info"]
    assert '"User": "1002"' in info
    assert '"chainID": "sha256:' in info


def test_a_missing_image_is_not_found(client, names):
    with pytest.raises(grpc.RpcError) as caught:
        client.pull(names("nothing:1"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_registry_that_is_not_there_is_named_as_kubelets_want_it(client):
    with pytest.raises(grpc.RpcError) as caught:
        client.pull("127.0.0.1:1/x:1")
    assert caught.value.code() is grpc.StatusCode.UNKNOWN
    assert caught.value.details().startswith("RegistryUnavailable: ")


def test_a_pull_uses_the_login_that_comes_with_it(client, daemon, tmp_path):
    with running_registry(tmp_path, with_password=True) as private:
        layout = write_layout(tmp_path / "layout", {"v1": made("private")})
        reference = private.reference("private:v1")
        push(layout, "v1", reference, login=f"{USERNAME}:{PASSWORD}")
        for login in ({}, {"username": USERNAME, "password": "wrong"}):
            with pytest.raises(grpc.RpcError) as caught:
                client.pull(reference, **login)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert "wrong" not in caught.value.details()
        assert client.pull(reference, username=USERNAME, password=PASSWORD)
    assert PASSWORD not in daemon.log.read_text()


def test_lists_are_answered_beside_a_pull_which_ends_with_its_client(
    client, daemon, registry, proxy, tmp_path
):
    image = Image([Layer([file("large", os.urandom(4 << 20))])])
    push(write_layout(tmp_path / "layout", {"v1": image}), "v1", registry.reference("cri/slow:v1"))
    line = proxy.throttle(200_000)
    call = client.start_pull(proxy.reference("cri/slow:v1"))
    wait_until(lambda: proxy.blob_bytes() > 100_000, what="the pull to be under way")
    began = time.perf_counter()
    assert client.images() == []
    assert time.perf_counter() - began < 1
    assert not call.done()
    call.cancel()
    wait_until(lambda: _pulls(daemon) == 0, seconds=5, what="the pull to end")
    line.lift()
    assert client.pull(proxy.reference("cri/slow:v1")), "the next one is none the worse"


def _pulls(daemon):
    return scrape(daemon.run_dir / "imgvol.sock")["imgvol_pulls_in_progress"]


def test_calls_are_in_the_metrics(client, daemon):
    client.version()
    seen = scrape(daemon.run_dir / "imgvol.sock")
    assert seen["imgvol_cri_calls_total", "code=OK", "method=Version"] >= 1


def test_the_socket_may_be_elsewhere(daemon, short_path):
    base, elsewhere = short_path / "base", short_path / "elsewhere" / "kubelet.sock"
    base.mkdir()
    with running_daemon(base, "--cri-socket", str(elsewhere), serves_cri=True) as asked:
        asked.expected_log = ["but not mounted"]
        assert not asked.cri_socket.exists()
        with client_of(elsewhere) as own:
            assert own.version().runtime_name == "imgvol"
    assert not elsewhere.exists()
