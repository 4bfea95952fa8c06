"""JSON documents from outside, read strictly.

Go's decoder, which most tools use, takes the last of two equal keys and matches keys whatever
their case: one document can then mean two things to two readers (CVE-2021-41190 is of that family).
Here a document has one meaning or none: duplicate keys, lone surrogates, NaN and infinities are
refused, and size, depth and the number of values are bounded before anything is built.

`Node` is a value that knows where it stands, so that an error can say `manifests[2].platform.os`.
A member that is `null` counts as absent, as in Go, whose encoder writes `null` for empty lists.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NoReturn, Self, TypeAlias

from imgvol import limits
from imgvol.errors import InvalidDocument, LimitExceeded

JSONValue: TypeAlias = "bool | int | float | str | list[JSONValue] | dict[str, JSONValue] | None"

# A string, ended or not, or a structural character. The possessive quantifiers and the `\Z` keep
# the scan linear whatever the text.
_TOKEN: Final = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[\[\]{},]', re.DOTALL)
_SURROGATE_ESCAPE: Final = re.compile(r"\\u[dD][89a-fA-F]", re.ASCII)
_PLAIN_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*", re.ASCII)
_INT64_MAX: Final = (1 << 63) - 1


def parse_json(data: bytes, *, what: str, max_size: int) -> JSONValue:
    """Parse a whole document.

    Args:
        data: The document, in UTF-8.
        what: What the document is, for messages: `manifest`.
        max_size: The most bytes accepted.

    Raises:
        LimitExceeded: Too many bytes, values or levels.
        InvalidDocument: Not JSON, or JSON with more than one meaning.
    """
    if len(data) > max_size:
        raise LimitExceeded(f"{what} is too large", limit="size", allowed=max_size)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidDocument(f"{what} is not UTF-8", offset=error.start) from error
    _check_shape(text, what)
    return _load(text, what)


def _check_shape(text: str, what: str) -> None:
    depth = values = 0
    for token in _TOKEN.finditer(text):
        first = text[token.start()]
        if first in "]}":
            depth -= 1
        elif first != '"':
            values += 1
            depth += first != ","
            if depth > limits.JSON_DEPTH:
                raise LimitExceeded(
                    f"{what} is nested too deeply", limit="JSON_DEPTH", allowed=limits.JSON_DEPTH
                )
            if values > limits.JSON_VALUES:
                raise LimitExceeded(
                    f"{what} has too many values", limit="JSON_VALUES", allowed=limits.JSON_VALUES
                )


def _load(text: str, what: str) -> JSONValue:
    def unique(pairs: list[tuple[str, JSONValue]]) -> dict[str, JSONValue]:
        members = dict(pairs)
        if len(members) != len(pairs):
            raise InvalidDocument(f"{what} has a duplicate key", key=_first_duplicate(pairs))
        return members

    def finite(number: str) -> float:
        value = float(number)
        if not math.isfinite(value):
            refuse(number)
        return value

    def refuse(constant: str) -> NoReturn:
        raise InvalidDocument(f"{what} has a number that JSON does not have", value=constant[:64])

    try:
        value: JSONValue = json.loads(
            text, object_pairs_hook=unique, parse_float=finite, parse_constant=refuse
        )
        if _SURROGATE_ESCAPE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        raise InvalidDocument(
            f"{what} is not JSON: {error.msg.lower()}", line=error.lineno, column=error.colno
        ) from error
    except UnicodeEncodeError as error:
        raise InvalidDocument(f"{what} has a lone surrogate") from error
    except ValueError as error:  # an integer of more digits than Python converts
        raise InvalidDocument(f"{what} has a number that is too long") from error
    return value


def _first_duplicate(pairs: Iterable[tuple[str, JSONValue]]) -> str:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            return key
        seen.add(key)
    return ""


@dataclass(frozen=True, slots=True)
class Node:
    """A JSON value, the document it is of, and its place there.

    Every method that asks for a type raises InvalidDocument when the value has another one.
    """

    value: JSONValue
    what: str
    path: str = ""

    @classmethod
    def parse(cls, data: bytes, *, what: str, max_size: int) -> Self:
        """Parse a document whose top is an object.

        Raises:
            LimitExceeded: As `parse_json`.
            InvalidDocument: As `parse_json`, or the top is no object.
        """
        node = cls(parse_json(data, what=what, max_size=max_size), what)
        node.object()
        return node

    def error(self, problem: str) -> InvalidDocument:
        """An error about this value: raise it."""
        return InvalidDocument(f"malformed {self.what}: {problem}", path=self.path or None)

    def object(self) -> Mapping[str, JSONValue]:
        """The members of an object."""
        if not isinstance(self.value, dict):
            raise self._mismatch("an object")
        return self.value

    def array(self) -> tuple["Node", ...]:
        """The items of a list."""
        if not isinstance(self.value, list):
            raise self._mismatch("a list")
        return tuple(
            Node(item, self.what, f"{self.path}[{position}]")
            for position, item in enumerate(self.value)
        )

    def string(self) -> str:
        """Text, perhaps empty."""
        if not isinstance(self.value, str):
            raise self._mismatch("a string")
        return self.value

    def integer(self, *, minimum: int = 0, maximum: int = _INT64_MAX) -> int:
        """A whole number; by default not negative, and within a signed 64-bit field."""
        if not isinstance(self.value, int) or isinstance(self.value, bool):
            raise self._mismatch("a whole number")
        if not minimum <= self.value <= maximum:
            raise self.error(f"the number is not between {minimum} and {maximum}")
        return self.value

    def number(self, *, minimum: float = 0, maximum: float) -> float:
        """A number, whole or not."""
        if not isinstance(self.value, int | float) or isinstance(self.value, bool):
            raise self._mismatch("a number")
        if not minimum <= self.value <= maximum:
            raise self.error(f"the number is not between {minimum:g} and {maximum:g}")
        return float(self.value)

    def boolean(self) -> bool:
        """True or false."""
        if not isinstance(self.value, bool):
            raise self._mismatch("true or false")
        return self.value

    def strings(self) -> tuple[str, ...]:
        """A list of texts."""
        return tuple(item.string() for item in self.array())

    def string_map(self) -> dict[str, str]:
        """An object whose members are texts: annotations, labels."""
        return {key: self._member(key, value).string() for key, value in self.object().items()}

    def get(self, key: str) -> "Node | None":
        """The member `key` of an object; None when it is absent or null."""
        value = self.object().get(key)
        return None if value is None else self._member(key, value)

    def require(self, key: str) -> "Node":
        """The member `key` of an object, which must be there."""
        member = self.get(key)
        if member is None:
            raise self._member(key, None).error("required, and missing")
        return member

    def get_string(self, key: str) -> str:
        """The text `key` of an object; empty when absent."""
        member = self.get(key)
        return member.string() if member else ""

    def get_array(self, key: str) -> tuple["Node", ...]:
        """The items of the list `key` of an object; none when absent."""
        member = self.get(key)
        return member.array() if member else ()

    def get_string_map(self, key: str) -> dict[str, str]:
        """The object of texts `key` of an object; empty when absent."""
        member = self.get(key)
        return member.string_map() if member else {}

    def refuse_case_variants(self, fields: Mapping[str, str]) -> None:
        """Refuse a member that other readers would take for a known field.

        Args:
            fields: The known field names by their lower-case form: see `field_names`.

        Raises:
            InvalidDocument: A key equals a field's name but for its case.
        """
        for key in self.object():
            field = fields.get(key.lower())
            if field is not None and field != key:
                raise self._member(key, None).error(f"ambiguous: the field is spelt {field}")

    def _member(self, key: str, value: JSONValue) -> "Node":
        if not _PLAIN_KEY.fullmatch(key):
            shown = key if len(key) <= limits.NAME_LENGTH else f"{key[:64]}…"
            return Node(value, self.what, f"{self.path}[{json.dumps(shown, ensure_ascii=False)}]")
        return Node(value, self.what, f"{self.path}.{key}" if self.path else key)

    def _mismatch(self, wanted: str) -> InvalidDocument:
        return self.error(f"expected {wanted}, found {_kind(self.value)}")


def field_names(*names: str) -> Mapping[str, str]:
    """Index field names for `Node.refuse_case_variants`."""
    return {name.lower(): name for name in names}


def _kind(value: JSONValue) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case dict():
            return "an object"
