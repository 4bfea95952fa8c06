"""How a volume is bound: what a caller may ask for, checked before anything is done. Pure."""

import enum
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any, Final, Self

from imgvol import limits
from imgvol.errors import InvalidArgument

# (uid_t) -1 means "none": no ID is there to be mapped.
_ID_COUNT: Final = 2**32 - 1


class Propagation(enum.Enum):
    """Who sees what is mounted beneath a volume later; mount_namespaces(7).

    Views never change, but a directory of one is as good a mount point as any.
    """

    PRIVATE = "private"
    """Nobody else: not another volume of the view, not a bind mount of the volume."""
    HOST_TO_CONTAINER = "rslave"
    """Whoever binds the volume as a slave, as runtimes do for containers that ask for it."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Takes the words of mount(8) and those of the CRI.

        Raises:
            InvalidArgument: No such word, or a container could mount on the host.
        """
        word = text.lower().removeprefix("propagation_").replace("-", "_")
        if word in {"rshared", "shared", "bidirectional"}:
            raise InvalidArgument(
                "a volume cannot have bidirectional propagation",
                hint="Nothing that a container mounts in an image may reach the host."
                " Use private or rslave.",
                propagation=text,
            )
        if word not in _PROPAGATIONS:
            raise InvalidArgument("unknown propagation", known="private, rslave", propagation=text)
        return cls(_PROPAGATIONS[word])


_PROPAGATIONS: Final[Mapping[str, str]] = {
    "private": "private",
    "rprivate": "private",
    "rslave": "rslave",
    "slave": "rslave",
    "host_to_container": "rslave",
    "hosttocontainer": "rslave",
}


class Escapes(enum.Enum):
    """What becomes of a sub path that leaves the view: by "..", or as or through an absolute path.

    Kubelets expect a refusal. People expect an image's absolute links to mean what they mean when
    the image runs.
    """

    CONFINE = "confine"
    """It stays: the view's root is the root (RESOLVE_IN_ROOT)."""
    REFUSE = "refuse"
    """It is an error (RESOLVE_BENEATH)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IDMapping:
    """A run of IDs of an image and what they are on the host; the CRI's message of that name."""

    container_id: int
    host_id: int
    length: int

    def __post_init__(self) -> None:
        starts = (self.container_id, self.host_id)
        if self.length < 1 or min(starts) < 0 or max(starts) + self.length > _ID_COUNT:
            raise InvalidArgument("ID mapping is out of range", mapping=str(self))

    def __str__(self) -> str:
        return f"{self.container_id}:{self.host_id}:{self.length}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BindOptions:
    """How a volume is bound. Read-only, nosuid and nodev it always is.

    Attributes:
        noexec: Programs in it cannot be run.
        nosymfollow: Symbolic links in it are not followed, only read.
        uid_mappings: Whose files they are on the host; empty: as the image says.
        gid_mappings: The same for groups. Either both are given or none.
        propagation: Who sees what is mounted beneath it.
        selinux_relabel: The caller wants the files labelled for a container.
        sub_path: What of the view is bound; b"" is all of it.
        escapes: What becomes of a sub path that leaves the view.
        dirs_only: Refuse a sub path that is no directory.
    """

    noexec: bool = False
    nosymfollow: bool = False
    uid_mappings: tuple[IDMapping, ...] = ()
    gid_mappings: tuple[IDMapping, ...] = ()
    propagation: Propagation = Propagation.PRIVATE
    selinux_relabel: bool = False
    sub_path: bytes = b""
    escapes: Escapes = Escapes.CONFINE
    dirs_only: bool = False

    def __post_init__(self) -> None:
        """Refuses what contradicts itself.

        Raises:
            InvalidArgument: Mappings of one kind only, too many, or overlapping; no path.
        """
        if bool(self.uid_mappings) != bool(self.gid_mappings):
            raise InvalidArgument("user and group mappings come together, or not at all")
        for mappings in (self.uid_mappings, self.gid_mappings):
            _check_mappings(mappings)
        if b"\0" in self.sub_path or len(self.sub_path) > limits.PATH_LENGTH:
            raise InvalidArgument(
                "sub path is no path", sub_path=self.sub_path[:64], size=len(self.sub_path)
            )

    @property
    def needs_target(self) -> bool:
        """Whether it asks for what only a mount of its own can have."""
        return (
            any((self.noexec, self.nosymfollow, self.uid_mappings, self.selinux_relabel))
            or self.propagation is not Propagation.PRIVATE
        )

    def to_json(self) -> str:
        """The form for the database: what differs from the default."""
        changed = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name) != field.default
        }
        return json.dumps(changed, default=_plain, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Undoes `to_json`.

        Raises:
            InvalidArgument: Not what `to_json` writes.
        """
        try:
            values = json.loads(text)
            parsed = {
                name: parse(values[name]) for name, parse in _PARSERS.items() if name in values
            }
            return cls(**{**values, **parsed})
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            raise InvalidArgument("options of a volume cannot be read", options=text) from exc


def parse_mappings(text: str) -> tuple[IDMapping, ...]:
    """Reads `container:host:length[,…]`; nothing is no mapping.

    Raises:
        InvalidArgument: Not of that form, or out of range.
    """
    return tuple(_parse_mapping(part) for part in text.split(",")) if text else ()


def _parse_mapping(text: str) -> IDMapping:
    numbers = text.split(":")
    if len(numbers) != 3 or not all(n.isascii() and n.isdigit() and len(n) <= 10 for n in numbers):
        raise InvalidArgument(
            "an ID mapping is three numbers",
            hint="Container ID, host ID and how many, as in 0:100000:65536.",
            mapping=text,
        )
    container_id, host_id, length = map(int, numbers)
    return IDMapping(container_id=container_id, host_id=host_id, length=length)


def _check_mappings(mappings: Sequence[IDMapping]) -> None:
    if len(mappings) > limits.ID_MAPPINGS:
        raise InvalidArgument(
            "too many ID mappings", limit=limits.ID_MAPPINGS, actual=len(mappings)
        )
    _refuse_overlap((m.container_id, m.length) for m in mappings)
    _refuse_overlap((m.host_id, m.length) for m in mappings)


def _refuse_overlap(runs: Iterable[tuple[int, int]]) -> None:
    for (start, length), (following, _) in pairwise(sorted(runs)):
        if start + length > following:
            raise InvalidArgument("ID mappings overlap", id=following)


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, enum.Enum):
        return value.value
    assert isinstance(value, IDMapping)
    return asdict(value)


def _mappings_from(values: Iterable[Mapping[str, int]]) -> tuple[IDMapping, ...]:
    return tuple(IDMapping(**value) for value in values)


def _path_from(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


_PARSERS: Final[Mapping[str, Callable[[Any], object]]] = {
    "uid_mappings": _mappings_from,
    "gid_mappings": _mappings_from,
    "propagation": Propagation,
    "escapes": Escapes,
    "sub_path": _path_from,
}

WHOLE_VIEW: Final = BindOptions()
"""All of a view, and nothing special."""
