"""k3s' registries.yaml: mirrors, rewrites, logins, TLS."""

import base64
from pathlib import Path

import pytest

from imgvol import limits
from imgvol.registry.config_files import BadKey
from imgvol.registry.credentials import Credential
from imgvol.registry.hosts import TLSFiles
from imgvol.registry.redaction import Secret
from imgvol.registry.registries_file import RegistriesFile, lookup_names

HERE = Path("/etc/rancher/k3s")


def parse(text):
    return RegistriesFile.parse(text.encode())


def auth(text):
    return parse(f"configs: {{h.test: {{auth: {text}}}}}").login_for("h.test")


def tls(text):
    return parse(f"configs: {{h.test: {{tls: {text}}}}}").tls_for("h.test", HERE)


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("h.test", ("h.test", "h.test:443", "h.test:80", "*")),
        ("h.test:5000", ("h.test:5000", "*")),
        ("[::1]", ("[::1]", "[::1]:443", "[::1]:80", "*")),
        ("[::1]:5000", ("[::1]:5000", "*")),
    ],
)
def test_names_to_look_up(server, expected):
    assert lookup_names(server) == expected


def test_the_hub_has_several_names():
    assert lookup_names("index.docker.io")[:2] == ("index.docker.io", "docker.io")
    assert lookup_names("docker.io")[0] == "docker.io"


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("http://registry.example.com:5000/v2", "http://registry.example.com:5000/v2"),
        ("http://registry.example.com:5000/v2/", "http://registry.example.com:5000/v2"),
        ("http://registry.example.com:5000", "http://registry.example.com:5000/v2"),
        ("https://m.test/", "https://m.test/v2"),
        ("https://m.test/path", "https://m.test/path/v2"),
        ("https://m.test/path/v2/", "https://m.test/path/v2"),
        ("https://m.test/v2/project", "https://m.test/v2/project"),
        ("docker2.example.com/v2", "https://docker2.example.com/v2"),
        ("docker2.example.com", "https://docker2.example.com/v2"),
        ("localhost:5000", "http://localhost:5000/v2"),
        ("127.0.0.1:5000", "http://127.0.0.1:5000/v2"),
        ("[::1]:5000", "http://[::1]:5000/v2"),
        ("localhost:443", "https://localhost/v2"),
        ("127.0.0.1:443/v2", "https://127.0.0.1/v2"),
        ("https://localhost:5000", "https://localhost:5000/v2"),
    ],
)
def test_an_endpoint(endpoint, expected):
    [base] = parse(f"mirrors: {{h.test: {{endpoint: ['{endpoint}']}}}}").mirrors_of("h.test").bases
    assert str(base) == expected


@pytest.mark.expects_log("is left out")
@pytest.mark.parametrize(
    "endpoint",
    ["/v2", "", "https://", "ftp://h.test", "https://a b", "https://jane:s3cret@m.test", ":5000"],
)
def test_an_endpoint_that_is_none_is_left_out(endpoint, caplog):
    text = f"mirrors: {{h.test: {{endpoint: ['{endpoint}', 'https://m.test']}}}}"
    assert [str(base) for base in parse(text).mirrors_of("h.test").bases] == ["https://m.test/v2"]
    assert 'mirrors."h.test".endpoint[0] is left out' in caplog.text
    assert "s3cret" not in caplog.text


def test_the_first_name_hides_the_others():
    file = parse("mirrors: {'*': {endpoint: [a.test]}, h.test: {endpoint: []}}")
    assert file.mirrors_of("h.test").bases == ()
    assert file.mirrors_of("h.test").is_named
    assert not file.mirrors_of("other.test").is_named
    assert parse("mirrors: {a.test: }").mirrors_of("h.test") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{username: jane, password: 0123}", Credential(username="jane", password=Secret("0123"))),
        (
            "{username: jane, password: p, identity_token: t}",
            Credential(username="jane", password=Secret("p")),
        ),
        ("{identity_token: abcd, auth: x}", Credential(identity_token=Secret("abcd"))),
        (
            f"{{auth: {base64.b64encode(b'jane:a:b').decode()}}}",
            Credential(username="jane", password=Secret("a:b")),
        ),
        (
            f"{{auth: {base64.b64encode(b'jane:pad' + bytes(2)).decode()}}}",
            Credential(username="jane", password=Secret("pad")),
        ),
        ("{}", None),
        ("", None),
        ("{username: jane}", None),
    ],
)
def test_a_login(text, expected):
    assert auth(text) == expected


def test_whose_login():
    file = parse(
        "configs:\n"
        "  docker.io: {auth: {username: hub, password: p}}\n"
        "  h.test:443: {auth: {username: tls, password: p}}\n"
        "  b.test: {tls: {insecure_skip_verify: true}}\n"
        "  '*': {auth: {username: all, password: p}, tls: {insecure_skip_verify: true}}\n"
    )

    def user(server):
        login = file.login_for(server)
        return login.username if login else None

    assert user("docker.io") == user("index.docker.io") == user("registry-1.docker.io") == "hub"
    assert user("h.test") == "tls"
    assert user("a.test") == "all"
    assert user("b.test") is None
    assert file.tls_for("a.test", HERE).insecure
    assert not file.tls_for("h.test", HERE).insecure


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{ca_file: ca.crt}", TLSFiles(authorities=(HERE / "ca.crt",))),
        (
            "{cert_file: /a.crt, key_file: /a.key}",
            TLSFiles(clients=((Path("/a.crt"), Path("/a.key")),)),
        ),
        ("{insecure_skip_verify: true}", TLSFiles(insecure=True)),
        ("{insecure_skip_verify: 'False'}", TLSFiles()),
        ("", TLSFiles()),
    ],
)
def test_tls(text, expected):
    assert tls(text) == expected


def test_anchors_can_be_used():
    file = parse("mirrors:\n  a.test: &m {endpoint: [m.test]}\n  b.test: *m\n")
    assert file.mirrors_of("b.test").bases == file.mirrors_of("a.test").bases != ()


@pytest.mark.parametrize("text", ["", "---", "mirrors:", "mirrors: ~", "# nothing", "configs: {}"])
def test_a_file_that_says_nothing(text):
    file = parse(text)
    assert file.mirrors_of("h.test") is None
    assert file.login_for("h.test") is None


@pytest.mark.parametrize(
    ("text", "problem", "key"),
    [
        ("- a", "not a mapping", ""),
        ("mirrors: [a]", "not a mapping", "mirrors"),
        ("configs: x", "not a mapping", "configs"),
        ("mirrors: {", "not YAML: see line 2", ""),
        ("\n\n\t- s3cret: [", "not YAML: see line 3", ""),
        ("a: *s3cret", "not YAML: see line 1", ""),
        ("a: &x [*x]", "not YAML: see line 1", ""),
        ("? [s3cret]\n: 1", "not YAML: see line 1", ""),
        ("configs: {}\nconfigs: {}", "the same key twice, from line 1 on", ""),
        ("[" * 50, "nested too deeply", ""),
        ("[" * 200_000, "nested too deeply", ""),
        ("\0", "not YAML", ""),
    ],
)
def test_a_file_of_another_form_is_refused(text, problem, key):
    with pytest.raises(BadKey) as caught:
        parse(text)
    assert (caught.value.problem, caught.value.key) == (problem, key)


def test_merge_keys_do_not_multiply():
    lines = ["a0: &a0 {k: v}"]
    lines += [f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 60)]
    assert parse("\n".join(lines)).mirrors_of("h.test") is None


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("mirrors: {h.test: [x]}", 'mirrors."h.test"'),
        ("mirrors: {h.test: {endpoint: x}}", 'mirrors."h.test".endpoint'),
        ("mirrors: {h.test: {rewrite: [x]}}", 'mirrors."h.test".rewrite'),
        ("configs: {h.test: x}", 'configs."h.test"'),
        ("configs: {h.test: {auth: [x]}}", 'configs."h.test".auth'),
        ("configs: {h.test: {auth: {username: [x]}}}", 'configs."h.test".auth.username'),
        ("configs: {h.test: {auth: {auth: s3cret}}}", 'configs."h.test".auth.auth'),
        ("configs: {h.test: {auth: {auth: bm8gY29sb24=}}}", 'configs."h.test".auth.auth'),
        ("configs: {h.test: {tls: {cert_file: x}}}", 'configs."h.test".tls'),
        ("configs: {h.test: {tls: {key_file: x}}}", 'configs."h.test".tls'),
        ('configs: {h.test: {tls: {ca_file: "a\\0b"}}}', 'configs."h.test".tls'),
        (
            "configs: {h.test: {tls: {insecure_skip_verify: perhaps}}}",
            'configs."h.test".tls.insecure_skip_verify',
        ),
    ],
)
def test_an_entry_that_is_wrong_is_in_the_way_of_its_registry_only(text, key):
    file = parse(text)

    def use(server):
        file.mirrors_of(server)
        file.login_for(server)
        file.tls_for(server, HERE)

    with pytest.raises(BadKey) as caught:
        use("h.test")
    assert caught.value.key == key
    assert "s3cret" not in caught.value.problem
    use("other.test")


def test_there_are_not_too_many():
    endpoints = ", ".join(f"m{n}.test" for n in range(limits.ENDPOINTS))
    with pytest.raises(BadKey, match="more than"):
        parse(f"mirrors: {{h.test: {{endpoint: [{endpoints}]}}}}").mirrors_of("h.test")
    rules = ", ".join(f"a{n}: b" for n in range(limits.REWRITE_RULES + 1))
    with pytest.raises(BadKey, match="more than"):
        parse(f"mirrors: {{h.test: {{rewrite: {{{rules}}}}}}}").mirrors_of("h.test")
