"""Puts hard links behind what they are links to.

A tar always has them so, and the IndexBuilder relies on it: a link whose target it has not seen is
one into a lower layer. A table of contents may be in another order.
"""

from collections.abc import Callable

from imgvol.errors import InvalidLayer
from imgvol.layers.paths import clean_path, join_path
from imgvol.layers.tar import MemberType, TarMember


class LinkOrder:
    """Passes members on in the order in which they come, but for links that come too early.

    Those wait for the end, when everything else is there. Names are compared as they are written,
    cleaned; a link through a symbolic link waits too, and finds its target then.

    Args:
        pass_on: Takes the members.
    """

    def __init__(self, pass_on: Callable[[TarMember], object]) -> None:
        self._pass_on = pass_on
        self._seen: set[bytes] = set()
        self._waiting: dict[bytes, TarMember] = {}

    def add(self, member: TarMember) -> None:
        """Take the next member."""
        name = join_path(clean_path(member.name))
        if member.type is MemberType.HARDLINK:
            target = self._target(member)
            if target == name:
                return  # to itself, which says nothing
            if target not in self._seen or target in self._waiting:
                self._seen.add(name)
                self._waiting[name] = member
                return
        self._seen.add(name)
        self._waiting.pop(name, None)
        self._pass_on(member)

    def finish(self) -> None:
        """Pass on the links that had to wait.

        Raises:
            InvalidLayer: They lead in a circle.
        """
        waiting = self._waiting
        while waiting:
            name, member = waiting.popitem()
            chain = {name: member}
            while (target := self._target(member)) in waiting:
                member = chain[target] = waiting.pop(target)
            if target in chain:
                raise InvalidLayer("hard links in a circle", path=member.name)
            for member in reversed(chain.values()):
                self._pass_on(member)

    @staticmethod
    def _target(member: TarMember) -> bytes:
        return join_path(clean_path(member.linkname))
