"""Who would be asked for the images of a registry."""

from dataclasses import replace

import pytest

from imgvol.cli.doctor import check_registry
from imgvol.config import Config, RegistryPaths


@pytest.fixture
def config(tmp_path):
    paths = RegistryPaths(
        hosts_dirs=(tmp_path / "certs.d",), registries_files=(tmp_path / "registries.yaml",)
    )
    config = Config(root=tmp_path, run=tmp_path, is_system=True)
    return replace(config, registries=paths)


def lines(config, domain="h.test"):
    return [(check.status, check.detail) for check in check_registry(config, domain)]


def test_nothing_is_said_of_registries_unless_asked(config):
    assert list(check_registry(config, None)) == []


def test_without_files_it_is_the_registry_itself(config):
    hub = "https://registry-1.docker.io/v2, the registry itself"
    assert lines(config, "docker.io") == lines(config, "index.docker.io") == [("ok", hub)]


def test_endpoints_in_order_and_no_login(config, tmp_path):
    yaml = tmp_path / "registries.yaml"
    yaml.write_text(
        "mirrors: {h.test: {endpoint: [m.test], rewrite: {a: b}}}\n"
        "configs: {m.test: {auth: {username: jane, password: s3cret},"
        " tls: {insecure_skip_verify: true}}}"
    )
    assert lines(config) == [
        (
            "ok",
            (
                "https://m.test/v2, a mirror, any certificate, other names, "
                f"login in {yaml}, by {yaml}"
            ),
        ),
        ("ok", "https://h.test/v2, the registry itself"),
    ]
    directory = tmp_path / "certs.d" / "h.test"
    directory.mkdir(parents=True)
    (directory / "hosts.toml").write_text(
        '[host."http://a.test"]\ncapabilities = ["pull"]\nheader = {X = "s3cret"}\n'
    )
    first, _ = lines(config)
    assert first == (
        "ok",
        f"http://a.test/v2, a mirror, only to pull, with headers, by {directory / 'hosts.toml'}",
    )


def test_what_is_wrong_is_told(config, tmp_path):
    yaml = tmp_path / "registries.yaml"
    yaml.write_text("mirrors: {")
    [check] = check_registry(config, "h.test")
    assert check.status == "fail"
    assert str(yaml) in check.detail
    assert "next pull" in check.repair
    yaml.write_text(
        "mirrors: {h.test: {endpoint: [m.test]}}\nconfigs: {m.test: {tls: {ca_file: none.crt}}}"
    )
    assert lines(config) == [
        (
            "fail",
            f"cannot read a certificate: no such file or directory (file {tmp_path / 'none.crt'})",
        )
    ]
