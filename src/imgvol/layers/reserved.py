"""The files that eStargz keeps in a layer's tar for itself.

They are no part of what the image's author put there, and the tables of contents that its tools
write do not tell all of them, nor the fractions of times. A layer that has one of them is shown as
its table of contents would tell it, however it came: by any table of contents, or as a tar. So what
a layer looks like depends on its tar alone, never on the annotations of one of the images that have
it, and images with the same chain ID look the same.
"""

from typing import Final

TOC_NAME: Final = b"stargz.index.json"
"""The table of contents."""

PREFETCH_LANDMARK: Final = b".prefetch.landmark"
"""What comes before it in the blob is to be fetched first."""

NO_PREFETCH_LANDMARK: Final = b".no.prefetch.landmark"
"""Nothing is to be fetched first."""

RESERVED_NAMES: Final = frozenset({TOC_NAME, PREFETCH_LANDMARK, NO_PREFETCH_LANDMARK})
"""All of them; each only in the root, and only as a regular file."""

_SECOND: Final = 10**9


def whole_seconds(mtime_ns: int) -> int:
    """A time as tables of contents have it: rounded to seconds, halves upwards."""
    return (mtime_ns + _SECOND // 2) // _SECOND * _SECOND
