"""What may be shown: secrets that do not print, URLs without signatures, the words of strangers.

Error messages, logs and metrics are made of values that went through here. Query values are shown
for a few known keys only: signed URLs carry their secrets in keys of every vendor's own choice.
"""

import hmac
from collections.abc import Iterable
from typing import Final, NoReturn
from urllib.parse import parse_qsl, urlsplit

from imgvol import limits

_MASK: Final = "***"
_SHOWN_KEYS: Final = frozenset(
    ("service", "scope", "ns", "n", "last", "artifactType", "client_id", "grant_type")
)


class Secret:
    """Text that neither prints, nor formats, nor pickles; `reveal` is the only way to it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The text itself: for a header or a form field, and nothing else."""
        return self._value

    def __repr__(self) -> str:
        return _MASK

    def __format__(self, _specification: str) -> str:
        return _MASK

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not stored")


def redact_url(url: object) -> str:
    """A URL fit for a message: no user, no password, no fragment, no unknown query value."""
    try:
        parts = urlsplit(str(url))
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "an unreadable URL"
    authority = f"[{host}]" if ":" in host else host
    if port is not None:
        authority += f":{port}"
    query = "&".join(
        f"{key}={value if key in _SHOWN_KEYS else _MASK}"
        for key, value in parse_qsl(parts.query, keep_blank_values=True)
    )
    text = f"{parts.scheme}://{authority}{parts.path}{'?' + query if query else ''}"
    return quote_remote(text, longest=2 * limits.REMOTE_TEXT_LENGTH)


def quote_remote(
    text: str, *, secrets: Iterable[Secret] = (), longest: int = limits.REMOTE_TEXT_LENGTH
) -> str:
    """The words of a stranger, fit for a message: one printable line, bounded.

    Args:
        text: The words.
        secrets: What the stranger knows of us and might repeat.
        longest: The most characters kept.
    """
    for secret in secrets:
        if secret:
            text = text.replace(secret.reveal(), _MASK)
    line = " ".join(text[: 2 * longest].split())
    line = "".join(c if c.isprintable() else "�" for c in line)
    return line if len(line) <= longest else f"{line[: longest - 1]}…"
