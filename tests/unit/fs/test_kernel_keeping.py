"""Connections that are kept for who comes next: names, and what is refused."""

import os
import tempfile
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvol.fs.kernel.keeping import ConnectionKeeper, Kept
from imgvol.fs.kernel.mounting import SystemMounting
from imgvol.fs.kernel.negotiation import WANTED, Negotiated
from imgvol.fs.kernel.protocol import InitFlag
from imgvol.service_manager import ServiceManager
from imgvol.supervisor.datagram import is_name

WORDS = st.integers(0, (1 << 32) - 1)
NEGOTIATED = st.builds(
    Negotiated,
    minor=WORDS,
    flags=st.integers(0, (1 << 64) - 1).map(InitFlag),
    max_readahead=WORDS,
    max_background=WORDS,
    max_pages=WORDS,
)
AGREED = Negotiated(minor=41, flags=WANTED, max_readahead=1, max_background=2, max_pages=3)
NAME = Kept(device=(0, 53), agreed=AGREED).to_name()
PASSING = Kept(
    device=(0, 53), agreed=replace(AGREED, flags=WANTED | InitFlag.PASSTHROUGH)
).to_name()


@given(agreed=NEGOTIATED, device=st.tuples(WORDS, WORDS))
def test_a_name_says_all_that_a_successor_has_to_know(agreed, device):
    kept = Kept(device=device, agreed=agreed)
    assert is_name(kept.to_name())
    assert Kept.from_name(kept.to_name()) == kept


@given(name=st.text(max_size=40).map("fuse.".__add__) | st.text(max_size=40))
def test_any_other_name_is_refused_in_words(name):
    with pytest.raises(ValueError):
        Kept.from_name(name)


@pytest.mark.parametrize(
    "name", [NAME.replace("fuse.2.", "fuse.1."), NAME + ".7", NAME.rpartition(".")[0], "fuse."]
)
def test_a_name_of_another_version_is_refused(name):
    with pytest.raises(ValueError, match=r"another version|values to unpack|not a number"):
        Kept.from_name(name)


def is_open(descriptor):
    return os.path.exists(f"/proc/self/fd/{descriptor}")


class Manager(ServiceManager):
    """Says what it was told to drop."""

    __slots__ = ()
    dropped: list[str] = []  # noqa: RUF012 - emptied by the fixture

    def drop(self, name):
        self.dropped.append(name)


@pytest.fixture
def dropped(monkeypatch):
    monkeypatch.setattr(Manager, "dropped", [])
    return Manager


@pytest.mark.fuse
@pytest.mark.fault("F05")
@pytest.mark.parametrize(
    ("name", "path", "reason"),
    [
        ("fuse.1.0.53", "/dev/fuse", "another version"),
        (NAME, "/dev/null", "it is not /dev/fuse"),
        (PASSING, "/dev/fuse", "what was kept with it is not what belongs to it"),
        (NAME, "/dev/fuse", "it has ended|not mounted any more"),
    ],
)
@pytest.mark.expects_log("cannot be taken over")
def test_what_cannot_be_used_is_closed_and_dropped(tmp_path, dropped, caplog, name, path, reason):
    descriptor = os.open(path, os.O_RDWR)
    manager = dropped(inherited={name: [descriptor], "api": [0]})
    keeper = ConnectionKeeper(manager, SystemMounting(tmp_path))
    assert keeper.find() is None
    assert not is_open(descriptor)
    assert dropped.dropped == [name]
    assert manager.inherited == {"api": [0]}, "others are not its business"
    (line,) = caplog.messages
    assert any(word in line for word in reason.split("|"))


def test_what_nobody_wants_is_closed_and_dropped(tmp_path, dropped):
    with tempfile.TemporaryFile() as file:
        descriptor = os.dup(file.fileno())
    keeper = ConnectionKeeper(dropped(inherited={NAME: [descriptor]}), SystemMounting(tmp_path))
    keeper.refuse()
    assert not is_open(descriptor)
    assert dropped.dropped == [NAME]
