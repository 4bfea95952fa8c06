"""The tests of `imgvol find`, over names as bytes."""

import fnmatch
from dataclasses import dataclass
from typing import Self

from imgvol.cli.text import encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Tests:
    """What an entry must be; a test that is None passes everything."""

    name: bytes | None
    iname: bytes | None
    whole: bytes | None
    types: frozenset[str]
    maxdepth: int | None

    # Not a test class, whatever pytest thinks of its name.
    __test__ = False

    @classmethod
    def make(
        cls,
        *,
        name: str | None,
        iname: str | None,
        whole: str | None,
        types: frozenset[str],
        maxdepth: int | None,
    ) -> Self:
        """From the texts of the command line."""
        return cls(
            name=None if name is None else encode(name),
            iname=None if iname is None else encode(iname).lower(),
            whole=None if whole is None else encode(whole),
            types=types,
            maxdepth=maxdepth,
        )

    def accept(self, path: str, kind: str, top: str) -> bool:
        """Whether the entry at `path`, found from `top`, passes."""
        if self.types and kind not in self.types:
            return False
        if self.maxdepth is not None and _depth(path) - _depth(top) > self.maxdepth:
            return False
        data = encode(path)
        base = data.rstrip(b"/").rpartition(b"/")[2] or b"/"
        return (
            (self.name is None or fnmatch.fnmatchcase(base, self.name))
            and (self.iname is None or fnmatch.fnmatchcase(base.lower(), self.iname))
            and (self.whole is None or fnmatch.fnmatchcase(data, self.whole))
        )


def _depth(path: str) -> int:
    return sum(1 for part in path.split("/") if part)
