"""What has become of the files of the preload directory, for whoever asks."""

import enum
from dataclasses import dataclass

from imgvol.images.preload.scan import FileKind


class FileState(enum.Enum):
    """How far a file is."""

    WAITING = "waiting"
    WORKING = "working"
    IMPORTED = "imported"
    UNCHANGED = "unchanged"
    PARTIAL = "partial"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        """Whether nothing more is done with the file as it is."""
        return self not in {FileState.WAITING, FileState.WORKING}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What has come of one file.

    Attributes:
        state: A final one.
        images: Names of what it has brought, and digests of manifests without a name.
        problems: What is wrong with it, or with a part of it.
        is_retryable: Whether trying again may help although the file stays as it is.
    """

    state: FileState
    images: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    is_retryable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PreloadedFile:
    """One file of the directory.

    Attributes:
        path: Absolute.
        size: In bytes; None: it has not been looked at.
        problems: The first limits.PRELOAD_PROBLEMS of them.
        problem_count: How many there are.
        at: When it came to be so, seconds since the epoch.
    """

    path: str
    kind: FileKind
    state: FileState
    size: int | None
    images: tuple[str, ...]
    problems: tuple[str, ...]
    problem_count: int
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PreloadStatus:
    """The directory at one moment.

    Attributes:
        directory: Absolute.
        is_watched: Whether changes are noticed as they happen.
        is_ready: Whether all that was there at the start has been dealt with.
        is_busy: Whether anything is waited for or worked on.
        imported: Files imported since the start, each time counted.
        unchanged: Files that were as the cache file says, and were not imported.
        failed: Files that could not be imported as a whole, each time counted.
        problems: What could not be looked at or watched, and why.
        files: By path.
    """

    directory: str
    is_watched: bool
    is_ready: bool
    is_busy: bool
    imported: int
    unchanged: int
    failed: int
    problems: tuple[str, ...]
    files: tuple[PreloadedFile, ...]
