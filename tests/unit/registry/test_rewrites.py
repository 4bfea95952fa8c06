"""Rules of rewriting: Go's regular expressions, Go's replacements."""

import pytest

from imgvol import limits
from imgvol.registry.rewrites import Rewrite, rewrite


def after(path, *rules):
    return rewrite(path, [Rewrite.compile(*rule) for rule in rules])


@pytest.mark.parametrize(
    ("pattern", "replacement", "path", "expected"),
    [
        ("(.*)", "docker/$1", "library/busybox", "docker/library/busybox"),
        ("(.*)", "mirrored-$1", "library/busybox", "mirrored-library/busybox"),
        ("(.*)", "$1/docker", "library/busybox", "library/busybox/docker"),
        ("/", "-", "team1/images/test", "team1-images-test"),
        ("a*", "x", "baac", "xbxcx"),
        ("", "x", "ab", "xaxbx"),
        ("^b", "x", "abb", "abb"),
        ("b$", "x", "abb", "abx"),
        (r"\bb", "x", "b/b", "x/x"),
        ("(?P<first>[a-z]+)/(.*)", "${first}-$2", "library/busybox", "library-busybox"),
        ("(.*)", "${1}1", "a", "a1"),
        ("(.*)", "$11/a", "a", "a"),  # no such group, and what is left is no name
        ("(.*)", "x$nothing", "a", "x"),
        ("(.*)", "x${2}", "a", "x"),
        ("(.*)", "x$99999999999999999999", "a", "x"),
        ("(a)|(b)", "${2}x", "ab", "xbx"),
        ("(.*)", "UPPER/$1", "a", "a"),
        ("(.*)", "$$1", "a", "a"),
        ("(.*)", "", "a", "a"),
    ],
)
def test_a_rule(pattern, replacement, path, expected):
    assert after(path, (pattern, replacement)) == expected


def test_the_first_rule_that_changes_the_name_counts():
    rules = ("rancher/(.*)", "rancher/prod/$1"), ("longhornio/(.*)", "longhornio/staging/$1")
    assert after("rancher/rancher", *rules, ("(.*)", "x")) == "rancher/prod/rancher"
    assert after("longhornio/longhorn-engine", *rules) == "longhornio/staging/longhorn-engine"
    assert after("library/busybox", *rules) == "library/busybox"
    assert after("a/b", ("a", "a"), ("a", "BAD"), ("a", "c")) == "c/b"


def test_a_name_that_would_be_too_long_is_not_made():
    assert after("a" * 200, ("(.*)", "$1/$1")) == "a" * 200


@pytest.mark.parametrize("pattern", ["(.*", "a**b(", r"(a)\1", "(?=a)", "\ud800"])
def test_what_re2_does_not_know_is_refused(pattern):
    with pytest.raises(ValueError, match="RE2"):
        Rewrite.compile(pattern, "x")


def test_a_long_replacement_is_refused():
    with pytest.raises(ValueError, match="too long"):
        Rewrite.compile("a", "x" * (limits.REWRITE_LENGTH + 1))


def test_no_pattern_takes_long():
    assert after("a" * 250, ("(a*)*(a*)*(a*)*b", "x")) == "a" * 250
