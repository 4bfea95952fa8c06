"""What the store has to keep, and why: a pure function over one picture of it.

**Thing**: what can be collected. **Root**: what keeps things for its own sake. A thing lives for as
long as a root leads to it, directly or over other things:

    name, pin, lease, volume ──> image ──> layer ──> file
    name ────────────────────────┼───────> document (the index that the name resolved to)
                                 ├───────> document (manifest, config)
                                 └───────> view
    trace ─────────────────────────────────> document (the trace; its record goes by itself)
    index ─────────────────────────────────> document (zTOCs, and what they are pushed with)
    open view, mount, pull, import, export, conversion, copy ──> whatever they hold in memory

The reasons of a thing are all roots that lead to it, not only the first that was found: only when
the last of them has gone does the thing go.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from imgvol.oci.digest import Digest


class ThingKind(StrEnum):
    """What can be collected."""

    IMAGE = "image"
    """The record of an image; its digest is the manifest's."""

    LAYER = "layer"
    """A layer in any form, by its blob's digest."""

    DOCUMENT = "document"
    """An index, manifest, config or zTOC."""

    VIEW = "view"
    """The number of a view in inode numbers."""

    FILE = "file"
    """The name under which layers share a large file, by its content."""


class RootKind(StrEnum):
    """What keeps things for its own sake."""

    NAME = "name"
    PIN = "pin"
    LEASE = "lease"
    VOLUME = "volume"
    TRACE = "trace"
    VIEW = "open view"
    MOUNT = "mount"
    PULL = "pull"
    IMPORT = "import"
    EXPORT = "export"
    CONVERSION = "conversion"
    COPY = "copy"
    """A lazy layer that is being filled from other ones."""
    COMPLETION = "completion"
    """A layer that is given its final form when nobody uses it any more."""
    INDEX = "index"


class Thing(NamedTuple):
    """One thing."""

    kind: ThingKind
    digest: Digest


class Root(NamedTuple):
    """One reason to keep things.

    Attributes:
        name: Which of its kind: the name, the volume's ID, the view, the image being pulled.
    """

    kind: RootKind
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One picture of the store.

    Attributes:
        roots: What each root leads to.
        references: What each thing leads to.
        stored: All things that are there, and can be collected.
    """

    roots: Mapping[Root, Collection[Thing]]
    references: Mapping[Thing, Collection[Thing]] = field(default_factory=dict)
    stored: frozenset[Thing] = frozenset()


def reasons(world: World) -> dict[Thing, frozenset[Root]]:
    """Why each stored thing lives; nothing for what does not."""
    found: dict[Thing, set[Root]] = {thing: set() for thing in world.stored}
    for root, held in world.roots.items():
        for thing in _reachable(held, world.references):
            if thing in found:
                found[thing].add(root)
    return {thing: frozenset(roots) for thing, roots in found.items()}


def unreachable(world: World) -> frozenset[Thing]:
    """The stored things that nothing leads to."""
    every = (thing for held in world.roots.values() for thing in held)
    return world.stored - _reachable(every, world.references)


def _reachable(
    starts: Iterable[Thing], references: Mapping[Thing, Collection[Thing]]
) -> set[Thing]:
    seen: set[Thing] = set()
    waiting = list(starts)
    while waiting:
        thing = waiting.pop()
        if thing not in seen:
            seen.add(thing)
            waiting.extend(references.get(thing, ()))
    return seen
