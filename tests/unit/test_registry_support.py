"""The real registry of the tests: that it starts, asks for its password, and tells of requests."""

import base64
import ssl
from urllib.error import HTTPError
from urllib.request import HTTPSHandler, ProxyHandler, Request, build_opener

import pytest
import trustme

from support.images import Image, Layer, file, push, write_layout
from support.programs import require
from support.registry import PASSWORD, USERNAME, running_registry

pytestmark = pytest.mark.servers


def get(url, *, headers=None, context=None):
    handlers = [ProxyHandler({}), *([HTTPSHandler(context=context)] if context else [])]
    with build_opener(*handlers).open(Request(url, headers=headers or {}), timeout=10) as answer:
        return answer.status


def test_pushed_blob_is_where_the_registry_keeps_it(registry, tmp_path):
    layer = Layer([file("x", b"x")], "zstd")
    push(write_layout(tmp_path, {"v1": Image([layer])}), "v1", registry.reference("kept:v1"))
    assert registry.blob_path(layer.digest).read_bytes() == layer.blob
    assert any(line.startswith("PUT /v2/kept/manifests/v1 201") for line in registry.requests())


def test_password_is_asked_for(tmp_path):
    require("docker-registry")
    with running_registry(tmp_path, with_password=True) as running:
        with pytest.raises(HTTPError, match="401") as raised:
            get(f"http://{running.host}/v2/")
        raised.value.close()
        token = base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
        assert get(f"http://{running.host}/v2/", headers={"Authorization": f"Basic {token}"}) == 200


def test_certificate_is_served(tmp_path):
    require("docker-registry")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    certificate.private_key_pem.write_to_path(key)
    for pem in certificate.cert_chain_pems:
        pem.write_to_path(chain, append=True)
    with running_registry(tmp_path, certificate=(chain, key)) as running:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        assert get(f"https://{running.host}/v2/", context=context) == 200
