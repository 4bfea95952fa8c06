import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvol.errors import InvalidArgument
from imgvol.oci.pattern import familiar_match
from imgvol.oci.reference import Reference


@pytest.mark.parametrize(
    ("reference", "pattern", "matches"),
    [
        ("foo", "foo/**/ba[rz]", False),
        ("foo/any/bat", "foo/**/ba[rz]", False),
        ("foo/a/bar", "foo/**/ba[rz]", True),
        ("foo/b/baz", "foo/**/ba[rz]", True),
        ("foo/c/baz:tag", "foo/**/ba[rz]", True),
        ("foo/c/baz:tag", "foo/*/baz:tag", True),
        ("foo/c/baz:tag", "foo/c/baz:tag", True),
        ("example.com/foo/c/baz:tag", "*/foo/c/baz", True),
        ("example.com/foo/c/baz:tag", "example.com/foo/c/baz", True),
        ("alpine:3", "alpine", True),
        ("alpine:3", "alpine:?", True),
        ("alpine:3", "alpine:[^0-2]", True),
        ("alpine:3", "alpine:[^0-4]", False),
        ("alpine:3", "a*p*n*:*", True),
        ("alpine:3", "*", True),
        ("library/a/b", "*", False),
        ("alpine:3", r"alpin\e", True),
        ("alpine:3", "alpine:[z-a]", False),
        ("alpine:3", "alpine:[^z-a]", True),
        ("alpine:3", "alpine.3", False),
        ("alpine:3", "", False),
    ],
)
def test_patterns_over_familiar_names(reference, pattern, matches):
    assert familiar_match(pattern, Reference.parse(reference)) is matches


@pytest.mark.parametrize("pattern", ["[-x]", "[", "[]", "[a", "[a-]", "a\\", "[^]", "x" * 300])
def test_malformed_patterns(pattern):
    with pytest.raises(InvalidArgument):
        familiar_match(pattern, Reference.parse("foo"))


def test_many_stars_cost_little():
    reference = Reference.parse("example.com/" + "a" * 255)
    begin = time.perf_counter()
    assert not familiar_match("example.com/" + "*a" * 100 + "*b", reference)
    assert time.perf_counter() - begin < 1


@given(st.text(alphabet="a*?[]^-\\/.x", max_size=20))
def test_no_other_exception_on_any_pattern(pattern):
    with suppress(InvalidArgument):
        familiar_match(pattern, Reference.parse("a/x"))
