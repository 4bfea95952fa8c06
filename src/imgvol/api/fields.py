"""What requests may carry: one declaration gives both the check and the OpenAPI schema."""

import json
import math
from collections.abc import Callable, Mapping, Sequence, Sized
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
    "integer": (int,),
    "strings": (list,),
    "labels": (dict,),
    "records": (list,),
}
# Which word of JSON Schema bounds them.
_MAXIMUM: Final[Mapping[str, str]] = {
    "string": "maxLength",
    "number": "maximum",
    "integer": "maximum",
    "strings": "maxItems",
    "labels": "maxProperties",
    "records": "maxItems",
}


Kind = Literal["string", "boolean", "number", "integer", "strings", "labels", "records"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One query parameter, or one member of a request body.

    Attributes:
        name: As it is written.
        kind: JSON type; "strings" is an array of them, "labels" an object whose members are
            strings, "records" an array of objects. The last three are for bodies only.
        description: For people, one sentence.
        required: Whether it must be there.
        default: What is taken when it is not.
        maximum: Of a number, which is never less than 0; of a string's characters; of elements.
        members: Of each record.
        choices: The only values allowed, when there are any.
        example: For the document.
        is_path: Bytes in the file system's sense: text decoded with surrogateescape.
        is_secret: Not to be shown by who shows requests. For bodies only: queries are no place.
    """

    name: str
    description: str
    kind: Kind = "string"
    required: bool = False
    default: str | bool | float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    members: tuple["Field", ...] = ()
    example: str | bool | float | None = None
    is_path: bool = False
    is_secret: bool = False

    def schema(self) -> dict[str, object]:
        """JSON Schema of the value."""
        schema = self._shape()
        if self.maximum is not None:
            schema[_MAXIMUM[self.kind]] = self.maximum
        if self.choices:
            schema["enum"] = list(self.choices)
        if self.default is not None:
            schema["default"] = self.default
        if self.kind == "string" and self.required:
            schema["minLength"] = 1
        if self.is_secret:
            schema |= {"format": "password", "writeOnly": True}
        return schema

    def _shape(self) -> dict[str, object]:
        match self.kind:
            case "number" | "integer":
                return {"type": self.kind, "minimum": 0}
            case "strings":
                return {"type": "array", "items": {"type": "string"}}
            case "labels":
                return {"type": "object", "additionalProperties": {"type": "string"}}
            case "records":
                return {"type": "array", "items": object_schema(self.members)}
            case _:
                return {"type": self.kind}

    def check(self, value: object) -> "Value":
        """Return the value, or raise InvalidArgument that says what would be right."""
        if not isinstance(value, _TYPES[self.kind]) or (
            isinstance(value, bool) and self.kind != "boolean"
        ):
            raise InvalidArgument(f"{self.name} must be a {self.kind}", got=type(value).__name__)
        match value:
            case bool():
                return value
            case int() | float():
                self._check_number(value)
                return value
            case str():
                self._check_length(value)
                return self._check_text(value)
            case dict():
                self._check_length(value)
                return {self._check_text(key): self._check_text(v) for key, v in value.items()}
            case list() if self.kind == "records":
                self._check_length(value)
                return [_record(element, self) for element in value]
            case list():
                self._check_length(value)
                return [self._check_text(element) for element in value]
        raise AssertionError

    def _check_length(self, value: Sized) -> None:
        if self.maximum is not None and len(value) > self.maximum:
            raise InvalidArgument(f"{self.name} is too long", allowed=self.maximum, got=len(value))

    def _check_number(self, value: float) -> None:
        # NaN is in no range.
        if not 0 <= value <= (math.inf if self.maximum is None else self.maximum):
            raise InvalidArgument(f"{self.name} is out of range", got=value, maximum=self.maximum)

    def _check_text(self, value: object) -> str:
        if not isinstance(value, str):
            raise InvalidArgument(f"{self.name} has to hold strings", got=type(value).__name__)
        if self.required and not value:
            raise InvalidArgument(f"{self.name} is empty")
        if "\0" in value:
            raise InvalidArgument(f"{self.name} contains a NUL")
        try:
            # JSON can write surrogates that stand for no byte, not even in a path.
            value.encode("utf-8", "surrogateescape" if self.is_path else "strict")
        except UnicodeEncodeError as exc:
            raise InvalidArgument(f"{self.name} is not UTF-8") from exc
        if self.choices and value not in self.choices:
            raise InvalidArgument(
                f"{self.name} must be one of {', '.join(self.choices)}", got=value
            )
        return value


class Values:
    """Checked values of a request, with typed access by name.

    Attributes:
        file: The open file that came with it, where the route takes one.
    """

    def __init__(self, values: Mapping[str, "Value | None"]) -> None:
        self._values = values
        self.file: int | None = None

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

    def given(self, name: str) -> str | None:
        """A string as it was given, perhaps empty; None when it was not."""
        value = self._values[name]
        assert value is None or isinstance(value, str)
        return value

    def strings(self, name: str) -> list[str]:
        """Strings; none when they were not given."""
        return [element for element in self._elements(name) if isinstance(element, str)]

    def records(self, name: str) -> list["Values"]:
        """Records; none when they were not given."""
        return [element for element in self._elements(name) if isinstance(element, Values)]

    def _elements(self, name: str) -> Sequence["str | Values"]:
        value = self._values[name]
        assert value is None or isinstance(value, list)
        return value or ()

    def labels(self, name: str) -> dict[str, str]:
        """Strings by name; none when they were not given."""
        value = self._values[name]
        assert value is None or isinstance(value, dict)
        return value or {}

    def flag(self, name: str) -> bool:
        """A boolean; False when it was not given."""
        return self._values[name] is True

    def number(self, name: str) -> float:
        """A number; 0 when it was not given."""
        value = self._values[name]
        assert value is None or isinstance(value, int | float)
        return float(value or 0)

    def optional_number(self, name: str) -> float | None:
        """A number, or None when it was not given."""
        return None if self._values[name] is None else self.number(name)

    def path(self, name: str) -> bytes:
        """A path, as bytes."""
        return self.text(name).encode("utf-8", "surrogateescape")


Value = str | bool | float | list[str] | list[Values] | dict[str, str]


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
        given[name] = _QUERY_KINDS.get(kinds.get(name, "string"), _text)(name, text)
    return _checked(given, fields, "query parameter")


def parse_body(body: bytes, fields: Sequence[Field]) -> Values:
    """Check a JSON body against its declaration; raises InvalidArgument."""
    try:
        document = json.loads(body or b"{}", object_pairs_hook=_unique, parse_constant=_no_json)
    except (ValueError, RecursionError) as error:
        hint = "Send one JSON object, encoded as UTF-8."
        raise InvalidArgument("the request body is not JSON", hint=hint) from error
    if not isinstance(document, dict):
        raise InvalidArgument("the request body is not a JSON object")
    return _checked(document, fields, "member of the request body")


def object_schema(fields: Sequence[Field]) -> dict[str, object]:
    """JSON Schema of an object with these members and no others."""
    return {
        "type": "object",
        "properties": {field.name: _member_schema(field) for field in fields},
        "required": [field.name for field in fields if field.required],
        "additionalProperties": False,
    }


def _member_schema(field: Field) -> dict[str, object]:
    schema = field.schema()
    if not field.required:
        # See _checked.
        schema["type"] = [schema["type"], "null"]
        if field.choices:
            schema["enum"] = [*field.choices, None]
    examples = {} if field.example is None else {"examples": [field.example]}
    return {**schema, "description": field.description, **examples}


def _record(value: object, field: Field) -> Values:
    if not isinstance(value, dict):
        raise InvalidArgument(f"{field.name} has to hold objects", got=type(value).__name__)
    return _checked(value, field.members, f"member of {field.name}")


def _checked(given: Mapping[str, object], fields: Sequence[Field], what: str) -> Values:
    known = {field.name for field in fields}
    for name in given:
        if name not in known:
            raise InvalidArgument(
                f"unknown {what}",
                hint=f"Known here: {', '.join(sorted(known)) or 'none'}.",
                name=name,
            )
    values: dict[str, Value | None] = {}
    for field in fields:
        # One that is null is one that is not there.
        if (value := given.get(field.name)) is not None:
            values[field.name] = field.check(value)
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


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InvalidArgument(f"{name} must be a number", got=text) from error


def _text(_name: str, text: str) -> str:
    return text


_QUERY_KINDS: Final[Mapping[str, Callable[[str, str], object]]] = {
    "boolean": _boolean,
    "number": _number,
}


def _no_json(_word: str) -> None:
    """Refuses NaN and Infinity, which JSON does not have."""
    raise ValueError


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError
    return result
