"""The places of sandboxes' volumes: <run>/volumes/<sandbox>/<hex of the image's manifest>.

Who asks for a volume of a sandbox gets the same path every time, before and after a restart, and a
sandbox that is gone leaves nothing there. A sandbox's ID comes from outside and becomes the name of
a directory: `check_lease_id` decides which may.

All but `target` and `owns` block, and a directory here may be a mount: call them from threads.
"""

import contextlib
import errno
import logging
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Final

from imgvol import limits
from imgvol.content.durable import translate_os_errors
from imgvol.errors import InvalidArgument
from imgvol.oci.digest import Digest

log = logging.getLogger(__name__)

# No slash, no leading dot (hence no ".."), nothing that a terminal or a log would interpret.
_LEASE_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*", re.ASCII)


def check_lease_id(text: str) -> None:
    """Refuses what cannot be the ID of a sandbox or a lease.

    Raises:
        InvalidArgument: It has other characters than it may have, or too many.
    """
    if len(text) > limits.LEASE_ID_LENGTH or not _LEASE_ID.fullmatch(text):
        raise InvalidArgument(
            "not an ID of a sandbox",
            hint="Letters, digits and _.- are allowed, a letter or digit first,"
            f" {limits.LEASE_ID_LENGTH} at most.",
            id=text[: limits.LEASE_ID_LENGTH],
        )


class Homes:
    """The directory of all volumes of sandboxes.

    Args:
        directory: It is made when it is needed; its real path, without symbolic links.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def target(self, sandbox: str, manifest: Digest) -> str:
        """Where a sandbox's volume of an image is bound."""
        return str(self._directory / sandbox / manifest.encoded)

    def owns(self, target: str) -> bool:
        """Whether a target is a place here: made and removed with its volume."""
        return self._directory in Path(target).parents

    def make(self, target: str) -> None:
        """Makes the directory of a volume; there already is fine.

        Raises:
            LocalError: It cannot be made.
        """
        with translate_os_errors("make the directory of a volume"):
            self._directory.mkdir(mode=0o700, exist_ok=True)
            home = Path(target)
            home.parent.mkdir(mode=0o700, exist_ok=True)
            home.mkdir(mode=0o755, exist_ok=True)

    def remove(self, target: str) -> None:
        """Removes the directory of a volume, and its sandbox's with the last; gone is fine.

        Raises:
            LocalError: It is a mount still, or has something in it.
        """
        with translate_os_errors("remove the directory of a volume"):
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(target)
            self._remove_sandbox(Path(target).parent)

    def sweep(self, kept: Collection[str]) -> None:
        """Removes every directory that no volume has; what cannot go is told of in the log."""
        for home in self._list(self._directory):
            for left in self._list(home):
                if str(left) not in kept:
                    try:
                        left.rmdir()
                    except OSError as exc:
                        log.warning("%s belongs to no volume and cannot go: %s", left, exc.strerror)
            self._remove_sandbox(home)

    def _list(self, directory: Path) -> list[Path]:
        try:
            return list(directory.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _remove_sandbox(self, directory: Path) -> None:
        try:
            directory.rmdir()
        except OSError as exc:
            if exc.errno not in {errno.ENOTEMPTY, errno.ENOENT, errno.ENOTDIR, errno.EEXIST}:
                raise
