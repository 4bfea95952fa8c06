"""What reaches a terminal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvol.cli.text import cell_width, decode, encode, shortened, visible, visible_name


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"plain", "plain"),
        (b"two words", "two words"),
        (b"back\\slash", "back\\\\slash"),
        (b"\x1b]0;owned\x07", "\\033]0;owned\\a"),
        (b"line\nbreak\ttab", "line\\nbreak\\ttab"),
        (b"caf\xc3\xa9", "café"),
        (b"latin\xe9", "latin\\351"),
        ("abc\u202edef".encode(), "abc\\342\\200\\256def"),  # right-to-left override
        (b"\xc2\x9b31m", "\\302\\23331m"),  # CSI as one C1 character
        (b"\x7f", "\\177"),
    ],
)
def test_names(name, shown):
    assert visible_name(name) == shown


@given(st.binary(max_size=50))
def test_nothing_unprintable_is_shown_and_bytes_survive(name):
    assert visible_name(name).isprintable()
    assert visible(decode(name)).isprintable()
    assert encode(decode(name)) == name


@given(st.binary(max_size=20), st.binary(max_size=20))
def test_different_names_are_shown_differently(one, other):
    assert (visible_name(one) == visible_name(other)) == (one == other)


def test_prose_keeps_its_backslashes():
    assert visible("path \\x1b and \x1b") == "path \\x1b and \\033"


@given(st.text(st.characters(categories=["L", "N"]), max_size=40), st.integers(3, 30))
def test_shortened_fits(text, width):
    assert cell_width(shortened(text, width)) <= width


def test_wide_characters_take_two_columns():
    assert cell_width("日本") == 4
    assert cell_width("e\u0301") == 1
