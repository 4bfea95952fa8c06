"""Logins that come with requests: what containerd's ParseAuth makes of them, and a bit more."""

import base64
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvol.errors import InvalidArgument
from imgvol.registry.auth_config import parse_auth_config
from imgvol.registry.credentials import Credential
from imgvol.registry.redaction import Secret

CANARY = "c4n4ry-p4ssw0rd"


def packed(pair):
    return base64.b64encode(pair.encode() if isinstance(pair, str) else pair).decode()


def parse(registry="registry.example.com", **members):
    return parse_auth_config(registry=registry, **members)


def login(username="user", password="pass"):
    return Credential(username=username, password=Secret(password))


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({}, None),
        ({"identity_token": "abcd"}, Credential(identity_token=Secret("abcd"))),
        ({"username": "user", "password": "pass"}, login()),
        ({"auth": packed("user:pass")}, login()),
        ({"auth": packed("user:pa:ss")}, login(password="pa:ss")),
        ({"auth": packed("user:pass\0\0\0")}, login()),
        ({"auth": packed("user:\0\0pass")}, login()),
        ({"auth": packed("jané:pässword")}, login("jané", "pässword")),
        ({"auth": packed("user:" + "p" * 80)[:60] + "\n" + packed("user:" + "p" * 80)[60:]},
         login(password="p" * 80)),
        ({"registry_token": "abcd"}, Credential(registry_token=Secret("abcd"))),
        # A user without a password is nobody.
        ({"username": "user"}, None),
        ({"auth": packed("user:")}, None),
        ({"auth": packed(":pass")}, None),
        ({"password": "pass"}, None),
    ],
)  # fmt: skip
def test_a_login_is_what_its_members_say(members, expected):
    assert parse(**members) == expected


def test_the_first_of_several_members_counts():
    members = {
        "username": "user",
        "password": "pass",
        "identity_token": "identity",
        "auth": packed("other:word"),
        "registry_token": "token",
    }
    assert parse(**members) == login()
    del members["username"], members["password"]
    assert parse(**members) == Credential(identity_token=Secret("identity"))
    del members["identity_token"]
    assert parse(**members) == login("other", "word")
    del members["auth"]
    assert parse(**members) == Credential(registry_token=Secret("token"))


@pytest.mark.parametrize(
    ("address", "registry", "is_for_it"),
    [
        ("", "registry-1.io", True),
        ("https://registry-1.io", "registry-1.io", True),
        ("https://registry-1.io", "registry-2.io", False),
        ("https://registry-1.io/v1/", "registry-1.io", True),
        ("http://registry-1.io:5000", "registry-1.io:5000", True),
        ("http://registry-1.io:5000", "registry-1.io", False),
        ("registry-1.io", "registry-1.io", True),
        ("registry-1.io:5000/v2/", "registry-1.io:5000", True),
        ("https://Registry-1.IO", "registry-1.io", True),
        ("https://registry-1.io.evil.example", "registry-1.io", False),
        ("https://registry-1.io@evil.example", "registry-1.io", False),
        ("https://registry-1.io@evil.example", "evil.example", True),
        ("https://evil.example/registry-1.io", "registry-1.io", False),
        ("https://index.docker.io/v1/", "docker.io", True),
        ("registry-1.docker.io", "docker.io", True),
        ("https://", "registry-1.io", False),
        ("://", "registry-1.io", False),
        ("/", "registry-1.io", False),
    ],
)
def test_a_login_for_another_registry_is_none(address, registry, is_for_it):
    found = parse(registry, username="user", password="pass", server_address=address)
    assert found == (login() if is_for_it else None)


@pytest.mark.parametrize(
    "members",
    [
        {"auth": packed(CANARY)},
        {"auth": packed(CANARY) + "!"},
        {"auth": packed(CANARY)[:-1]},
        {"auth": packed(b"\xff" + CANARY.encode() + b":\xff")},
        {"auth": CANARY},
        {"registry_token": CANARY + " x"},
        {"registry_token": CANARY + "\r\nEvil: x"},
        {"username": "user", "password": CANARY + "\ud800"},
    ],
)
def test_what_is_wrong_with_a_login_is_told_without_it(members):
    with pytest.raises(InvalidArgument) as raised:
        parse(**members)
    told = "".join(traceback.format_exception(raised.value))
    # The test's own line of source is in the trace; nothing of the login is.
    assert CANARY not in told
    assert packed(CANARY)[:-4] not in told
    assert CANARY.encode().hex() not in told


def test_a_login_for_another_registry_is_not_even_looked_at():
    assert parse("a.example", auth="!", server_address="https://b.example") is None


@given(st.text(), st.text(), st.text(), st.text(), st.text(), st.text())
def test_any_login_is_read_or_refused(username, password, auth, address, identity, token):
    members = {
        "username": username,
        "password": password,
        "auth": auth,
        "server_address": address,
        "identity_token": identity,
        "registry_token": token,
    }
    try:
        found = parse(**members)
    except InvalidArgument:
        return
    assert found is None or found.is_usable
