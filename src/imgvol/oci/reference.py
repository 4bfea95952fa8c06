"""Image references: what a user types, normalised before any I/O.

The grammar, after the distribution project's `reference` package:

    reference := name [ ":" tag ] [ "@" digest ]       name := [ domain "/" ] path
    domain    := ( domain-name | "[" IPv6 "]" ) [ ":" port ]
    path      := component ( "/" component )*

The grammar alone (`parse_raw`) cannot tell `example/x` on Docker Hub from `example/x` on a host
named `example`. Normalisation (`Reference.parse`) decides: the part before the first slash is a
domain when it is `localhost`, or holds a dot, a colon or an upper-case letter; otherwise the domain
is `docker.io`, where a path of one component is below `library/`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, Self

from imgvol import limits
from imgvol.errors import InvalidDigest, InvalidReference
from imgvol.oci.digest import Digest

DEFAULT_DOMAIN: Final = "docker.io"
DEFAULT_TAG: Final = "latest"
_LEGACY_DEFAULT_DOMAIN: Final = "index.docker.io"
_OFFICIAL_PREFIX: Final = "library/"

# Every alternative starts with letters that the one before it cannot end with: matching is linear.
_DOMAIN_COMPONENT = r"[a-zA-Z0-9]+(?:-+[a-zA-Z0-9]+)*"
_DOMAIN_NAME = rf"{_DOMAIN_COMPONENT}(?:\.{_DOMAIN_COMPONENT})*"
_DOMAIN = rf"(?:{_DOMAIN_NAME}|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_PATH_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_PATH = rf"{_PATH_COMPONENT}(?:/{_PATH_COMPONENT})*"
_TAG = r"\w[\w.-]{0,127}"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"

_DOMAIN_GRAMMAR: Final = re.compile(_DOMAIN, re.ASCII)
_PATH_GRAMMAR: Final = re.compile(_PATH, re.ASCII)
TAG: Final = re.compile(_TAG, re.ASCII)
_IDENTIFIER_GRAMMAR: Final = re.compile(r"[a-f0-9]{64}", re.ASCII)
_GRAMMAR: Final = re.compile(
    rf"(?:(?P<domain>{_DOMAIN})/)?(?P<path>{_PATH})(?::(?P<tag>{_TAG}))?(?:@(?P<digest>{_DIGEST}))?",
    re.ASCII,
)


class RawReference(NamedTuple):
    """What the grammar sees in a reference: the domain may be empty."""

    domain: str
    path: str
    tag: str | None
    digest: Digest | None

    @property
    def name(self) -> str:
        """Domain and path, as written."""
        return f"{self.domain}/{self.path}" if self.domain else self.path


@dataclass(frozen=True, slots=True)
class Reference:
    """A normalised reference: it always has a domain, and its parts are valid.

    >>> str(Reference.parse("alpine:3"))
    'docker.io/library/alpine:3'

    Raises:
        InvalidReference: A part does not follow the grammar.
    """

    domain: str
    path: str
    tag: str | None = None
    digest: Digest | None = None

    def __post_init__(self) -> None:
        if not _DOMAIN_GRAMMAR.fullmatch(self.domain):
            raise InvalidReference("invalid registry name", domain=_excerpt(self.domain))
        if not _PATH_GRAMMAR.fullmatch(self.path):
            raise InvalidReference("invalid repository name", path=_excerpt(self.path))
        if len(self.path) > limits.REPOSITORY_NAME_LENGTH:
            raise _name_too_long(self.path)
        if self.tag is not None and not TAG.fullmatch(self.tag):
            raise InvalidReference("invalid tag format", tag=_excerpt(self.tag))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Normalise what a user typed, adding no tag; a tag beside a digest is kept.

        Raises:
            InvalidReference: `text` is no reference, or is 64 hexadecimal digits (an image ID).
        """
        if _IDENTIFIER_GRAMMAR.fullmatch(text):
            raise InvalidReference(
                "64 hexadecimal digits are an image ID, not a name",
                hint="Write sha256: before it to name an image by its ID.",
                reference=text,
            )
        domain, remainder = _split_domain(text)
        remote = remainder.partition(":")[0]
        if remote.lower() != remote:
            raise _name_has_upper_case(text)
        raw = parse_raw(f"{domain}/{remainder}", shown=text)
        return cls(raw.domain, raw.path, raw.tag, raw.digest)

    @property
    def repository(self) -> str:
        """The name without tag and digest: `docker.io/library/alpine`."""
        return f"{self.domain}/{self.path}"

    @property
    def object(self) -> str | None:
        """What is asked for in the repository: the digest if there is one, else the tag."""
        return str(self.digest) if self.digest else self.tag

    def familiar(self) -> str:
        """The shortest form that parses back to this very reference."""
        return f"{self._familiar_name()}{self._suffix()}"

    def with_tag(self, tag: str | None) -> Self:
        """The same with another tag, or none."""
        return replace(self, tag=tag)

    def with_digest(self, digest: Digest | None) -> Self:
        """The same with another digest, or none."""
        return replace(self, digest=digest)

    def __str__(self) -> str:
        return f"{self.repository}{self._suffix()}"

    def _suffix(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return tag + digest

    def _familiar_name(self) -> str:
        if self.domain != DEFAULT_DOMAIN:
            return self.repository
        official = self.path.removeprefix(_OFFICIAL_PREFIX)
        for name in (official, self.path):
            # docker.io/example.com/x and docker.io/<64 hexadecimal digits> mean something else
            # when shortened.
            is_identifier = bool(_IDENTIFIER_GRAMMAR.fullmatch(name))
            if not is_identifier and _split_domain(name) == (self.domain, self.path):
                return name
        return self.repository


def parse_raw(text: str, *, shown: str | None = None) -> RawReference:
    """Apply the grammar alone, without normalisation.

    Args:
        text: The reference.
        shown: What error messages say the reference was, when `text` was derived from it.

    Raises:
        InvalidReference: `text` does not follow the grammar.
    """
    shown = text if shown is None else shown
    if not text:
        raise InvalidReference("repository name must have at least one component")
    if len(text) > limits.REFERENCE_LENGTH:
        raise InvalidReference(
            "reference is too long", reference=_excerpt(shown), allowed=limits.REFERENCE_LENGTH
        )
    match = _GRAMMAR.fullmatch(text)
    if match is None:
        if _GRAMMAR.fullmatch(text.lower()):
            raise _name_has_upper_case(shown)
        raise InvalidReference("invalid reference format", reference=_excerpt(shown))
    if len(match["path"]) > limits.REPOSITORY_NAME_LENGTH:
        raise _name_too_long(shown)
    return RawReference(
        domain=match["domain"] or "",
        path=match["path"],
        tag=match["tag"],
        digest=_parse_digest(match["digest"], shown),
    )


def parse_docker_reference(text: str) -> Reference:
    """Normalise to what a registry is asked for: exactly one of tag and digest.

    A digest wins over a tag; with neither, the tag is `latest`.

    Raises:
        InvalidReference: `text` is no reference.
    """
    reference = Reference.parse(text)
    if reference.digest:
        return reference.with_tag(None)
    return reference if reference.tag else reference.with_tag(DEFAULT_TAG)


def parse_any_reference(text: str) -> Reference | Digest:
    """Read an image ID (with or without `sha256:`) as a digest, anything else as a reference.

    Raises:
        InvalidReference: `text` is neither.
    """
    if _IDENTIFIER_GRAMMAR.fullmatch(text):
        return Digest("sha256", text)
    try:
        return Digest.parse(text)
    except InvalidDigest:
        return Reference.parse(text)


def sort_references(texts: Iterable[str]) -> list[str]:
    """Normalise and sort names of one image, the most telling first.

    Name with tag and digest, name with tag, name with digest, bare name, digest; equals by text;
    and last, as they are, texts that are no reference.
    """
    good: list[tuple[int, str]] = []
    bad: list[str] = []
    for text in texts:
        try:
            parsed = parse_any_reference(text)
        except InvalidReference:
            bad.append(text)
        else:
            good.append((_rank(parsed), str(parsed)))
    return [text for _, text in sorted(good)] + sorted(bad)


def _rank(parsed: Reference | Digest) -> int:
    if isinstance(parsed, Digest):
        return 4
    return (0 if parsed.digest else 1) if parsed.tag else (2 if parsed.digest else 3)


def _split_domain(text: str) -> tuple[str, str]:
    first, slash, rest = text.partition("/")
    if not slash:
        return DEFAULT_DOMAIN, f"{_OFFICIAL_PREFIX}{text}"
    if first == _LEGACY_DEFAULT_DOMAIN:
        first = DEFAULT_DOMAIN
    is_domain = first == "localhost" or "." in first or ":" in first or first.lower() != first
    domain, remote = (first, rest) if is_domain else (DEFAULT_DOMAIN, text)
    if domain == DEFAULT_DOMAIN and "/" not in remote:
        remote = f"{_OFFICIAL_PREFIX}{remote}"
    return domain, remote


def _parse_digest(text: str | None, shown: str) -> Digest | None:
    if text is None:
        return None
    try:
        return Digest.parse(text)
    except InvalidDigest as error:
        raise InvalidReference(
            f"invalid reference: {error.message}", reference=_excerpt(shown)
        ) from error


def _name_has_upper_case(text: str) -> InvalidReference:
    return InvalidReference("repository name must be lowercase", reference=_excerpt(text))


def _name_too_long(text: str) -> InvalidReference:
    return InvalidReference(
        f"repository name must not be more than {limits.REPOSITORY_NAME_LENGTH} characters",
        reference=_excerpt(text),
    )


def _excerpt(text: str) -> str:
    return text if len(text) <= limits.REPOSITORY_NAME_LENGTH else f"{text[:64]}…"
