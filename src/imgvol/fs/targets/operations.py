"""The handlers of a filesystem that shows a part of one view, and is its only user."""

from collections.abc import Sequence

from imgvol.fs.operations import Operations
from imgvol.images.open_view import OpenView
from imgvol.images.views import Views
from imgvol.tallies import RequestTallies


class TargetOperations(Operations):
    """`Operations` of a session that holds its view for as long as it lives.

    So references of its kernel's need not be counted, and must not be: those that are left when it
    ends are never given back one by one.
    """

    def __init__(self, views: Views, view: OpenView, requests: RequestTallies) -> None:
        super().__init__(views, requests)
        self._view = view

    def forget(self, references: Sequence[tuple[int, int]]) -> None:
        """Nothing is counted."""

    def _count(self, inode: int) -> None:
        """Nothing is counted."""

    def _shown(self) -> Sequence[OpenView]:
        return (self._view,)
