"""Comparing a mounted view with a reference tree, from a process that may hang without harm."""

import sys
from collections.abc import Sequence

from support import treediff
from support.programs import run


def assert_same_tree(view, expected, *, untimed: Sequence[str] = (), deadline: float = 120) -> None:
    """Fails with the list of differences.

    Args:
        view: A directory of a mounted image.
        expected: The directory that it shall equal.
        untimed: Paths of directories whose times no layer gives.
        deadline: Seconds.
    """
    ignored = [f"--ignore-time-of={path}" for path in untimed]
    command = [sys.executable, treediff.__file__, view, expected, *ignored]
    done = run(*command, check=False, timeout=deadline)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
