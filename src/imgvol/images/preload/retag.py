"""Names under which images are known besides their own, at registries that clients are sent to.

Each is made of an image's own name, never of one made here: `docker.io/library/app:1` is
`mirror.example/library/app:1` under one registry and `other.example/team/library/app:1` under
another that wants a prefix. A path that has the prefix already does not get it twice.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from imgvol import limits
from imgvol.errors import InvalidArgument, InvalidReference
from imgvol.oci.digest import Digest
from imgvol.oci.reference import Reference, parse_any_reference


@dataclass(frozen=True, slots=True)
class ExtraRegistry:
    """A registry, and perhaps the beginning of all paths there."""

    domain: str
    prefix: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `HOST[:PORT][/PREFIX]`; slashes at the end are dropped.

        Raises:
            InvalidArgument: It is something else.
        """
        domain, _, prefix = text.strip().rstrip("/").partition("/")
        try:
            # The last component makes a reference of it. Not every word before a slash is a
            # registry: see `oci.reference`.
            reference = Reference.parse(f"{domain}/{prefix}/x" if prefix else f"{domain}/x/x")
        except InvalidReference as exc:
            raise InvalidArgument(
                f"not a registry: {exc.message}",
                hint="Such as registry.example:5000, or registry.example/mirror.",
                value=text,
            ) from exc
        if reference.domain != domain:
            raise InvalidArgument(
                "not a registry: names that begin so are of another one",
                hint="Such as registry.example:5000, or registry.example/mirror.",
                value=text,
            )
        return cls(domain, prefix)

    def name_for(self, reference: Reference) -> Reference:
        """What an image is called here; by its tag and by its digest, whichever it has.

        Raises:
            InvalidReference: The path would be too long.
        """
        path = reference.path
        if self.prefix and not f"{path}/".startswith(f"{self.prefix}/"):
            path = f"{self.prefix}/{path}"
        return Reference(self.domain, path, reference.tag, reference.digest)

    def __str__(self) -> str:
        return f"{self.domain}/{self.prefix}".rstrip("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retagging:
    """What some images are to be called, too.

    Attributes:
        copies: Each new name, and the name whose meaning it gets.
        problems: What cannot be called anything, and why.
    """

    copies: tuple[tuple[str, str], ...]
    problems: tuple[str, ...]


def parse_registries(texts: Iterable[str]) -> tuple[ExtraRegistry, ...]:
    """Reads registries, each once.

    Raises:
        InvalidArgument: One is none, or there are too many.
    """
    registries = tuple(dict.fromkeys(ExtraRegistry.parse(text) for text in texts))
    if len(registries) > limits.PRELOAD_REGISTRIES:
        raise InvalidArgument(
            "too many registries to name images under", allowed=limits.PRELOAD_REGISTRIES
        )
    return registries


def plan_retags(names: Iterable[str], registries: Sequence[ExtraRegistry]) -> Retagging:
    """What images are to be called under other registries.

    Args:
        names: What they are called; an image without a name is here as what it is known by.
        registries: The others.
    """
    copies: dict[str, str] = {}
    problems: list[str] = []
    own = list(dict.fromkeys(names))
    for name in own if registries else ():
        try:
            reference = _tagged(name)
            extra = [str(registry.name_for(reference)) for registry in registries]
        except InvalidReference as exc:
            problems.append(f"{name} gets no other name: {exc.message}")
        else:
            # What the files say themselves comes before what is made of it.
            copies.update((new, name) for new in extra if new not in own)
    return Retagging(copies=tuple(copies.items()), problems=tuple(problems))


def _tagged(name: str) -> Reference:
    reference = parse_any_reference(name)
    if isinstance(reference, Digest):
        raise InvalidReference("it has no name")
    if reference.object is None:
        raise InvalidReference("it has neither a tag nor a digest")
    return reference
