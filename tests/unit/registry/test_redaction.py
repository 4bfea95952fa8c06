"""What may be shown."""

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvol.registry.credentials import Credential, Lookup, StaticCredentials
from imgvol.registry.redaction import Secret, quote_remote, redact_url

CANARY = "c4n4ry"


def test_secret_prints_as_stars_wherever_it_is():
    secret = Secret(CANARY)
    credential = Credential(username="jane", password=secret, registry_token=secret)
    shown = (
        f"{secret} {secret!r} {secret:>20} {[secret]} {credential} "
        f"{StaticCredentials(credential)} {Lookup(credential)} %s %r" % (secret, secret)
    )
    assert CANARY not in shown
    assert "***" in shown
    assert "jane" in shown


def test_secret_is_a_value():
    assert Secret("a") == Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a")}) == 1
    assert not Secret("")
    assert Secret("ü").reveal() == "ü"


@pytest.mark.parametrize("store", [pickle.dumps, copy.deepcopy])
def test_secret_is_not_stored(store):
    with pytest.raises(TypeError):
        store(Secret(CANARY))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://h.example.com/v2/a", "https://h.example.com/v2/a"),
        ("https://h.example.com:5000/v2/", "https://h.example.com:5000/v2/"),
        ("http://[::1]:5000/", "http://[::1]:5000/"),
        ("https://u:p@h.example.com/", "https://h.example.com/"),
        ("https://h/t?service=a&scope=b:c&X-Sig=1#f", "https://h/t?service=a&scope=b:c&X-Sig=***"),
        ("https://h/t?sig", "https://h/t?sig=***"),
        ("https://h/t?SCOPE=1", "https://h/t?SCOPE=***"),
        ("https://h:x/", "an unreadable URL"),
        ("https://[/", "an unreadable URL"),
    ],
)
def test_url_is_shown_without_what_could_be_secret(url, expected):
    assert redact_url(url) == expected


@given(st.text(max_size=80))
def test_any_url_is_shown_printably(text):
    assert redact_url(text).isprintable()


@given(
    st.sampled_from(["http", "https"]),
    st.text(alphabet="abc%&=;/?:", max_size=10),
    st.text(alphabet="abc-_", min_size=1, max_size=5),
)
def test_values_of_unknown_keys_and_users_never_show(scheme, noise, key):
    shown = redact_url(f"{scheme}://{CANARY}:{CANARY}@h.example.com/p?a={noise}&{key}={CANARY}")
    assert CANARY not in shown


def test_words_of_a_stranger_are_one_short_printable_line():
    assert quote_remote("a\n b\t\x1b[31mc\u202e") == "a b �[31mc�"
    assert len(quote_remote("x" * 10_000)) == 200
    assert quote_remote("x " * 10_000, longest=9) == "x x x x …"


def test_secrets_are_cut_out_of_words():
    secrets = (Secret(CANARY), Secret(""))
    assert quote_remote(f"{CANARY} is wrong, {CANARY}", secrets=secrets) == "*** is wrong, ***"
