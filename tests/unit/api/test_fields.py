"""Checking what requests carry."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvol.api.fields import Field, parse_body, parse_query
from imgvol.errors import InvalidArgument

FIELDS = (
    Field(name="image", description="", required=True),
    Field(name="path", description="", default="/", is_path=True),
    Field(name="recursive", description="", kind="boolean"),
    Field(name="pull", description="", default="missing", choices=("missing", "never")),
)


def test_defaults_and_bytes():
    values = parse_query("image=a%2Fb%3A1&path=/etc/%E9%0A", FIELDS)
    assert values.text("image") == "a/b:1"
    assert values.path("path") == b"/etc/\xe9\n"
    assert values.flag("recursive") is False
    assert values.text("pull") == "missing"


@pytest.mark.parametrize("text", ["recursive", "recursive=1", "recursive=true"])
def test_flags(text):
    assert parse_query(f"image=a&{text}", FIELDS).flag("recursive") is True


@pytest.mark.parametrize(
    "query",
    [
        "",
        "image=",
        "image=a&image=b",
        "image=a&unknown=1",
        "image=a&recursive=maybe",
        "image=a&pull=sometimes",
        "image=a%00b",
        "image=%ff",
        "&".join(f"a{n}=1" for n in range(40)),
    ],
)
def test_bad_queries(query):
    with pytest.raises(InvalidArgument):
        parse_query(query, FIELDS)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"nonsense",
        b"\xff",
        b'{"image": 5}',
        b'{"image": true}',
        b'{"image": "a", "recursive": "yes"}',
        b'{"image": "a", "image": "b"}',
        b'{"image": "a", "typo": 1}',
        b'{"image": ["a"]}',
        b'{"image": "\\udcff"}',
        b"[" * 100_000,
        b'{"image": NaN}',
        b'{"image": "a", "path": "\\ud800"}',
    ],
)
def test_bad_bodies(body):
    with pytest.raises(InvalidArgument):
        parse_body(body, FIELDS)


def test_null_is_absent():
    assert parse_body(b'{"image": "a", "pull": null}', FIELDS).text("pull") == "missing"


@given(st.binary(max_size=60).filter(lambda p: b"\0" not in p and p))
def test_any_path_survives_a_body(path):
    body = json.dumps({"image": "a", "path": path.decode("utf-8", "surrogateescape")})
    assert parse_body(body.encode(), FIELDS).path("path") == path
