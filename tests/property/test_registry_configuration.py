"""Whatever the files of configuration say, there are endpoints or the declared error."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imgvol import limits
from imgvol.config import RegistryPaths
from imgvol.errors import BadConfiguration
from imgvol.registry.hosts import RegistryOptions
from imgvol.registry.registries import Registries
from imgvol.registry.rewrites import Rewrite

SCALARS = st.sampled_from(
    [
        "",
        "x",
        "https://m.test",
        "https://h.test",
        "m.test:5000/a",
        "http://[::1]:1/v2",
        "true",
        "pull",
        "3s",
        "a\0b",
    ]
)
SIMPLE = st.one_of(SCALARS, st.booleans(), st.integers(0, 9))
VALUES = st.recursive(
    SIMPLE,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(SCALARS, below, max_size=3),
    max_leaves=6,
)
HOST_KEYS = ["server", "ca", "client", "skip_verify", "capabilities", "header", "override_path"]
HOST = st.dictionaries(st.sampled_from([*HOST_KEYS, "dial_timeout"]), VALUES, max_size=5)
HOSTS = st.tuples(HOST, st.dictionaries(SCALARS, HOST, max_size=3))
ENTRY_KEYS = ["endpoint", "rewrite", "auth", "tls", "username", "password", "ca_file", "cert_file"]
ENTRIES = st.recursive(
    VALUES,
    lambda below: st.dictionaries(st.sampled_from(ENTRY_KEYS), below, max_size=4),
    max_leaves=8,
)
REGISTRIES = st.dictionaries(
    st.sampled_from(["mirrors", "configs"]),
    st.dictionaries(st.sampled_from(["h.test", "*", "m.test"]), ENTRIES, max_size=3),
)


def toml(value):
    match value:
        case bool():
            return str(value).lower()
        case str():
            return '"' + value.replace("\0", "\\u0000") + '"'
        case list():
            return f"[{', '.join(map(toml, value))}]"
        case dict():
            pairs = (f"{toml(key)} = {toml(each)}" for key, each in value.items())
            return f"{{{', '.join(pairs)}}}"
        case _:
            return str(value)


def yaml(value):
    match value:
        case list():
            return f"[{', '.join(map(yaml, value))}]"
        case dict():
            return f"{{{', '.join(f'{yaml(key)}: {yaml(each)}' for key, each in value.items())}}}"
        case _:
            return toml(value)


def check(tmp_path_factory, hosts=None, registries=None):
    root = tmp_path_factory.mktemp("configuration", numbered=True)
    (root / "h.test").mkdir()
    if hosts is not None:
        (root / "h.test" / "hosts.toml").write_bytes(hosts)
    if registries is not None:
        (root / "registries.yaml").write_bytes(registries)
    paths = RegistryPaths(hosts_dirs=(root,), registries_files=(root / "registries.yaml",))
    try:
        endpoints = Registries(paths).endpoints("h.test", RegistryOptions())
    except BadConfiguration as error:
        named = error.fields["file"]
    else:
        check_endpoints(endpoints)
        named = root
    assert str(named).startswith(str(root))


def check_endpoints(endpoints):
    assert 1 <= len(endpoints) <= 2 * limits.ENDPOINTS
    assert len({endpoint.base for endpoint in endpoints}) == len(endpoints)
    assert any(endpoint.is_authority for endpoint in endpoints)
    for endpoint in endpoints:
        assert endpoint.base.scheme in {"http", "https"}
        assert endpoint.is_registry == (endpoint.base.host == "h.test")
        assert endpoint.repository("a/b")


@pytest.mark.expects_log("is left out")
@given(st.binary())
def test_any_bytes(tmp_path_factory, data):
    check(tmp_path_factory, hosts=data)
    check(tmp_path_factory, registries=data)


@given(HOSTS)
def test_any_hosts_toml(tmp_path_factory, document):
    server, hosts = document
    lines = [f"{key} = {toml(value)}" for key, value in server.items()]
    for url, table in hosts.items():
        lines.append(f"[host.{toml(url)}]")
        lines += [f"{key} = {toml(value)}" for key, value in table.items()]
    check(tmp_path_factory, hosts="\n".join(lines).encode())


@pytest.mark.expects_log("is left out")
@given(REGISTRIES)
@example({"mirrors": {"h.test": {"endpoint": ["a\0b"]}}})
def test_any_registries_yaml(tmp_path_factory, document):
    check(tmp_path_factory, registries=yaml(document).encode())


@given(st.text("ab/", max_size=12), st.sampled_from(["a", "b+", "(a|b)", "/", "a*b", "[^a]", "^a"]))
def test_rewriting_is_replacing_where_no_match_is_empty(path, pattern):
    # Where no match is empty, Python and Go agree.
    if re.fullmatch(pattern, ""):
        return
    assert Rewrite.compile(pattern, "x$0").apply(path) == re.sub(pattern, r"x\g<0>", path)
