"""Digests: the names of bytes.

A `Digest` exists only when it is well formed, so whoever holds one may put its parts into a path or
a URL. Text from outside becomes a `Digest` in exactly one place, `Digest.parse`.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Final, NewType, Protocol, Self

from imgvol.errors import InvalidDigest

# image-spec descriptor.md "Registered algorithms", and sha384, which go-digest registers too:
# hexadecimal digits of each.
_ENCODED_LENGTHS: Final = {"sha256": 64, "sha384": 96, "sha512": 128}

# image-spec descriptor.md "Digests": algorithm ":" encoded.
_GRAMMAR: Final = re.compile(r"([a-z0-9]+(?:[+._-][a-z0-9]+)*):([a-zA-Z0-9=_-]+)", re.ASCII)
_LOWER_HEX: Final = re.compile(r"[0-9a-f]+", re.ASCII)

# Longer text is no digest: it is neither matched nor repeated in full.
_TEXT_LENGTH: Final = 256


class Hasher(Protocol):
    """What hashlib's objects can do, as far as imgvol needs it."""

    @property
    def name(self) -> str:
        """The algorithm."""
        ...

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Take more bytes."""
        ...

    def hexdigest(self) -> str:
        """The hash of all bytes so far, in lower-case hexadecimal."""
        ...


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """`algorithm:encoded`, valid by construction.

    Raises:
        InvalidDigest: The algorithm is not a registered one, or `encoded` is not its hash in
            lower-case hexadecimal.
    """

    algorithm: str
    encoded: str

    def __post_init__(self) -> None:
        length = _ENCODED_LENGTHS.get(self.algorithm)
        if length is None:
            raise InvalidDigest("unsupported digest algorithm", digest=_excerpt(str(self)))
        if len(self.encoded) != length:
            raise InvalidDigest(
                "invalid digest length",
                digest=_excerpt(str(self)),
                expected=length,
                actual=len(self.encoded),
            )
        if not _LOWER_HEX.fullmatch(self.encoded):
            raise InvalidDigest("digest is not lower-case hexadecimal", digest=str(self))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `sha256:<64 lower-case hexadecimal digits>`, or the like for sha384 and sha512.

        Raises:
            InvalidDigest: `text` is anything else.
        """
        match = _GRAMMAR.fullmatch(text) if len(text) <= _TEXT_LENGTH else None
        if match is None:
            raise InvalidDigest("invalid digest format", digest=_excerpt(text))
        return cls(match[1], match[2])

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview, algorithm: str = "sha256") -> Self:
        """The digest of `data`."""
        return cls.from_hasher(_new_hasher(algorithm, data))

    @classmethod
    def from_hasher(cls, hasher: Hasher) -> Self:
        """The digest of everything that `hasher` was fed."""
        return cls(hasher.name, hasher.hexdigest())

    @property
    def hex(self) -> str:
        """The encoded part: safe as a file name."""
        return self.encoded

    @property
    def short(self) -> str:
        """The first 12 digits, for people."""
        return self.encoded[:12]

    def hasher(self) -> Hasher:
        """A fresh hasher of this digest's algorithm."""
        return _new_hasher(self.algorithm, b"")

    def matches(self, data: bytes | bytearray | memoryview) -> bool:
        """Whether `data` is what this digest names."""
        return _new_hasher(self.algorithm, data).hexdigest() == self.encoded

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.encoded}"


# The digest of a layer's uncompressed tar, every byte of it, padding included.
DiffID = NewType("DiffID", Digest)
# The identity of layers applied in order: see `imgvol.oci.chain`.
ChainID = NewType("ChainID", Digest)


def _new_hasher(algorithm: str, data: bytes | bytearray | memoryview) -> Hasher:
    if algorithm not in _ENCODED_LENGTHS:
        raise InvalidDigest("unsupported digest algorithm", algorithm=_excerpt(algorithm))
    return hashlib.new(algorithm, data, usedforsecurity=False)


def _excerpt(text: str) -> str:
    return text if len(text) <= _TEXT_LENGTH else f"{text[:_TEXT_LENGTH]}…"
