"""What the tests of several commands use: a daemon that pretends, at a socket of its own."""

import pytest

from support.api_fakes import FakeDaemon, served_in_thread


@pytest.fixture
def directory(short_path):
    """The run directory."""
    return short_path / "run"


@pytest.fixture
def daemon(directory):
    """A fake, which the command finds there."""
    fake = FakeDaemon(str(directory))
    with served_in_thread(directory / "imgvol.sock", fake):
        yield fake
