"""From what files say of a registry to whom to ask, in order."""

import os
from pathlib import Path

import pytest

from imgvol.config import RegistryPaths
from imgvol.errors import BadConfiguration, InvalidArgument
from imgvol.oci.digest import Digest
from imgvol.registry.hosts import Capability, RegistryOptions, TLSFiles
from imgvol.registry.registries import Registries

DIGEST = Digest.of(b"")
NOTHING = RegistryOptions()


class Files:
    """Files of configuration in a directory, and what becomes of them."""

    def __init__(self, root):
        self.root = root
        self.yaml = root / "registries.yaml"
        self.directory("")
        paths = RegistryPaths(hosts_dirs=(root / "certs.d",), registries_files=(self.yaml,))
        self.registries = Registries(paths)

    def directory(self, name):
        path = self.root / "certs.d" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def hosts(self, name, text):
        (self.directory(name) / "hosts.toml").write_text(text)

    def endpoints(self, domain, options=NOTHING):
        return self.registries.endpoints(domain, options)

    def bases(self, domain, options=NOTHING):
        return [str(endpoint.base) for endpoint in self.endpoints(domain, options)]


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def test_without_files_it_is_the_registry_itself(files):
    [endpoint] = files.endpoints("docker.io")
    assert str(endpoint.base) == "https://registry-1.docker.io/v2"
    assert endpoint.is_registry
    assert endpoint.is_authority
    assert endpoint.configured_by == ""


RANCHER = "'rancher/(.*)': 'rancher/prod/$1', 'longhornio/(.*)': 'longhornio/staging/$1'"


# --- registries.yaml ------------------------------------------------------------------------------

HUB = "https://registry-1.docker.io/v2"
REGISTRY_3 = "https://registry-3.io/v2"
MIRRORS = "https://registry-1.io, https://registry-2.io"
BOTH = ["https://registry-1.io/v2", "https://registry-2.io/v2"]


@pytest.mark.parametrize(
    ("mirrors", "domain", "expected"),
    [
        # The cases of containerd's registryEndpoints.
        ("", "registry-3.io", [REGISTRY_3]),
        (f"registry-3.io: {{endpoint: [{MIRRORS}]}}", "registry-3.io", [*BOTH, REGISTRY_3]),
        (f"'*': {{endpoint: [{MIRRORS}]}}", "registry-3.io", [*BOTH, REGISTRY_3]),
        (
            f"'*': {{endpoint: [registry-4.io]}}, registry-3.io: {{endpoint: [{MIRRORS}]}}",
            "registry-3.io",
            [*BOTH, REGISTRY_3],
        ),
        (
            f"registry-3.io: {{endpoint: [{MIRRORS}, http://registry-3.io]}}",
            "registry-3.io",
            [*BOTH, "http://registry-3.io/v2"],
        ),
        (
            f"registry-3.io: {{endpoint: [{MIRRORS}, https://registry-3.io]}}",
            "registry-3.io",
            [*BOTH, REGISTRY_3],
        ),
        (
            f"registry-3.io: {{endpoint: [{MIRRORS}, https://registry-3.io/path]}}",
            "registry-3.io",
            [*BOTH, "https://registry-3.io/path/v2"],
        ),
        (
            f"registry-3.io: {{endpoint: [https://registry-3.io, {MIRRORS}]}}",
            "registry-3.io",
            [REGISTRY_3, *BOTH],
        ),
        # The cases of k3s' endpoints.
        ("", "docker.io", [HUB]),
        (
            "docker.io: {endpoint: ['http://registry.example.com:5000/v2']}",
            "docker.io",
            ["http://registry.example.com:5000/v2", HUB],
        ),
        ("registry.example.com: {endpoint: [m.test]}", "docker.io", [HUB]),
        ("docker.io: {endpoint: [a.test, b.test]}", "docker.io",
         ["https://a.test/v2", "https://b.test/v2", HUB]),
        ("'*': {endpoint: [a.test]}, docker.io: {endpoint: [b.test]}", "docker.io",
         ["https://b.test/v2", HUB]),
        ("'*': {endpoint: [a.test]}", "docker.io", ["https://a.test/v2", HUB]),
        ("'*': {endpoint: [a.test]}, docker.io: {}", "docker.io", [HUB]),
        ("index.docker.io: {endpoint: [a.test]}", "docker.io", ["https://a.test/v2", HUB]),
        ("docker.io: {endpoint: [a.test, a.test, a.test/v2]}", "docker.io",
         ["https://a.test/v2", HUB]),
        ("docker.io: {endpoint: ['http://registry-1.docker.io']}", "docker.io",
         ["http://registry-1.docker.io/v2"]),
    ],
)  # fmt: skip
def test_endpoints_of_a_registries_yaml(files, mirrors, domain, expected):
    files.yaml.write_text(f"mirrors: {{{mirrors}}}")
    assert files.bases(domain) == expected


def test_a_mirror_is_told_whom_it_stands_for(files):
    files.yaml.write_text("mirrors: {docker.io: {endpoint: [a.test]}}")
    mirror, own = files.endpoints("docker.io")
    assert str(mirror.blob("a", DIGEST)) == f"https://a.test/v2/a/blobs/{DIGEST}?ns=docker.io"
    assert str(mirror.manifest("a", "v1")) == "https://a.test/v2/a/manifests/v1?ns=docker.io"
    assert str(mirror.referrers("a", DIGEST, "x/y")) == (
        f"https://a.test/v2/a/referrers/{DIGEST}?ns=docker.io&artifactType=x%2Fy"
    )
    assert str(own.blob("a", DIGEST)) == f"{HUB}/a/blobs/{DIGEST}"
    assert (mirror.is_registry, mirror.is_authority) == (False, False)
    assert mirror.configured_by == str(files.yaml)


@pytest.mark.parametrize(
    ("host", "rules", "domain", "path", "expected"),
    [
        # The cases of k3s' rewrites.
        ("docker.io", "", "docker.io", "library/busybox", "library/busybox"),
        ("docker.io", "'(.*)': 'docker/$1'", "docker.io", "library/busybox",
         "docker/library/busybox"),
        ("docker.io", "'(.*)': 'docker/$1'", "registry.local", "test", "test"),
        ("registry.local", "'(.*)': 'localimages/$1'", "registry.local", "test",
         "localimages/test"),
        ("docker.io", RANCHER,
         "docker.io", "rancher/rancher", "rancher/prod/rancher"),
        ("docker.io", RANCHER,
         "docker.io", "longhornio/longhorn-engine", "longhornio/staging/longhorn-engine"),
        ("docker.io", RANCHER,
         "docker.io", "library/busybox", "library/busybox"),
        ("docker.io", "'(.*)': 'docker.io/$1'", "docker.io", "library/busybox",
         "docker.io/library/busybox"),
        ("registry.k8s.io", "'(.*)': 'registry.k8s.io/$1'", "registry.k8s.io", "pause",
         "registry.k8s.io/pause"),
        ("docker.io", "'(.*)': 'mirrored-$1'", "docker.io", "library/busybox",
         "mirrored-library/busybox"),
        ("docker.io", "'(.*)': '$1/docker'", "docker.io", "library/busybox",
         "library/busybox/docker"),
        ("registry.local", "'/': '-'", "registry.local", "team1/images/test",
         "team1-images-test"),
    ],
)  # fmt: skip
def test_names_are_rewritten_for_mirrors_only(files, host, rules, domain, path, expected):
    files.yaml.write_text(f"mirrors: {{{host}: {{endpoint: [m.test], rewrite: {{{rules}}}}}}}")
    *mirrors, own = files.endpoints(domain)
    assert own.repository(path) == path
    assert [mirror.repository(path) for mirror in mirrors] == ([expected] if mirrors else [])
    assert bool(mirrors) == (host == domain)


@pytest.mark.expects_log("is left out: not a regular expression")
def test_a_rule_that_cannot_be_read_is_left_out(files, caplog):
    files.yaml.write_text(
        "mirrors: {docker.io: {endpoint: [m.test], rewrite: {'(.*': x, 'busy': 'lazy'}}}"
    )
    mirror, _ = files.endpoints("docker.io")
    assert mirror.repository("library/busybox") == "library/lazybox"
    assert 'mirrors."docker.io".rewrite."(.*" is left out' in caplog.text


def test_logins_and_tls_are_those_of_each_server(files):
    files.yaml.write_text(
        "mirrors: {docker.io: {endpoint: [m.test]}}\n"
        "configs:\n"
        "  m.test: {auth: {username: m, password: p}, tls: {ca_file: m.crt}}\n"
        "  docker.io: {auth: {username: hub, password: p}, tls: {ca_file: /hub.crt}}\n"
        "  other.test: {auth: {username: other, password: p}}\n"
    )
    mirror, own = files.endpoints("docker.io")
    assert mirror.login.credential.username == "m"
    assert mirror.tls == TLSFiles(authorities=(files.root / "m.crt",))
    assert own.login.credential.username == "hub"
    assert own.tls == TLSFiles(authorities=(Path("/hub.crt"),))
    assert own.login.file == str(files.yaml)
    [plain] = files.endpoints("nobody.test")
    assert plain.login is None


# --- hosts.toml -----------------------------------------------------------------------------------


def test_hosts_and_then_the_server(files):
    files.hosts("h.test", '[host."https://a.test"]\n[host."http://b.test:5000"]')
    assert files.bases("h.test") == [
        "https://a.test/v2",
        "http://b.test:5000/v2",
        "https://h.test/v2",
    ]
    files.hosts("h.test", 'server = "https://s.test"\n[host."https://h.test"]')
    first, last = files.endpoints("h.test")
    assert (str(first.base), first.is_registry, first.is_authority) == (
        "https://h.test/v2",
        True,
        False,
    )
    assert (str(last.base), last.is_registry, last.is_authority) == (
        "https://s.test/v2",
        False,
        True,
    )


@pytest.mark.parametrize(
    "names",
    [
        ["h.test:5000", "h.test_5000_", "h.test", "_default"],
        ["h.test_5000_", "h.test", "_default"],
        ["h.test", "_default"],
        ["_default"],
    ],
)
def test_the_first_directory_counts(files, names):
    for name in names:
        files.hosts(name, f'[host."https://{name.replace("_", "x").replace(":", "-")}.test"]')
    first, *_ = files.bases("h.test:5000")
    assert first == f"https://{names[0].replace('_', 'x').replace(':', '-')}.test/v2"


def test_the_first_root_counts_whatever_it_has(tmp_path):
    for root, name in (("a", "_default"), ("b", "h.test")):
        (tmp_path / root / name).mkdir(parents=True)
        (tmp_path / root / name / "hosts.toml").write_text(f'[host."https://{root}.test"]')
    paths = RegistryPaths(hosts_dirs=(tmp_path / "none", tmp_path / "a", tmp_path / "b"))
    first, _ = Registries(paths).endpoints("h.test", NOTHING)
    assert str(first.base) == "https://a.test/v2"


def test_plain_http_with_certificates_is_tried_with_tls_first(files):
    files.hosts(
        "h.test",
        '[host."http://a.test:5000"]\nskip_verify = true\n[host."http://b.test"]\nca = "x"',
    )
    endpoints = files.endpoints("h.test")
    assert [str(each.base) for each in endpoints] == [
        "https://a.test:5000/v2",
        "http://a.test:5000/v2",
        "http://b.test/v2",
        "https://h.test/v2",
    ]
    assert [bool(each.tls) for each in endpoints] == [True, False, False, False]


def test_a_directory_without_hosts_toml_has_certificates_as_docker_keeps_them(files):
    directory = files.directory("h.test:5000")
    (directory / "ca.crt").touch()
    [endpoint] = files.endpoints("h.test:5000")
    assert endpoint.tls == TLSFiles(authorities=(directory / "ca.crt",))
    files.yaml.write_text("mirrors: {'h.test:5000': {endpoint: [m.test]}}")
    mirror, endpoint = files.endpoints("h.test:5000")
    assert not mirror.tls
    assert endpoint.tls == TLSFiles(authorities=(directory / "ca.crt",))


def test_a_registry_on_this_machine_with_certificates_is_tried_with_tls_first(files):
    (files.directory("localhost:5000") / "ca.crt").touch()
    assert files.bases("localhost:5000") == [
        "https://localhost:5000/v2",
        "http://localhost:5000/v2",
    ]


# --- both -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("directory", "mirror", "expected"),
    [
        ("h.test", "h.test", "toml"),
        ("h.test", "'*'", "toml"),
        ("_default", "h.test", "yaml"),
        ("_default", "'*'", "toml"),
        ("other.test", "h.test", "yaml"),
        ("h.test", "other.test", "toml"),
        ("other.test", "'*'", "yaml"),
    ],
)
def test_who_names_the_registry_is_believed_and_hosts_toml_before_registries_yaml(
    files, directory, mirror, expected
):
    files.hosts(directory, '[host."https://toml.test"]')
    files.yaml.write_text(
        f"mirrors: {{{mirror}: {{endpoint: [yaml.test]}}}}\n"
        "configs: {toml.test: {auth: {username: t, password: p}},"
        " yaml.test: {auth: {username: y, password: p}}}"
    )
    first, last = files.endpoints("h.test")
    assert str(first.base) == f"https://{expected}.test/v2"
    assert first.login.credential.username == expected[0]
    assert str(last.base) == "https://h.test/v2"


# --- what a user asks for -------------------------------------------------------------------------

PLAIN = RegistryOptions(plain_http=True)


@pytest.mark.parametrize("kind", ["toml", "yaml"])
def test_options_of_a_pull_beat_files_and_are_for_the_registry_itself(files, kind):
    if kind == "toml":
        files.hosts("h.test", '[host."https://m.test"]\nca = "m.crt"')
    else:
        files.yaml.write_text(
            "mirrors: {h.test: {endpoint: [m.test]}}\n"
            "configs: {m.test: {tls: {ca_file: m.crt}}, h.test: {tls: {ca_file: h.crt}}}"
        )
    assert files.bases("h.test", PLAIN) == ["https://m.test/v2", "http://h.test/v2"]
    mirror, own = files.endpoints("h.test", RegistryOptions(ca_file=Path("/mine.crt")))
    assert mirror.tls.authorities[0].name == "m.crt"
    assert own.tls == TLSFiles(authorities=(Path("/mine.crt"),))
    assert files.endpoints("h.test", PLAIN)[-1].tls == TLSFiles()


def test_options_leave_one_endpoint_of_a_registry_on_this_machine(files):
    (files.directory("localhost:5000") / "ca.crt").touch()
    assert files.bases("localhost:5000", PLAIN) == ["http://localhost:5000/v2"]
    insecure = RegistryOptions(insecure=True)
    assert files.bases("localhost:5000", insecure) == ["https://localhost:5000/v2"]


def test_a_registry_that_cannot_be_is_refused_whatever_files_say(files):
    files.hosts("_default", '[host."https://m.test"]')
    with pytest.raises(InvalidArgument):
        files.endpoints("h.test:99999")


# --- files that change, and bad ones --------------------------------------------------------------


def test_files_are_read_again_when_they_have_changed(files):
    files.yaml.write_text("mirrors: {h.test: {endpoint: [a.test]}}")
    assert files.bases("h.test")[0] == "https://a.test/v2"
    other = files.root / "new"
    other.write_text("mirrors: {h.test: {endpoint: [b.test]}}")
    os.rename(other, files.yaml)
    assert files.bases("h.test")[0] == "https://b.test/v2"
    files.hosts("h.test", '[host."https://c.test"]')
    assert files.bases("h.test")[0] == "https://c.test/v2"
    files.hosts("h.test", '[host."https://longer.test"]')
    assert files.bases("h.test")[0] == "https://longer.test/v2"
    (files.directory("h.test") / "hosts.toml").unlink()
    files.yaml.unlink()
    assert files.bases("h.test") == ["https://h.test/v2"]


def test_a_hosts_toml_that_became_bad_is_an_error_for_its_registry_only(files):
    files.hosts("h.test", '[host."https://a.test"]')
    assert len(files.endpoints("h.test")) == 2
    files.hosts("h.test", '[host."https://a.test"]\ncapabilities = ["x"]')
    with pytest.raises(BadConfiguration) as caught:
        files.endpoints("h.test")
    assert caught.value.fields == {
        "file": files.root / "certs.d/h.test/hosts.toml",
        "key": 'host."https://a.test".capabilities',
    }
    assert files.bases("other.test") == ["https://other.test/v2"]
    files.hosts("h.test", '[host."https://a.test"]')
    assert len(files.endpoints("h.test")) == 2


def test_a_registries_yaml_that_became_bad_is_an_error_for_all_and_an_entry_for_its_registry(files):
    files.yaml.write_text("mirrors: {h.test: {endpoint: s3cret}}")
    with pytest.raises(BadConfiguration) as caught:
        files.endpoints("h.test")
    assert caught.value.fields == {"file": files.yaml, "key": 'mirrors."h.test".endpoint'}
    assert "s3cret" not in str(caught.value)
    assert files.bases("other.test") == ["https://other.test/v2"]
    files.yaml.write_text("mirrors: {h.test: {endpoint: s3cret}")
    with pytest.raises(BadConfiguration) as caught:
        files.endpoints("other.test")
    assert caught.value.fields == {"file": files.yaml}


@pytest.mark.parametrize("how", ["directory", "fifo", "large"])
def test_what_is_no_file_is_an_error_and_holds_nobody(files, how):
    match how:
        case "directory":
            files.yaml.mkdir()
        case "fifo":
            os.mkfifo(files.yaml)
        case "large":
            files.yaml.write_text("#" * 300_000)
    with pytest.raises(BadConfiguration) as caught:
        files.endpoints("h.test")
    assert caught.value.fields["file"] == files.yaml


def test_a_file_that_was_chosen_has_to_be_there(tmp_path):
    chosen = RegistryPaths().with_chosen([], str(tmp_path / "none.yaml"))
    with pytest.raises(BadConfiguration, match="not there"):
        Registries(chosen).endpoints("h.test", NOTHING)


def test_the_first_registries_yaml_that_is_there_counts_alone(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    registries = Registries(RegistryPaths(registries_files=(first, second)))
    second.write_text("mirrors: {h.test: {endpoint: [b.test]}}")
    assert len(registries.endpoints("h.test", NOTHING)) == 2
    first.write_text("mirrors: {}")
    assert len(registries.endpoints("h.test", NOTHING)) == 1


def test_an_empty_hosts_toml_is_none(files):
    files.hosts("h.test", "")
    files.yaml.write_text("mirrors: {h.test: {endpoint: [m.test]}}")
    assert files.bases("h.test") == ["https://m.test/v2", "https://h.test/v2"]


def test_a_mirror_that_may_only_deliver(files):
    files.hosts("h.test", '[host."https://m.test"]\ncapabilities = ["pull"]')
    mirror, own = files.endpoints("h.test")
    assert mirror.capabilities == Capability.PULL
    assert own.capabilities == Capability.ALL


@pytest.mark.parametrize("is_chosen", [False, True])
@pytest.mark.parametrize("call", ["open", "stat"])
def test_a_file_that_is_not_for_this_user_counts_only_if_it_was_chosen(
    files, monkeypatch, is_chosen, call
):
    files.hosts("h.test", '[host."https://m.test"]')
    files.yaml.write_text("mirrors: {h.test: {endpoint: [m.test]}}")
    refused = []

    def refuse(path, *_arguments, **_keywords):
        refused.append(path)
        raise PermissionError(13, "Permission denied")

    paths = RegistryPaths(
        hosts_dirs=(files.root / "certs.d",),
        registries_files=(files.yaml,),
        are_dirs_chosen=is_chosen,
        is_file_chosen=is_chosen and call == "open",
    )
    registries = Registries(paths)
    with monkeypatch.context() as patched:
        patched.setattr(f"imgvol.registry.registries.os.{call}", refuse)
        if is_chosen:
            with pytest.raises(BadConfiguration, match="permission denied"):
                registries.endpoints("h.test", NOTHING)
        elif call == "open":
            assert len(registries.endpoints("h.test", NOTHING)) == 1
        else:
            assert len(registries.endpoints("h.test", NOTHING)) == 2
    assert refused
