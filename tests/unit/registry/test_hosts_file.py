"""containerd's hosts.toml, and certificates as Docker keeps them."""

from pathlib import Path

import pytest

from imgvol import limits
from imgvol.registry.config_files import BadKey
from imgvol.registry.hosts import Capability, TLSFiles
from imgvol.registry.hosts_file import certificates_in, parse_hosts_file

HERE = Path("/etc/imgvol/certs.d/example.com")


def parse(text):
    return parse_hosts_file(HERE, text.encode())


def only_host(text, url="https://mirror.test"):
    first, _ = parse(f'[host."{url}"]\n{text}')
    return first


def test_hosts_in_the_order_of_the_file_and_the_server_last():
    entries = parse(
        """
        server = "https://registry.example.com"
        [host."https://z.test"]
        [host."https://m.test".header]
        X-Early = "1"
        [host."https://a.test"]
        capabilities = ["pull"]
        [host."https://m.test"]
        skip_verify = true
        """
    )
    assert [str(entry.base) for entry in entries] == [
        "https://z.test/v2",
        "https://m.test/v2",
        "https://a.test/v2",
        "https://registry.example.com/v2",
    ]
    assert entries[1].tls.insecure
    assert entries[2].capabilities == Capability.PULL


def test_without_a_server_it_is_the_registrys_own():
    assert parse("") == ()
    [server] = parse("# nothing")
    assert server.base is None
    assert server.capabilities == Capability.ALL
    [server] = parse('capabilities = ["pull"]\nskip_verify = true')
    assert server.base is None
    assert server.capabilities == Capability.PULL
    assert server.tls.insecure


@pytest.mark.parametrize(
    ("url", "override", "expected"),
    [
        ("https://m.test", False, "https://m.test/v2"),
        ("https://m.test/", False, "https://m.test/v2"),
        ("https://m.test/v2", False, "https://m.test/v2"),
        ("https://m.test/v2/", False, "https://m.test/v2"),
        ("https://m.test/a//b/../c", False, "https://m.test/a/c/v2"),
        ("https://m.test/v2/project", False, "https://m.test/v2/project/v2"),
        ("https://m.test/v2/project", True, "https://m.test/v2/project"),
        ("https://m.test/", True, "https://m.test/"),
        ("https://m.test", True, "https://m.test/"),
        ("http://m.test:5000", False, "http://m.test:5000/v2"),
        ("m.test:5000", False, "https://m.test:5000/v2"),
        ("localhost:5000", False, "https://localhost:5000/v2"),
        ("https://[::1]:5000", False, "https://[::1]:5000/v2"),
    ],
)
def test_the_path_of_a_url(url, override, expected):
    entry = only_host(f"override_path = {str(override).lower()}", url)
    assert str(entry.base) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ('["pull"]', Capability.PULL),
        ('["PULL", "Resolve"]', Capability.PULL | Capability.RESOLVE),
        ('["pull", "resolve", "push"]', Capability.PULL | Capability.RESOLVE),
        ('["referrers"]', Capability.REFERRERS),
        ('["push"]', Capability(0)),
        ("[]", Capability.ALL),
    ],
)
def test_capabilities(names, expected):
    assert only_host(f"capabilities = {names}").capabilities == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"ca.crt"', (HERE / "ca.crt",)),
        ('"/etc/ca.crt"', (Path("/etc/ca.crt"),)),
        ('["a.crt", "/b.crt"]', (HERE / "a.crt", Path("/b.crt"))),
    ],
)
def test_certificates_to_trust(text, expected):
    assert only_host(f"ca = {text}").tls == TLSFiles(authorities=expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"both.pem"', ((HERE / "both.pem", None),)),
        ('["a.pem", "b.pem"]', ((HERE / "a.pem", None), (HERE / "b.pem", None))),
        ('[["a.cert", "/a.key"]]', ((HERE / "a.cert", Path("/a.key")),)),
        (
            '[["a.cert", "a.key"], ["both.pem", ""]]',
            ((HERE / "a.cert", HERE / "a.key"), (HERE / "both.pem", None)),
        ),
    ],
)
def test_certificates_to_show(text, expected):
    assert only_host(f"client = {text}").tls == TLSFiles(clients=expected)


def test_headers_are_secrets():
    entry = only_host('header = {X-Key = "k3y", X-Many = ["a", "b"]}')
    assert [(name, value.reveal()) for name, value in entry.headers] == [
        ("X-Key", "k3y"),
        ("X-Many", "a"),
        ("X-Many", "b"),
    ]
    assert "k3y" not in repr(entry)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3s", 3), ("500ms", 0.5), ("1m30s", 90), ("1.5s", 1.5), ("2000us", 0.002), ("", None)],
)
def test_dial_timeout(text, seconds):
    found = only_host(f'dial_timeout = "{text}"').dial_timeout
    assert found == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("not toml", ""),
        ("a = " + "[" * 5000, ""),
        ("a = " + "9" * 5000, ""),
        ("server = 3", "server"),
        ('server = "https://"', "server"),
        ('server = "ftp://x"', "server"),
        ('server = "httpx://x"', "server"),
        ('server = "https://jane:secret@x"', "server"),
        ('server = "https://x?y=z"', "server"),
        ('server = "https://x:99999"', "server"),
        ("host = 3", "host"),
        ('host = {"https://m.test" = 3}', 'host."https://m.test"'),
        ('[host.""]', 'host.""'),
        ('capabilities = ["write"]', "capabilities"),
        ('capabilities = "pull"', "capabilities"),
        ("ca = 3", "ca"),
        ("ca = [3]", "ca"),
        ('ca = ""', "ca"),
        ('ca = "a\\u0000b"', "ca"),
        ("client = 3", "client"),
        ('client = [["a", "b", "c"]]', "client"),
        ("client = [[1, 2]]", "client"),
        ("skip_verify = 'yes'", "skip_verify"),
        ("override_path = 1", "override_path"),
        ('dial_timeout = "soon"', "dial_timeout"),
        ('dial_timeout = "-1s"', "dial_timeout"),
        ('dial_timeout = "0s"', "dial_timeout"),
        ('dial_timeout = "999h"', "dial_timeout"),
        ("dial_timeout = 3", "dial_timeout"),
        ("header = 3", "header"),
        ('header = {"a b" = "x"}', "header.a b"),
        ('header = {Host = "x"}', "header.Host"),
        ('header = {X = "a\\r\\nY: b"}', "header.X"),
        ("header = {X = 3}", "header.X"),
        ('[host."https://m.test"]\nca = 3', 'host."https://m.test".ca'),
        ('[host."https://m.test"]\nheader = {X = 3}', 'host."https://m.test".header.X'),
    ],
)
def test_what_is_wrong_is_told_with_its_key_and_without_its_value(text, key):
    with pytest.raises(BadKey) as caught:
        parse(text)
    assert caught.value.key == key
    assert "secret" not in f"{caught.value.problem} {caught.value.key}"


def test_there_are_not_too_many():
    hosts = "".join(f'[host."https://m{n}.test"]\n' for n in range(limits.ENDPOINTS))
    with pytest.raises(BadKey, match="more than"):
        parse(hosts)


# --- as Docker keeps them -------------------------------------------------------------------------


def test_certificates_as_docker_keeps_them(tmp_path):
    for name in ("a.crt", "b.crt", "client.cert", "client.key", "other.key", "notes.txt"):
        (tmp_path / name).touch()
    assert certificates_in(tmp_path) == TLSFiles(
        authorities=(tmp_path / "a.crt", tmp_path / "b.crt"),
        clients=((tmp_path / "client.cert", tmp_path / "client.key"),),
    )


def test_a_certificate_without_its_key_is_an_error(tmp_path):
    (tmp_path / "client.cert").touch()
    with pytest.raises(BadKey, match=r"client\.key is missing"):
        certificates_in(tmp_path)
