"""The session over a transport without a kernel: what it has forgotten there, and then lets go."""

import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import trio

from imgvol.fs import session as module
from imgvol.fs.session import open_session
from support.members import directory, file, view_of
from support.spans import until


@dataclass
class Transport:
    """Knows everything that the kernel may be made to forget, and counts that.

    Attributes:
        forgotten: Inodes of which it was told.
    """

    forgotten: list[int] = field(default_factory=list)

    def mount(self):
        pass

    async def serve(self):
        await trio.sleep_forever()

    def invalidate_entry(self, parent, name):
        pass

    def invalidate_inode(self, inode, *, attributes_only=False):
        self.forgotten.append(inode)

    def root_changed(self):
        pass

    def recheck(self):
        pass

    def close(self):
        pass


class Views:
    """Those of which the session is told, and whoever lingers."""

    def __init__(self):
        self.on_condemned, self.on_failed, self.on_recorded = [], [], []
        self.layers = SimpleNamespace(has_slow=False)
        self.recordings = None
        self.lingerers = []

    def lingering(self):
        return list(self.lingerers)

    def trees_of(self, layer):
        return [(layer.tree, 0)]


class Thing:
    """A layer, or a view, as far as the session looks at it."""

    def __init__(self):
        self.id = "sha256:0"
        self.tree = view_of([directory(b"etc"), file(b"etc/motd")])
        self.index = SimpleNamespace(node_count=1, is_directory=bool, is_foreign_link=bool)
        self.settling = SimpleNamespace(tree=SimpleNamespace(given=lambda: [1], inode=int))
        self.is_inherited = False


@asynccontextmanager
async def session(tmp_path, monkeypatch) -> AsyncIterator[tuple[Views, Transport]]:
    monkeypatch.setattr(module, "LINGERING_CHECK", 0.01)
    views, transport = Views(), Transport()
    async with open_session(views, tmp_path, transport, on_lost=lambda: None):
        yield views, transport


def condemn(views: Views, thing: Thing) -> None:
    for tell in views.on_condemned:
        tell(thing)


def fail(views: Views, thing: Thing) -> None:
    for tell in views.on_failed:
        tell(thing)


def linger(views: Views, thing: Thing) -> None:
    views.lingerers.append(thing)


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("happen", [condemn, fail, linger])
async def test_what_the_kernel_was_made_to_forget_is_let_go(tmp_path, monkeypatch, happen):
    async with session(tmp_path, monkeypatch) as (views, transport):
        thing = Thing()
        here = weakref.ref(thing)
        happen(views, thing)
        await until(lambda: transport.forgotten)
        views.lingerers.clear()
        del thing
        await until(lambda: here() is None)
