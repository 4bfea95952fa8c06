"""Checking what requests carry."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from imgvol.api.fields import Field, object_schema, parse_body, parse_query
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
        b'{"image": "a", "typo": null}',
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


@pytest.mark.parametrize("name", [field.name for field in FIELDS])
def test_the_schema_allows_null_where_a_member_may_be_absent(name):
    is_valid = Draft202012Validator(object_schema(FIELDS)).is_valid
    assert is_valid({"image": "a", name: None}) == (name != "image")


@given(st.binary(max_size=60).filter(lambda p: b"\0" not in p and p))
def test_any_path_survives_a_body(path):
    body = json.dumps({"image": "a", "path": path.decode("utf-8", "surrogateescape")})
    assert parse_body(body.encode(), FIELDS).path("path") == path


STRUCTURED = (
    Field(name="names", description="", kind="strings", maximum=2),
    Field(name="labels", description="", kind="labels", maximum=2),
    Field(name="count", description="", kind="integer", maximum=9),
    Field(
        name="records",
        description="",
        kind="records",
        maximum=2,
        members=(
            Field(name="id", description="", required=True, maximum=3),
            Field(name="flag", description="", kind="boolean"),
        ),
    ),
)


def test_arrays_labels_and_records():
    body = {
        "names": ["a", ""],
        "labels": {"k": "v"},
        "count": 7,
        "records": [{"id": "x", "flag": True}, {"id": "y", "flag": None}],
    }
    values = parse_body(json.dumps(body).encode(), STRUCTURED)
    assert values.strings("names") == ["a", ""]
    assert values.labels("labels") == {"k": "v"}
    assert values.number("count") == 7
    records = values.records("records")
    assert [(r.text("id"), r.flag("flag")) for r in records] == [("x", True), ("y", False)]
    empty = parse_body(b"{}", STRUCTURED)
    assert (empty.strings("names"), empty.labels("labels"), empty.records("records")) == (
        [],
        {},
        [],
    )
    assert empty.optional_number("count") is None


@pytest.mark.parametrize(
    "body",
    [
        {"names": "a"},
        {"names": ["a", 1]},
        {"names": ["a", None]},
        {"names": ["a", "b", "c"]},
        {"names": ["\0"]},
        {"labels": ["k"]},
        {"labels": {"k": 1}},
        {"labels": {"k": {}}},
        {"labels": {"\0": "v"}},
        {"labels": {"a": "", "b": "", "c": ""}},
        {"count": 1.5},
        {"count": True},
        {"count": -1},
        {"count": 10},
        {"records": {}},
        {"records": [1]},
        {"records": [[]]},
        {"records": [{}]},
        {"records": [{"id": "long"}]},
        {"records": [{"id": "x", "other": 1}]},
        {"records": [{"id": "x", "other": None}]},
        {"records": [{"id": "x", "flag": "true"}]},
        {"records": [{"id": "x"}] * 3},
    ],
)
def test_what_does_not_fit_inside_is_refused_and_the_schema_agrees(body):
    with pytest.raises(InvalidArgument):
        parse_body(json.dumps(body).encode(), STRUCTURED)
    if "\\u0000" not in json.dumps(body):
        assert not Draft202012Validator(object_schema(STRUCTURED)).is_valid(body)


@pytest.mark.parametrize("text", ["x", "nan", "-1", "1e400", "10"])
def test_numbers_of_a_query_are_checked(text):
    fields = (Field(name="n", description="", kind="number", maximum=9),)
    assert parse_query("n=1.5", fields).number("n") == 1.5
    with pytest.raises(InvalidArgument):
        parse_query(f"n={text}", fields)
