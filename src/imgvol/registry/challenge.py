"""`WWW-Authenticate`, read: what a server wants to know before it answers.

RFC 9110, 11.6.1. The comma does two jobs there: it parts challenges, and it parts the parameters
of one challenge. A name followed by `=` is a parameter of the challenge before it; any other name
begins a new one. Pure: text in; challenges or a ProtocolError out.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from imgvol import limits
from imgvol.errors import ProtocolError
from imgvol.registry.redaction import quote_remote

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SEPARATORS: Final = re.compile(r"[\s,]*")
_SPACES: Final = re.compile(r"\s*")
_EQUALS: Final = re.compile(r"\s*=\s*")
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
# Looser than RFC 9110, whose tokens have no slash or colon: registries send bare realms.
_BARE_VALUE: Final = re.compile(r'[^\s,"]+')
# The credentials of Negotiate and the like: stands alone, up to a comma or the end.
_TOKEN68: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*(?=\s*(?:,|$))")

# In the order of preference: a token is narrower than a password.
_SPOKEN: Final = ("bearer", "basic")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way in. `scheme` and the names of `parameters` are in lower case."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(headers: Iterable[str]) -> tuple[Challenge, ...]:
    """Read every `WWW-Authenticate` header of an answer, in order.

    Raises:
        ProtocolError: A header does not follow the grammar, names a parameter twice, or the headers
            are too long.
    """
    values = tuple(headers)
    if sum(map(len, values)) > limits.CHALLENGE_SIZE:
        raise ProtocolError("the login challenge is too long", allowed=limits.CHALLENGE_SIZE)
    return tuple(challenge for value in values for challenge in _Parser(value).challenges())


def choose_challenge(challenges: Iterable[Challenge]) -> Challenge | None:
    """The challenge to answer: Bearer before Basic, the first of each; None if neither is there."""
    by_scheme = {challenge.scheme: challenge for challenge in reversed(tuple(challenges))}
    return next((by_scheme[scheme] for scheme in _SPOKEN if scheme in by_scheme), None)


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0

    def challenges(self) -> Iterable[Challenge]:
        self._skip(_SEPARATORS)
        while self._position < len(self._text):
            scheme = self._take(_TOKEN, "a scheme")
            yield Challenge(scheme.lower(), MappingProxyType(self._parameters()))
            self._skip(_SEPARATORS)

    def _parameters(self) -> dict[str, str]:
        parameters: dict[str, str] = {}
        self._skip(_SPACES)
        if self._is_token68():
            self._skip(_TOKEN68)
            return parameters
        while name := self._parameter_name():
            if name in parameters:
                raise self._malformed(f"{name} twice")
            parameters[name] = self._value()
            self._skip(_SEPARATORS)
        return parameters

    def _is_token68(self) -> bool:
        match = _TOKEN68.match(self._text, self._position)
        return match is not None and self._position > 0 and self._text[self._position - 1] == " "

    def _parameter_name(self) -> str:
        """Take `name =`; nothing is taken when a new challenge begins here."""
        match = _TOKEN.match(self._text, self._position)
        equals = _EQUALS.match(self._text, match.end()) if match else None
        if match is None or equals is None:
            return ""
        self._position = equals.end()
        return match[0].lower()

    def _value(self) -> str:
        quoted = _QUOTED.match(self._text, self._position)
        if quoted is None:
            return self._take(_BARE_VALUE, "a value")
        self._position = quoted.end()
        return re.sub(r"\\(.)", r"\1", quoted[1], flags=re.DOTALL)

    def _take(self, pattern: re.Pattern[str], what: str) -> str:
        match = pattern.match(self._text, self._position)
        if match is None:
            raise self._malformed(f"{what} is missing")
        self._position = match.end()
        return match[0]

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self._text, self._position)
        self._position = match.end() if match else self._position

    def _malformed(self, problem: str) -> ProtocolError:
        return ProtocolError(
            f"malformed login challenge: {problem}",
            header=quote_remote(self._text),
            offset=self._position,
        )
