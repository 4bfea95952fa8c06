"""Where a registry is, and through which proxy."""

import httpx
import pytest

from imgvol.errors import InvalidArgument
from imgvol.oci.digest import Digest
from imgvol.registry.hosts import Capability, RegistryOptions, own_endpoint, tls_context
from imgvol.registry.proxies import proxies_from

PLAIN, TLS = RegistryOptions(plain_http=True), RegistryOptions(insecure=True)


@pytest.mark.parametrize(
    ("domain", "options", "expected"),
    [
        ("docker.io", RegistryOptions(), "https://registry-1.docker.io/v2"),
        ("registry.example.com", RegistryOptions(), "https://registry.example.com/v2"),
        ("registry.example.com:5000", RegistryOptions(), "https://registry.example.com:5000/v2"),
        ("registry.example.com:80", RegistryOptions(), "https://registry.example.com:80/v2"),
        ("registry.example.com", PLAIN, "http://registry.example.com/v2"),
        ("localhost", RegistryOptions(), "http://localhost/v2"),
        ("localhost:5000", RegistryOptions(), "http://localhost:5000/v2"),
        ("localhost:443", RegistryOptions(), "https://localhost/v2"),
        ("localhost:5000", TLS, "https://localhost:5000/v2"),
        ("localhost.example.com", RegistryOptions(), "https://localhost.example.com/v2"),
        ("127.0.0.1:5000", RegistryOptions(), "http://127.0.0.1:5000/v2"),
        ("127.9.9.9", RegistryOptions(), "http://127.9.9.9/v2"),
        ("128.0.0.1", RegistryOptions(), "https://128.0.0.1/v2"),
        ("[::1]:5000", RegistryOptions(), "http://[::1]:5000/v2"),
        ("[::1]:443", RegistryOptions(), "https://[::1]/v2"),
        ("[2001:db8::1]", RegistryOptions(), "https://[2001:db8::1]/v2"),
    ],
)
def test_base_of_a_registry(domain, options, expected):
    endpoint = own_endpoint(domain, options)
    assert str(endpoint.base) == expected
    assert endpoint.capabilities == Capability.ALL


@pytest.mark.parametrize(
    "domain", ["h.example.com:0", "h.example.com:99999", "[1:2]", "[::1]:70000"]
)
def test_registries_that_cannot_be(domain):
    with pytest.raises(InvalidArgument):
        own_endpoint(domain, RegistryOptions())


def test_urls_of_an_endpoint():
    endpoint = own_endpoint("127.0.0.1:5000", RegistryOptions())
    digest = Digest.of(b"")
    assert str(endpoint.manifest("a/b", "v1")) == "http://127.0.0.1:5000/v2/a/b/manifests/v1"
    assert str(endpoint.blob("a/b", digest)) == f"http://127.0.0.1:5000/v2/a/b/blobs/{digest}"


@pytest.mark.parametrize("options", [RegistryOptions(plain_http=True, insecure=True)])
def test_options_that_contradict(options):
    with pytest.raises(InvalidArgument):
        own_endpoint("h.example.com", options)


def test_files_that_are_no_certificates(tmp_path):
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    for options in (
        RegistryOptions(ca_file=nonsense),
        RegistryOptions(client_cert=(nonsense, nonsense)),
        RegistryOptions(ca_file=tmp_path / "missing"),
        RegistryOptions(ca_file=tmp_path),
    ):
        with pytest.raises(InvalidArgument):
            tls_context(options.tls)


@pytest.mark.parametrize(
    ("environ", "url", "expected"),
    [
        ({}, "https://h.example.com/", None),
        ({"HTTPS_PROXY": "http://p:1"}, "https://h.example.com/", "http://p:1"),
        ({"HTTPS_PROXY": "p:1"}, "https://h.example.com/", "http://p:1"),
        ({"HTTPS_PROXY": "https://p:1"}, "https://h.example.com/", "https://p:1"),
        ({"HTTPS_PROXY": "http://p:1"}, "http://h.example.com/", None),
        ({"HTTP_PROXY": "http://p:1"}, "http://h.example.com/", "http://p:1"),
        ({"https_proxy": "http://a", "HTTPS_PROXY": "http://b"}, "https://h/", "http://a"),
        ({"ALL_PROXY": "http://p:1"}, "https://h.example.com/", "http://p:1"),
        ({"all_proxy": "http://a", "https_proxy": "http://b"}, "https://h/", "http://b"),
        ({"HTTPS_PROXY": ""}, "https://h.example.com/", None),
        ({"ALL_PROXY": "http://p:1"}, "https://localhost:5000/", None),
        ({"ALL_PROXY": "http://p:1"}, "http://127.0.0.2/", None),
        ({"ALL_PROXY": "http://p:1"}, "http://[::1]/", None),
    ],
)
def test_proxy_of_the_environment(environ, url, expected):
    proxy = proxies_from(environ)(httpx.URL(url))
    assert (proxy and str(proxy).rstrip("/")) == expected


@pytest.mark.parametrize(
    ("exempt", "url", "is_exempt"),
    [
        ("*", "https://h.example.com/", True),
        ("example.com", "https://example.com/", True),
        ("example.com", "https://h.example.com/", True),
        ("example.com", "https://hexample.com/", False),
        (".example.com", "https://h.example.com/", True),
        ("*.example.com", "https://h.example.com/", True),
        ("EXAMPLE.com", "https://h.example.com/", True),
        ("a.test, b.test", "https://x.b.test/", True),
        ("example.com:5000", "https://h.example.com:5000/", True),
        ("example.com:5000", "https://h.example.com/", False),
        ("example.com:443", "https://h.example.com/", True),
        ("10.0.0.5", "https://10.0.0.5/", True),
        ("10.0.0.0/8", "https://10.9.9.9/", True),
        ("10.0.0.0/8", "https://11.0.0.1/", False),
        ("10.0.0.0/99", "https://10.0.0.1/", False),
        ("10.0.0.5:443", "https://10.0.0.5/", True),
        ("fd00::/8", "https://[fd00::1]:5000/", True),
        ("[fd00::1]:5000", "https://[fd00::1]:5000/", True),
        ("fd00::1", "https://[fd00::1]:5000/", True),
        ("0.0.1", "https://10.0.0.1/", False),
        (", ,", "https://h.example.com/", False),
        ("nonsense/8", "https://10.0.0.1/", False),
    ],
)
def test_no_proxy(exempt, url, is_exempt):
    select = proxies_from({"HTTPS_PROXY": "http://p:1", "NO_PROXY": exempt})
    assert (select(httpx.URL(url)) is None) is is_exempt


@pytest.mark.parametrize("proxy", ["gopher://p", "http://", "http://p:port"])
def test_proxies_that_cannot_be(proxy):
    with pytest.raises(InvalidArgument) as raised:
        proxies_from({"HTTPS_PROXY": proxy})
    assert raised.value.fields["variable"] == "https_proxy"
