"""The files that eStargz keeps in a layer's tar for itself.

They are no part of what the image's author put there, and a lazy layer does not show them. Whoever
reads the tar of such a layer as a whole has to leave them out too, or the same layer would have
other files, and other inode numbers, depending on how it came.
"""

from typing import Final

from imgvol.layers.paths import clean_path
from imgvol.layers.tar import MemberType, TarMember

TOC_NAME: Final = b"stargz.index.json"
"""The table of contents."""

PREFETCH_LANDMARK: Final = b".prefetch.landmark"
"""What comes before it in the blob is to be fetched first."""

NO_PREFETCH_LANDMARK: Final = b".no.prefetch.landmark"
"""Nothing is to be fetched first."""

_SECOND: Final = 10**9

RESERVED_NAMES: Final = frozenset({TOC_NAME, PREFETCH_LANDMARK, NO_PREFETCH_LANDMARK})
"""All of them; each only in the root, and only as a regular file."""


def is_reserved(member: TarMember) -> bool:
    """Whether a member of a tar, or of a table of contents, is no file of its layer."""
    return reserved_name(member) is not None


def reserved_name(member: TarMember) -> bytes | None:
    """Which of the reserved names a member has, if any."""
    # Most members are told by their last letters.
    if member.type is MemberType.FILE and member.name.endswith((b".landmark", b".json")):
        match clean_path(member.name):
            case [name] if name in RESERVED_NAMES:
                return name
    return None


def as_stargz(member: TarMember) -> TarMember | None:
    """A member of a tar as the table of contents of eStargz tells it.

    Times are rounded to seconds, halves upwards (as its tools do), and what is reserved is no
    member: None. So a layer that was made with a table of contents looks the same however it came.
    """
    if is_reserved(member):
        return None
    return member._replace(mtime_ns=(member.mtime_ns + _SECOND // 2) // _SECOND * _SECOND)
