"""What tells one state of a file from another."""

import os
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """Size and time of a file: whoever changes it changes one of them.

    Attributes:
        size: In bytes.
        mtime_ns: Of its last change, nanoseconds since the epoch.
    """

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """The stamp that a file has now."""
        return cls(size=status.st_size, mtime_ns=status.st_mtime_ns)
