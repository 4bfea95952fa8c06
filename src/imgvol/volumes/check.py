"""Compares mounts with what is recorded of them. Blocks, but touches no mount."""

from collections.abc import Collection
from pathlib import Path

from imgvol.content.check import Finding, Remedy
from imgvol.volumes.mountinfo import MountInfo, is_ours, read_mountinfo


def check_mounts(views: Path, targets: Collection[str], *, is_served: bool) -> list[Finding]:
    """Mounts of ours that should not be there, and the other way round.

    Args:
        views: Where our filesystem is mounted.
        targets: Where volumes should be bound.
        is_served: Whether a daemon serves them; without, every mount of ours is dead.
    """
    ours = {str(m.mount_point, "utf-8", "surrogateescape") for m in _ours(views)}
    if not is_served:
        return [_finding(target, "its daemon is gone") for target in sorted(ours)]
    expected = {*targets, str(views)}
    return [
        *(_finding(target, "no volume is recorded there") for target in sorted(ours - expected)),
        *(
            Finding(subject=f"volume at {target}", problem="is not mounted", remedy=Remedy.UNMOUNT)
            for target in sorted(set(targets) - ours)
        ),
    ]


def _ours(views: Path) -> list[MountInfo]:
    return [mount for mount in read_mountinfo() if is_ours(mount, views)]


def _finding(target: str, problem: str) -> Finding:
    return Finding(subject=f"mount {target}", problem=problem, remedy=Remedy.DETACH)
