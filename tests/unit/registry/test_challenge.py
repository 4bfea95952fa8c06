"""Login challenges: what registries send, and what nobody should."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imgvol import limits
from imgvol.errors import ProtocolError
from imgvol.registry.challenge import Challenge, choose_challenge, parse_challenges


def parsed(*headers):
    return [(each.scheme, dict(each.parameters)) for each in parse_challenges(headers)]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", []),
        (" , ,", []),
        ("Basic", [("basic", {})]),
        ('Basic realm="x"', [("basic", {"realm": "x"})]),
        ("Basic realm=x", [("basic", {"realm": "x"})]),
        ('BASIC ReAlM = "x"', [("basic", {"realm": "x"})]),
        (
            'Bearer realm="https://auth.example.com/token",service="r",scope="repository:a/b:pull,push"',
            [
                (
                    "bearer",
                    {
                        "realm": "https://auth.example.com/token",
                        "service": "r",
                        "scope": "repository:a/b:pull,push",
                    },
                )
            ],
        ),
        ("Bearer realm=https://example.com/t , service=a:443",
         [("bearer", {"realm": "https://example.com/t", "service": "a:443"})]),
        ('Bearer realm="a\\"b\\\\c"', [("bearer", {"realm": 'a"b\\c'})]),
        ('Bearer realm=""', [("bearer", {"realm": ""})]),
        ('Basic realm="a, Bearer realm=b"', [("basic", {"realm": "a, Bearer realm=b"})]),
        (
            'Negotiate, Basic realm="x", Bearer realm="y" ,error="insufficient_scope"',
            [
                ("negotiate", {}),
                ("basic", {"realm": "x"}),
                ("bearer", {"realm": "y", "error": "insufficient_scope"}),
            ],
        ),
        ("Negotiate YWJj==, Basic realm=x", [("negotiate", {}), ("basic", {"realm": "x"})]),
        ("Negotiate YW/Jj+", [("negotiate", {})]),
    ],
)  # fmt: skip
def test_challenges_are_told_from_parameters(header, expected):
    assert parsed(header) == expected


def test_several_headers_are_read_in_order():
    assert [scheme for scheme, _ in parsed("Basic realm=x, Digest nonce=y", "Bearer realm=z")] == [
        "basic",
        "digest",
        "bearer",
    ]


@pytest.mark.parametrize(
    "header",
    [
        '"',
        "=",
        "Basic a=b, realm=",
        'Basic realm="x',
        'Basic realm="x\\"',
        "Basic realm=x, realm=y",
        "Ü",
    ],
)
def test_malformed_headers_are_refused(header):
    with pytest.raises(ProtocolError, match="malformed login challenge"):
        parse_challenges([header])


def test_long_headers_are_refused():
    half = "x" * (limits.CHALLENGE_SIZE // 2)
    assert len(parse_challenges([half, half])) == 2
    with pytest.raises(ProtocolError, match="too long"):
        parse_challenges([half, half, "x"])


def test_error_does_not_carry_control_characters():
    with pytest.raises(ProtocolError) as raised:
        parse_challenges(["\x1b[2J\n=" * 1000])
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], None),
        (["Negotiate"], None),
        (["Basic realm=a, Basic realm=b"], ("basic", "a")),
        (["Basic realm=a", "Bearer realm=b", "Bearer realm=c"], ("bearer", "b")),
    ],
)
def test_bearer_before_basic_and_the_first_of_each(headers, expected):
    chosen = choose_challenge(parse_challenges(headers))
    assert (chosen and (chosen.scheme, chosen.parameters["realm"])) == expected


@given(st.text(alphabet=st.characters(max_codepoint=0x17F), max_size=60))
@example("a=b,c")
@example('a b="\\')
def test_any_text_gives_challenges_or_a_protocol_error(text):
    try:
        challenges = parse_challenges([text])
    except ProtocolError:
        return
    assert all(isinstance(each, Challenge) and each.scheme for each in challenges)


TOKENS = st.text(alphabet="abcXYZ019-_.!~", min_size=1, max_size=8)
VALUES = st.text(alphabet=st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=12)
CHALLENGES = st.lists(
    st.tuples(TOKENS, st.dictionaries(TOKENS.map(str.lower), VALUES, min_size=1, max_size=3)),
    max_size=4,
)


@given(CHALLENGES, st.sampled_from([", ", ",", " , ,"]))
def test_what_is_written_is_read_back(challenges, comma):
    def quoted(value):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    header = comma.join(
        f"{scheme} " + comma.join(f"{name}={quoted(value)}" for name, value in parameters.items())
        for scheme, parameters in challenges
    )
    assert parsed(header) == [(scheme.lower(), parameters) for scheme, parameters in challenges]


def test_parsing_is_linear():
    parse_challenges(["x " * 4000])
    with pytest.raises(ProtocolError):
        parse_challenges(['a b="' + "\\\\" * 4000])
