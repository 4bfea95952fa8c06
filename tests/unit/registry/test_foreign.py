"""Where blobs may be fetched from beside the registry."""

import logging

import pytest

from imgvol import limits
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.media_types import OCI_LAYER
from imgvol.registry.foreign import foreign_urls
from imgvol.registry.redirects import Origin

SECURE = Origin("https", "registry.example.com", 443)
PLAIN = Origin("http", "127.0.0.1", 5000)


def urls_of(*urls: str, registry: Origin = SECURE) -> list[str]:
    blob = Descriptor(media_type=OCI_LAYER, digest=Digest.of(b""), size=0, urls=urls)
    return [str(url) for url in foreign_urls(blob, registry=registry)]


def test_usable_urls_stay_in_order():
    urls = ["https://b.example.com/x?sig=a%2Fb", "https://a.example.com:8443/y"]
    assert urls_of(*urls) == urls
    assert urls_of() == []


def test_http_is_for_registries_without_tls():
    urls = ["http://a.example.com/x", "https://b.example.com/x"]
    assert urls_of(*urls) == urls[1:]
    assert urls_of(*urls, registry=PLAIN) == urls


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/relative",
        "//a.example.com/x",
        "ftp://a.example.com/x",
        "file:///etc/passwd",
        "https://jane:secret@a.example.com/x",
        "https://[/",
        "https://a.example.com:99999/x",
        "https:///x",
        f"https://a.example.com/{'x' * limits.LOCATION_LENGTH}",
    ],
)
def test_what_cannot_be_used_is_left_out(url, caplog):
    caplog.set_level(logging.INFO)
    assert urls_of(url, "https://good.example.com/") == ["https://good.example.com/"]
    assert "is not looked for at a URL" in caplog.text
    assert "secret" not in caplog.text


def test_number_is_bounded():
    urls = [f"https://{number}.example.com/" for number in range(limits.FOREIGN_URLS + 1)]
    assert urls_of("ftp://x", *urls) == urls[:-1]


def test_fragment_is_not_sent():
    assert urls_of("https://a.example.com/x#here") == ["https://a.example.com/x"]
