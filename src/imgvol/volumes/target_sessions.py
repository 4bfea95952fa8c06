"""How targets are mounted where the daemon may not bind: a filesystem for each, by fusermount3."""

import os
from typing import Protocol

from imgvol.errors import MachineLacks
from imgvol.images.open_view import OpenView
from imgvol.volumes import fusermount
from imgvol.volumes.mounts import Bound
from imgvol.volumes.options import BindOptions, Propagation
from imgvol.volumes.subpaths import SubPath


class TargetSessions(Protocol):
    """Filesystems that show a view, or a part of one, at a target each.

    Example:
        bound = await sessions.open(view, part, b"/home/me/mnt", WHOLE_VIEW)
        ...
        unmounting.unbind(bound, views_directory, lazily=False)   # the session ends by itself
    """

    @property
    def count(self) -> int:
        """How many there are, with those whose target was detached and that are still in use."""

    def is_alive(self, bound: Bound) -> bool:
        """Whether a session still answers; not if somebody has unmounted or aborted it."""

    async def open(
        self, view: OpenView, part: SubPath, target: bytes, options: BindOptions
    ) -> Bound:
        """Mounts a part of a view at a target, and serves it until it is unmounted.

        Args:
            view: The caller holds it; the session holds it from now on, too.
            part: What of it, resolved in this view.
            target: An empty directory, or a file for a part that is one.
            options: What else is asked for; see `refuse_impossible`.

        Raises:
            PermissionDenied: The user may not mount there.
            Conflict: The target was replaced meanwhile; nothing is mounted there.
            MachineLacks: fusermount3 is not there, or nothing more may be mounted.
            LocalError: It fails otherwise.
        """


def refuse_impossible(target: str, options: BindOptions) -> None:
    """Refuses what fusermount3 cannot mount, before anything is done. Blocks.

    Raises:
        MachineLacks: An option takes root.
        PermissionDenied: The user may not mount there.
    """
    asked = {
        "nosymfollow": options.nosymfollow,
        "mappings of owners": bool(options.uid_mappings),
        "propagation": options.propagation is not Propagation.PRIVATE,
    }
    for option, is_asked in asked.items():
        if is_asked:
            raise MachineLacks("this takes root", hint="Leave it out.", option=option)
    fusermount.check_target(os.fsencode(target))
