import json
import time
from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from imgvol import limits
from imgvol.errors import ContentError, InvalidDocument, LimitExceeded
from imgvol.oci.json import Node, field_names, parse_json


def parse(data: bytes):
    return parse_json(data, what="document", max_size=limits.MANIFEST_SIZE)


def node(value) -> Node:
    return Node.parse(json.dumps(value).encode(), what="document", max_size=1 << 20)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"{}{}", "not JSON"),
        (b"{} x", "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'"\x01"', "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b'"\xed\xa0\x80"', "not UTF-8"),
        ("{}".encode("utf-16"), "not UTF-8"),
        (b'{"a": 1, "a": 1}', "duplicate key"),
        (b'{"x": [{"a": 1, "\\u0061": 2}]}', "duplicate key"),
        (b"[NaN]", "JSON does not have"),
        (b"[Infinity]", "JSON does not have"),
        (b"[-Infinity]", "JSON does not have"),
        (b"[1e999]", "JSON does not have"),
        (b'["\\ud800"]', "surrogate"),
        (b'{"\\uDfff": 1}', "surrogate"),
        (b"[" + b"9" * 5000 + b"]", "too long"),
    ],
    ids=lambda v: repr(v)[:24],
)
def test_what_is_not_json_with_one_meaning_is_refused(data, message):
    with pytest.raises(InvalidDocument, match=message):
        parse(data)


def test_escaped_surrogate_pairs_are_text():
    assert parse(b'["\\ud83d\\ude00", "\\\\ud800"]') == ["\U0001f600", "\\ud800"]


def test_duplicate_keys_in_different_objects_are_fine():
    assert parse(b'[{"a": {"a": 1}}, {"a": 2}]') == [{"a": {"a": 1}}, {"a": 2}]


@pytest.mark.parametrize(
    ("data", "limit"),
    [
        (b"[" * (limits.JSON_DEPTH + 1), "JSON_DEPTH"),
        (b"[" * 100_000 + b"]" * 100_000, "JSON_DEPTH"),
        (b'{"a":' * 100_000, "JSON_DEPTH"),
        (b"[" + b"0," * limits.JSON_VALUES + b"0]", "JSON_VALUES"),
        (b" " * (limits.MANIFEST_SIZE + 1), "size"),
    ],
    ids=["open", "deep list", "deep object", "many values", "large"],
)
def test_limits_are_named(data, limit):
    with pytest.raises(LimitExceeded) as caught:
        parse(data)
    assert caught.value.fields["limit"] == limit


def test_depth_up_to_the_limit_and_brackets_in_strings_are_fine():
    depth = limits.JSON_DEPTH
    parse(b"[" * depth + b"]" * depth)
    parse(b"[" + b"[]," * 1000 + b"[]]")
    assert parse(b'["' + b"[" * 1000 + b'\\"' + b"{" * 1000 + b'"]') == [
        "[" * 1000 + '"' + "{" * 1000
    ]


@pytest.mark.parametrize(
    "data",
    [
        b'"' + b'\\"' * (1 << 20),
        b'"\\' * (1 << 20),
        b'"' * (1 << 20),
        b'"' + b"x" * (1 << 21) + b"\\",
        b"{" + b'"a":' * 500_000,
    ],
    ids=["escapes", "pairs", "quotes", "unended", "keys"],
)
def test_hostile_text_costs_little(data):
    begin = time.perf_counter()
    with pytest.raises(ContentError):
        parse(data)
    assert time.perf_counter() - begin < 3


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(alphabet='aA."\\{[,', max_size=4), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(JSON, st.booleans())
def test_every_json_value_survives(value, ascii_only):
    assert parse(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.binary(max_size=40) | st.text(alphabet='{}[]",:\\u0aeEdD8-+.ntrufals \n', max_size=40))
@example('"\\ud800')
@example("1" * 5000)
@example("-1e-999")
def test_no_other_exception_on_any_bytes(data):
    with suppress(ContentError):
        parse(data if isinstance(data, bytes) else data.encode())


# --- nodes --------------------------------------------------------------------------------------


def test_errors_say_where_in_the_document():
    document = node({"manifests": [{}, {}, {"platform": {"os": 3, "os.version": 4}}]})
    platform = document.require("manifests").array()[2].require("platform")
    with pytest.raises(InvalidDocument) as caught:
        platform.get_string("os")
    assert caught.value.fields["path"] == "manifests[2].platform.os"
    assert str(caught.value) == (
        "malformed document: expected a string, found a number (path manifests[2].platform.os)"
    )
    with pytest.raises(InvalidDocument) as caught:
        platform.require("os.version").string()
    assert caught.value.fields["path"] == 'manifests[2].platform["os.version"]'
    with pytest.raises(InvalidDocument, match=r"missing \(path manifests\[2\].platform.arch\)"):
        platform.require("arch")


def test_error_at_the_top_has_no_path():
    with pytest.raises(
        InvalidDocument, match=r"^malformed document: expected an object, found a list$"
    ):
        node([])


@pytest.mark.parametrize(
    ("method", "good", "bad"),
    [
        ("object", [{}], [None, [], "", 0, True]),
        ("array", [[]], [None, {}, "", 0, True]),
        ("string", ["", "x"], [None, {}, [], 0, True]),
        ("integer", [0, 1, (1 << 63) - 1], [None, {}, [], "1", True, 1.0, -1, 1 << 63]),
        ("boolean", [True, False], [None, {}, [], "", 0]),
        ("strings", [[], ["a"]], [None, "a", [1], [None]]),
        ("string_map", [{}, {"a": "b"}], [None, [], {"a": 1}, {"a": None}]),
    ],
)
def test_typed_access(method, good, bad):
    for value in good:
        getattr(Node(value, "document"), method)()
    for value in bad:
        with pytest.raises(InvalidDocument):
            getattr(Node(value, "document"), method)()


def test_null_counts_as_absent():
    document = node({"text": None, "list": None, "map": None})
    assert document.get("text") is None
    assert document.get_string("text") == ""
    assert document.get_array("list") == ()
    assert document.get_string_map("map") == {}
    with pytest.raises(InvalidDocument, match="missing"):
        document.require("text")


def test_empty_values_are_present():
    document = node({"text": "", "number": 0, "no": False})
    assert document.require("text").string() == ""
    assert document.require("number").integer() == 0
    assert document.require("no").boolean() is False


@pytest.mark.parametrize("key", ["Config", "CONFIG", "mediatype", "MediaType"])
def test_case_variants_of_known_fields_are_refused(key):
    fields = field_names("config", "mediaType")
    node({"config": 1, "mediaType": 2, "other": 3, "Other": 4}).refuse_case_variants(fields)
    with pytest.raises(InvalidDocument, match="ambiguous"):
        node({"config": 1, key: 2}).refuse_case_variants(fields)


@settings(max_examples=50)
@given(st.text(max_size=400))
def test_any_key_can_be_shown(key):
    error = Node({}, "document")._member(key, None).error("x")
    assert str(error).isprintable()
