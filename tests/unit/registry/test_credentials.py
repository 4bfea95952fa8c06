"""Logins in files and helpers: where they are looked for, and which one is found."""

import base64
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvol import limits
from imgvol.registry.credentials import (
    Credential,
    CredentialChain,
    FileCredentials,
    NoCredentials,
    StaticCredentials,
    credential_files,
)
from imgvol.registry.redaction import Secret
from support.programs import wait_until


def auth(username="jane", password="secret"):
    return {"auth": base64.b64encode(f"{username}:{password}".encode()).decode()}


def login(username="jane", password="secret"):
    return Credential(username=username, password=Secret(password))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "config.json"


def find(file, registry="registry.example.com", repository="some/image"):
    return FileCredentials([file], helper_deadline=1).find(registry, repository)


def find_in(file, document, *names):
    file.write_text(json.dumps(document))
    return find(file, *names).credential


# --- entries ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (auth(), login()),
        (auth(password="a:b:c"), login(password="a:b:c")),
        (auth(password="pad\0\0"), login(password="pad")),
        (auth(username="jané", password="pässword"), login("jané", "pässword")),
        ({"username": "jane", "password": "secret"}, login()),
        ({"identitytoken": "t"}, Credential(identity_token=Secret("t"))),
        ({"registrytoken": "t"}, Credential(registry_token=Secret("t"))),
        (
            auth("<token>", "") | {"identitytoken": "t"},
            Credential(username="<token>", password=Secret(""), identity_token=Secret("t")),
        ),
        ({}, None),
        ({"auth": ""}, None),
        ({"auth": "!!!"}, None),
        ({"auth": base64.b64encode(b"no colon").decode()}, None),
        ({"auth": base64.b64encode(b"\xff:\xff").decode()}, None),
        ({"auth": 7, "username": ["x"]}, None),
        ({"username": "jane"}, None),
        (auth(password=""), None),
        ("text", None),
        (None, None),
    ],
)
def test_entries(file, entry, expected):
    assert find_in(file, {"auths": {"registry.example.com": entry}}) == expected


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["h.example.com", "h.example.com/ns", "h.example.com/ns/u/i"], "h.example.com/ns/u/i"),
        (["h.example.com", "h.example.com/ns/u", "h.example.com/ns"], "h.example.com/ns/u"),
        (["h.example.com", "h.example.com/ns"], "h.example.com/ns"),
        (["h.example.com", "h.example.com/other", "h.example.com/n"], "h.example.com"),
        (["https://h.example.com", "h.example.com"], "h.example.com"),
        (["https://h.example.com/v1/"], "https://h.example.com/v1/"),
        (["http://h.example.com"], "http://h.example.com"),
        (["h.example.com:5000", "example.com", "https://h.example.com:5000/"], None),
        (["h.example.com/other"], None),
        (["H.example.com"], None),
    ],
)
def test_most_specific_key_wins(file, keys, expected):
    document = {"auths": {key: auth(password=key) for key in keys}}
    found = find_in(file, document, "h.example.com", "ns/u/i")
    assert (found and found.password.reveal()) == expected


@pytest.mark.parametrize(
    "key",
    [
        "docker.io",
        "index.docker.io",
        "registry-1.docker.io",
        "https://index.docker.io/v1/",
        "docker.io/library",
        "docker.io/library/alpine",
    ],
)
def test_docker_hub_has_many_names(file, key):
    document = {"auths": {key: auth()}}
    assert find_in(file, document, "docker.io", "library/alpine") == login()
    assert find_in(file, document, "quay.example.com", "library/alpine") is None


def test_unusable_entry_does_not_hide_a_usable_one(file):
    document = {"auths": {"h.example.com/ns": {}, "h.example.com": auth()}}
    assert find_in(file, document, "h.example.com", "ns/i") == login()


# --- files --------------------------------------------------------------------------------------


def test_order_of_files():
    home = Path("/home/jane")
    assert credential_files({}, home=home, uid=1000) == (
        Path("/run/containers/1000/auth.json"),
        Path("/home/jane/.config/containers/auth.json"),
        Path("/home/jane/.docker/config.json"),
        Path("/home/jane/.dockercfg"),
    )
    environ = {"XDG_RUNTIME_DIR": "/r", "XDG_CONFIG_HOME": "/c", "DOCKER_CONFIG": "/d"}
    assert credential_files(environ, home=home, uid=1000) == (
        Path("/r/containers/auth.json"),
        Path("/c/containers/auth.json"),
        Path("/d/config.json"),
        Path("/home/jane/.dockercfg"),
    )
    environ["REGISTRY_AUTH_FILE"] = "/explicit.json"
    assert credential_files(environ, home=home, uid=1000) == (Path("/explicit.json"),)


def test_first_file_with_a_login_wins(tmp_path):
    names = ("missing", "other", "first", "second")
    files = [tmp_path / name for name in names]
    files[1].write_text(json.dumps({"auths": {"other.example.com": auth()}}))
    files[2].write_text(json.dumps({"auths": {"h.example.com": auth("first")}}))
    files[3].write_text(json.dumps({"auths": {"h.example.com": auth("second")}}))
    found = FileCredentials(files).find("h.example.com", "i")
    assert found.credential == login("first")
    assert found.notes == (f"used the login in {files[2]}",)


def test_legacy_file_has_no_auths(tmp_path):
    assert find_in(tmp_path / ".dockercfg", {"https://registry.example.com/v1/": auth()}) == login()


def test_file_is_read_anew(file):
    source = FileCredentials([file])
    assert source.find("h.example.com", "i").credential is None
    file.write_text(json.dumps({"auths": {"h.example.com": auth()}}))
    assert source.find("h.example.com", "i").credential == login()


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (b"", "not a file of logins"),
        (b"{", "not a file of logins"),
        (b"[]", "not a file of logins"),
        (b"\xff\xfe", "not a file of logins"),
        (b"[" * 100_000, "not a file of logins"),
        (b" " * (limits.CREDENTIAL_FILE_SIZE + 1), "not a file of logins"),
        (b"{}", "no login for registry.example.com"),
        (b'{"auths": [], "credHelpers": 7, "credsStore": {}}', "no login for"),
    ],
)
def test_files_without_logins_are_noted(file, content, note):
    file.write_bytes(content)
    found = find(file)
    assert found.credential is None
    assert note in found.notes[0]
    assert str(file) in found.notes[0]


def test_what_is_no_file_is_noted(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert "not a file of logins" in find(fifo).notes[0]
    assert "is not there" in find(tmp_path / "missing").notes[0]
    assert "is a directory" in find(tmp_path).notes[0]


def test_note_does_not_quote_the_file(file):
    file.write_text('{"auths": {"registry.example.com": "c4n4ry", c4n4ry')
    assert "c4n4ry" not in str(find(file))


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["auths", "auth", "username", "password", "registry.example.com", "x"]),
        inner, max_size=3,
    ),
    max_leaves=12,
))  # fmt: skip
def test_any_document_is_survived(tmp_path_factory, document):
    file = tmp_path_factory.getbasetemp() / "any.json"
    file.write_text(json.dumps(document))
    find(file)


def test_fixed_sources():
    given_login = login()
    assert StaticCredentials(given_login).find("a", "b").credential is given_login
    assert NoCredentials().find("a", "b").credential is None


# --- helpers ------------------------------------------------------------------------------------


@pytest.fixture
def helper(tmp_path, monkeypatch):
    """Makes `docker-credential-test` a shell script; its registry is in `asked`."""
    bin_directory = tmp_path / "bin"
    bin_directory.mkdir()
    monkeypatch.setenv("PATH", f"{bin_directory}:{os.environ['PATH']}")
    asked = tmp_path / "asked"

    def write(script):
        program = bin_directory / "docker-credential-test"
        program.write_text(f"#!/bin/sh\n{script.format(asked=asked)}\n")
        program.chmod(0o755)
        return asked

    return write


ANSWER = """test "$1" = get && cat > {asked} && echo '{{"Username": "%s", "Secret": "s3cret"}}'"""


def test_helper_of_the_registry_comes_first(file, helper):
    asked = helper(ANSWER % "jane")
    document = {
        "credHelpers": {"registry.example.com": "test"},
        "auths": {"registry.example.com": auth("other")},
    }
    assert find_in(file, document) == login(password="s3cret")
    assert asked.read_text() == "registry.example.com"


def test_store_comes_last(file, helper):
    helper(ANSWER % "jane")
    document = {"credsStore": "test", "auths": {"registry.example.com": {}}}
    assert find_in(file, document) == login(password="s3cret")
    document["auths"]["registry.example.com"] = auth("other")
    assert find_in(file, document) == login("other")


def test_helper_is_asked_for_docker_hub_by_its_old_name(file, helper):
    asked = helper(ANSWER % "jane")
    find_in(file, {"credsStore": "test"}, "docker.io", "library/alpine")
    assert asked.read_text() == "https://index.docker.io/v1/"


def test_helper_can_give_an_identity_token(file, helper):
    helper(ANSWER % "<token>")
    found = find_in(file, {"credsStore": "test"})
    assert found == Credential(identity_token=Secret("s3cret"))


@pytest.mark.parametrize(
    ("script", "note"),
    [
        ("echo credentials not found in native keychain; exit 1", "no login for"),
        ("echo the keychain is locked; exit 3", "failed: it ended with status 3: the keychain is"),
        ("echo 's3cret'", "failed: its answer is not what the protocol asks for"),
        ("echo '{{}}'", "failed: its answer"),
        ("echo '[7]'", "failed: its answer"),
        ("""echo '{{"Username": 7, "Secret": "s3cret"}}' """, "failed: its answer"),
        ("", "failed: its answer"),
        ("yes s3cret", "failed: it prints too much"),
        ("sleep 60", "failed: it does not answer in time"),
        ("exec >&-; sleep 60", "failed: it does not end"),
        ("kill -9 $$", "failed: it ended with status -9"),
    ],
)
def test_helpers_that_fail_are_noted(file, helper, script, note):
    helper(script)
    file.write_text(json.dumps({"credsStore": "test"}))
    found = find(file)
    assert found.credential is None
    assert any(note in each for each in found.notes)
    assert "s3cret" not in str(found)


@pytest.mark.parametrize("name", ["missing", "../../bin/sh", "a/b", "", "-x", "x" * 100, "a\nb"])
def test_helpers_that_are_not_there_are_noted(file, name):
    file.write_text(json.dumps({"credHelpers": {"registry.example.com": name}}))
    found = find(file)
    assert found.credential is None
    assert all("\n" not in note for note in found.notes)


def test_helper_inherits_no_files_and_leaves_nobody_behind(file, helper, tmp_path):
    background = tmp_path / "pid"
    helper(f"sleep 60 & echo $! > {background}; ls /proc/self/fd | tr '\\n' ' '; exit 1")
    with open(os.devnull) as inherited:
        os.set_inheritable(inherited.fileno(), True)
        file.write_text(json.dumps({"credsStore": "test"}))
        notes = find(file).notes
    # Its answer never ends, for its child holds the pipe: the deadline ends both.
    assert "in time" in notes[0]
    pid = int(background.read_text())
    wait_until(lambda: has_ended(pid), what="the helper's child to end")


def has_ended(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_helper_sees_three_files(file, helper):
    helper("ls -l /proc/self/fd | wc -l; exit 1")
    file.write_text(json.dumps({"credsStore": "test"}))
    with open(os.devnull) as inherited:
        os.set_inheritable(inherited.fileno(), True)
        notes = find(file).notes
    # A heading, 0 to 2, and the directory that ls reads.
    assert "status 1: 5" in notes[0]


# --- several sources ----------------------------------------------------------------------------


def test_the_first_source_with_a_login_decides(file):
    file.write_text(json.dumps({"auths": {"h.example.com": auth("file")}}))
    files = FileCredentials([file])
    chain = CredentialChain([NoCredentials(), StaticCredentials(login("first")), files])
    assert chain.find("h.example.com", "i").credential == login("first")
    chain = CredentialChain([NoCredentials(), files])
    assert chain.find("h.example.com", "i").credential == login("file")


def test_where_all_sources_have_looked_is_told():
    found = CredentialChain([NoCredentials(), FileCredentials([Path("/missing")])]).find("h", "i")
    assert found.credential is None
    assert found.notes == ("no login was given", "/missing is not there")


@pytest.mark.parametrize(
    "key", ["h.example.com/ns/i:tag", "h.example.com/ns/i@sha256:00", "user@h.example.com"]
)
def test_keys_that_name_no_repository_are_not_found(file, key):
    assert find_in(file, {"auths": {key: auth()}}, "h.example.com", "ns/i") is None
