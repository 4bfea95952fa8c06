"""The JSON of a table of contents, one entry after another.

The documents of an image are small and are read whole (`imgvol.oci.json`). A table of contents may
have 150 MiB, of which Python would make gigabytes. So this module walks over the outermost object,
`{"version": 1, "entries": [{…}, {…}]}`, by itself, and hands each entry to the library alone, from
a window of text that is never much longer than the longest entry. It is as strict as the other
reader: duplicate keys, NaN, lone surrogates and what is not UTF-8 are refused.
"""

import codecs
import json
import math
import re
from collections.abc import Iterator
from typing import Any, Final, NoReturn

from imgvol import limits
from imgvol.errors import InvalidDocument, LimitExceeded, Unsupported

Entry = dict[str, Any]
"""One entry: an object of JSON, whose values have not been looked at."""

_VERSION: Final = 1
_SPACE: Final = re.compile(r"[ \t\n\r]*+")
_SURROGATE_ESCAPE: Final = re.compile(r"\\u[dD][89a-fA-F]", re.ASCII)
_WINDOW: Final = 256 * limits.KIB
_KNOWN_KEYS: Final = frozenset({"version", "entries"})


def iter_entries(data: bytes) -> Iterator[Entry]:
    """The entries of a table of contents, in order. Nothing is to be trusted before the end.

    Raises:
        InvalidDocument: Not a table of contents. Field `offset`: where, in characters.
        LimitExceeded: An entry is too large, or nested too deeply.
        Unsupported: A version other than 1.
    """
    text = _Text(data)
    seen: set[str] = set()
    text.expect("{")
    if not text.accept("}"):
        while True:
            key = _unique_key(text, seen)
            if key == "entries":
                yield from _iter_array(text)
            elif key == "version":
                _check_version(text.value())
            else:
                text.value()
            if text.accept("}"):
                break
            text.expect(",")
    text.expect_end()
    if not seen >= _KNOWN_KEYS:
        raise InvalidDocument("malformed table of contents: no version or no entries")


def _unique_key(text: "_Text", seen: set[str]) -> str:
    key = text.value()
    if not isinstance(key, str):
        raise text.error("a key that is no string")
    if key in seen or (key not in _KNOWN_KEYS and key.lower() in _KNOWN_KEYS):
        raise text.error("an ambiguous key")
    seen.add(key)
    if len(seen) > limits.JSON_DEPTH:
        raise text.error("too many keys")
    text.expect(":")
    return key


def _check_version(version: object) -> None:
    if version != _VERSION or isinstance(version, bool):
        raise Unsupported("a table of contents of an unknown version", version=version)


def _iter_array(text: "_Text") -> Iterator[Entry]:
    text.expect("[")
    if text.accept("]"):
        return
    while True:
        entry = text.value()
        if not isinstance(entry, dict):
            raise text.error("an entry that is no object")
        yield entry
        if text.accept("]"):
            return
        text.expect(",")


class _Text:
    """A window on the text of a document, which moves forward."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._read = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("strict")
        self._window = ""
        self._at = 0
        self._passed = 0  # characters before the window
        self._json = json.JSONDecoder(
            object_pairs_hook=self._unique, parse_float=self._finite, parse_constant=self._refuse
        )

    def error(self, problem: str) -> InvalidDocument:
        """An error at this place: raise it."""
        message = f"malformed table of contents: {problem}"
        return InvalidDocument(message, offset=self._passed + self._at)

    def accept(self, mark: str) -> bool:
        """Pass over a mark if it is next."""
        if self._peek() != mark:
            return False
        self._at += 1
        return True

    def expect(self, mark: str) -> None:
        """Pass over a mark, which must be next."""
        if not self.accept(mark):
            raise self.error(f"expected {mark}")

    def expect_end(self) -> None:
        """Make sure that nothing follows."""
        if self._peek():
            raise self.error("more after its end")

    def value(self) -> object:
        """The next value, whole."""
        self._peek()
        while True:
            try:
                value, end = self._json.raw_decode(self._window, self._at)
                # A number may go on behind the window.
                if end < len(self._window) or not self._more():
                    break
            except RecursionError:
                raise _too_deep() from None
            except ValueError as error:  # cut off by the window, or malformed
                if not self._more():
                    raise self.error("not JSON") from error
        if _SURROGATE_ESCAPE.search(self._window, self._at, end):
            self._check_surrogates(value)
        self._at = end
        return value

    def _peek(self) -> str:
        """The next character that is no space; nothing at the end."""
        while True:
            found = _SPACE.match(self._window, self._at)
            assert found is not None
            self._at = found.end()
            if self._at < len(self._window):
                return self._window[self._at]
            if not self._more():
                return ""

    def _more(self) -> bool:
        """Read on, and drop what has been passed. Whether there was anything."""
        if self._read >= len(self._data):
            return False
        self._passed += self._at
        rest = self._window[self._at :]
        if len(rest) > limits.TOC_ENTRY_SIZE:
            raise LimitExceeded(
                "an entry of a table of contents is too large",
                limit="TOC_ENTRY_SIZE",
                allowed=limits.TOC_ENTRY_SIZE,
            )
        self._at = 0
        # As much again, so that an entry that is longer is not parsed for each window anew.
        end = self._read + max(_WINDOW, len(rest))
        try:
            piece = bytes(self._data[self._read : end])
            text = self._decoder.decode(piece, final=end >= len(self._data))
        except UnicodeDecodeError as error:
            raise InvalidDocument("malformed table of contents: not UTF-8") from error
        self._window = rest + text
        self._read = end
        return True

    def _check_surrogates(self, value: object) -> None:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise self.error("a lone surrogate") from error
        except RecursionError:
            raise _too_deep() from None

    def _unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) != len(pairs):
            raise self.error("a duplicate key")
        return members

    def _finite(self, number: str) -> float:
        value = float(number)
        if not math.isfinite(value):
            self._refuse(number)
        return value

    def _refuse(self, _: str) -> NoReturn:
        raise self.error("a number that JSON does not have")


def _too_deep() -> LimitExceeded:
    return LimitExceeded(
        "table of contents is nested too deeply", limit="JSON_DEPTH", allowed=limits.JSON_DEPTH
    )
