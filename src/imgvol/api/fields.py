"""What requests may carry: one declaration gives both the check and the OpenAPI schema."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import parse_qsl

from imgvol.errors import InvalidArgument

# No route takes more; a longer query is somebody's mistake.
_QUERY_FIELDS = 32


_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,),
    "boolean": (bool,),
    "number": (int, float),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One query parameter, or one member of a request body.

    Attributes:
        name: As it is written.
        kind: JSON type.
        description: For people, one sentence.
        required: Whether it must be there.
        default: What is taken when it is not.
        maximum: Of a number, which is never less than 0.
        choices: The only values allowed, when there are any.
        example: For the document.
        is_path: Bytes in the file system's sense: text decoded with surrogateescape.
    """

    name: str
    description: str
    kind: Literal["string", "boolean", "number"] = "string"
    required: bool = False
    default: str | bool | float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    example: str | bool | float | None = None
    is_path: bool = False

    def schema(self) -> dict[str, object]:
        """JSON Schema of the value."""
        schema: dict[str, object] = {"type": self.kind}
        if self.kind == "number":
            schema["minimum"] = 0
        if self.maximum is not None:
            schema["maximum"] = self.maximum
        if self.choices:
            schema["enum"] = list(self.choices)
        if self.default is not None:
            schema["default"] = self.default
        if self.kind == "string" and self.required:
            schema["minLength"] = 1
        return schema

    def check(self, value: object) -> str | bool | float:
        """Return the value, or raise InvalidArgument that says what would be right."""
        if not isinstance(value, _TYPES[self.kind]) or (
            isinstance(value, bool) and self.kind == "number"
        ):
            raise InvalidArgument(f"{self.name} must be a {self.kind}", got=type(value).__name__)
        assert isinstance(value, str | bool | int | float)
        if isinstance(value, str):
            self._check_text(value)
        elif not isinstance(value, bool):
            self._check_number(value)
        return value

    def _check_number(self, value: float) -> None:
        # NaN is in no range.
        if not 0 <= value <= (math.inf if self.maximum is None else self.maximum):
            raise InvalidArgument(f"{self.name} is out of range", got=value, maximum=self.maximum)

    def _check_text(self, value: str) -> None:
        if self.required and not value:
            raise InvalidArgument(f"{self.name} is empty")
        if "\0" in value:
            raise InvalidArgument(f"{self.name} contains a NUL")
        if (
            not self.is_path
            and not value.isascii()
            and any("\ud800" <= c <= "\udfff" for c in value)
        ):
            raise InvalidArgument(f"{self.name} is not UTF-8")
        if self.choices and value not in self.choices:
            raise InvalidArgument(
                f"{self.name} must be one of {', '.join(self.choices)}", got=value
            )


class Values:
    """Checked values of a request, with typed access by name."""

    def __init__(self, values: Mapping[str, str | bool | float | None]) -> None:
        self._values = values

    def text(self, name: str) -> str:
        """A string that is there."""
        value = self._values[name]
        assert isinstance(value, str)
        return value

    def optional(self, name: str) -> str | None:
        """A string, or None when it was not given or is empty."""
        value = self._values[name]
        assert value is None or isinstance(value, str)
        return value or None

    def flag(self, name: str) -> bool:
        """A boolean; False when it was not given."""
        return self._values[name] is True

    def number(self, name: str) -> float:
        """A number; 0 when it was not given."""
        value = self._values[name]
        assert value is None or isinstance(value, int | float)
        return float(value or 0)

    def path(self, name: str) -> bytes:
        """A path, as bytes."""
        return self.text(name).encode("utf-8", "surrogateescape")


def parse_query(query: str, fields: Sequence[Field]) -> Values:
    """Check a query string against its declaration.

    Raises:
        InvalidArgument: Unknown, repeated, missing or malformed parameters.
    """
    try:
        pairs = parse_qsl(
            query, keep_blank_values=True, errors="surrogateescape", max_num_fields=_QUERY_FIELDS
        )
    except ValueError as error:
        raise InvalidArgument("too many query parameters", allowed=_QUERY_FIELDS) from error
    kinds = {field.name: field.kind for field in fields}
    given: dict[str, object] = {}
    for name, text in pairs:
        if name in given:
            raise InvalidArgument("a query parameter is given twice", parameter=name)
        given[name] = _boolean(name, text) if kinds.get(name) == "boolean" else text
    return _checked(given, fields, "query parameter")


def parse_body(body: bytes, fields: Sequence[Field]) -> Values:
    """Check a JSON body against its declaration; raises InvalidArgument."""
    try:
        document = json.loads(body or b"{}", object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        hint = "Send one JSON object, encoded as UTF-8."
        raise InvalidArgument("the request body is not JSON", hint=hint) from error
    if not isinstance(document, dict):
        raise InvalidArgument("the request body is not a JSON object")
    # A member that is null is a member that is not there.
    given = {name: value for name, value in document.items() if value is not None}
    return _checked(given, fields, "member of the request body")


def _checked(given: Mapping[str, object], fields: Sequence[Field], what: str) -> Values:
    known = {field.name for field in fields}
    for name in given:
        if name not in known:
            raise InvalidArgument(
                f"unknown {what}",
                hint=f"Known here: {', '.join(sorted(known)) or 'none'}.",
                name=name,
            )
    values: dict[str, str | bool | float | None] = {}
    for field in fields:
        if field.name in given:
            values[field.name] = field.check(given[field.name])
        elif field.required:
            raise InvalidArgument(f"{field.name} is missing")
        else:
            values[field.name] = field.default
    return Values(values)


def _boolean(name: str, text: str) -> bool:
    values = {"true": True, "1": True, "": True, "false": False, "0": False}
    if text not in values:
        raise InvalidArgument(f"{name} must be true or false", got=text)
    return values[text]


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError
    return result
