"""In which order the members of a layer come, when some of its files are wanted first.

Rule 1: Every order must unpack to the same tree. So whatever a member needs goes with it, before
it: its parent directories, the target of a hard link, and the whiteout of any name on its way, for
an unpacker that meets the whiteout later would remove what it has just made.

Rule 2: A file that the layer has twice is left out the first time, as in the reference
implementation: the last one counts. Unless a hard link needs the first, or one of the two is no
file: then both stay where they are, and neither is moved.

Rule 3: What an earlier conversion has added, landmarks and a table of contents, is left out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from imgvol.errors import Unsupported
from imgvol.layers.lazy.writing.records import Record
from imgvol.layers.reserved import RESERVED_NAMES
from imgvol.layers.tar import MemberType

_WHITEOUT: Final = b".wh."
_OPAQUE: Final = b".wh..wh..opq"


@dataclass(frozen=True, slots=True)
class Arrangement:
    """An order.

    Attributes:
        front: What is to be fetched first, in that order.
        rest: Everything else, as it was.
        files: How many of the wanted files the layer has.
    """

    front: tuple[Record, ...]
    rest: tuple[Record, ...]
    files: int


def arrange(records: Sequence[Record], wanted: Iterable[bytes]) -> Arrangement:
    """Put what is wanted first.

    Args:
        records: All members, as they are in the tar.
        wanted: Paths, as `Record.path` has them; those that the layer does not have are passed
            over.
    """
    kept = _without_replaced([record for record in records if not _is_reserved(record)])
    picker = _Picker(kept)
    files = sum(picker.pick(path) for path in dict.fromkeys(wanted))
    front = tuple(picker.picked.values())
    rest = tuple(record for record in kept if id(record) not in picker.picked)
    return Arrangement(front, rest, files)


def check_links(records: Sequence[Record]) -> None:
    """Refuse hard links whose target comes later: a table of contents cannot tell them.

    In a tar such a link means what a lower layer has of that name; a table of contents has no
    order, and there it means what comes later.

    Raises:
        Unsupported: There is one.
    """
    everything = {record.path for record in records}
    everything |= _above(everything)
    seen: set[bytes] = set()
    for record in records:
        if record.target is not None and record.target in everything and record.target not in seen:
            raise Unsupported(
                "a hard link to what comes after it, which no table of contents can tell",
                path=record.member.name,
                target=record.member.linkname,
            )
        seen.add(record.path)


def _above(paths: Iterable[bytes]) -> set[bytes]:
    """The paths that have some of these below them."""
    above: set[bytes] = set()
    for path in paths:
        parent = path.rpartition(b"/")[0]
        while parent and parent not in above:
            above.add(parent)
            parent = parent.rpartition(b"/")[0]
    return above


def _is_reserved(record: Record) -> bool:
    return record.path in RESERVED_NAMES and record.member.type is MemberType.FILE


def _without_replaced(records: list[Record]) -> list[Record]:
    last: dict[bytes, Record] = {}
    replaced: set[int] = set()
    targets = {record.target for record in records if record.target is not None}
    for record in records:
        before = last.get(record.path)
        last[record.path] = record
        if (
            before is not None
            and before.member.type is record.member.type is MemberType.FILE
            and record.path not in targets
        ):
            replaced.add(id(before))
    return [record for record in records if id(record) not in replaced]


class _Picker:
    def __init__(self, records: Sequence[Record]) -> None:
        self.picked: dict[int, Record] = {}  # in order
        self._by_path: dict[bytes, list[Record]] = {}
        for record in records:
            self._by_path.setdefault(record.path, []).append(record)
        self._above = _above(self._by_path)

    def pick(self, path: bytes) -> bool:
        """Move a file and what it needs. Whether the layer has it."""
        found = self._by_path.get(path)
        if found is None or len(found) > 1 or found[0].member.type is MemberType.DIRECTORY:
            return False
        needed: list[Record] = []
        if not self._collect(path, needed, set()):
            return False
        for record in needed:
            self.picked.setdefault(id(record), record)
        return True

    def _collect(self, path: bytes, needed: list[Record], seen: set[bytes]) -> bool:
        """Add a path and all that it needs, in order; False: something of it cannot be moved."""
        pending = [path]
        way: list[bytes] = []
        while pending:  # hard links to hard links
            current = pending.pop()
            if current in seen:
                return False  # a circle
            seen.add(current)
            way.append(current)
            found = self._by_path.get(current, [])
            if found and found[0].target is not None:
                pending.append(found[0].target)
        return all(self._collect_way(current, needed) for current in reversed(way))

    def _collect_way(self, path: bytes, needed: list[Record]) -> bool:
        names = path.split(b"/")
        for depth in range(len(names)):
            above = names[:depth]
            name = names[depth]
            here = b"/".join([*above, name])
            marks = (b"/".join([*above, _OPAQUE]), b"/".join([*above, _WHITEOUT + name]))
            for step in (*marks, here):
                found = self._by_path.get(step, [])
                if len(found) > 1:
                    return False
                needed += found
            is_directory = not found or found[0].member.type is MemberType.DIRECTORY
            if here in self._above and not is_directory:
                # A link, what lies beyond it may have to be there first; or two things in turn.
                return False
        root = self._by_path.get(b"", [])
        needed[:0] = root if len(root) == 1 else []
        return True
