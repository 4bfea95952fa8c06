"""Tests that have to hold whatever carries the kernel's requests."""

import os

import pytest

from imgvol.fs.choice import OLDEST_KERNEL, version_of
from imgvol.fs.kernel.negotiation import OLDEST_MINOR, WANTED
from imgvol.fs.kernel.protocol import InitFlag

CACHED = "kernel, nothing passed through"
_WITHOUT = "kernel without "
_OLDEST = "kernel as old as can be"
_EVERYTHING = "everything"
_IN_FLAGS2 = InitFlag(sum(flag for flag in InitFlag if flag >= 1 << 32))
# By the name of a transport: what its kernel does not offer in INIT.
_LACKING = {
    **{f"{_WITHOUT}{flag.name}": flag for flag in WANTED | InitFlag.PASSTHROUGH},
    f"{_WITHOUT}{InitFlag.INIT_EXT.name}": InitFlag.INIT_EXT | _IN_FLAGS2,
    f"{_WITHOUT}{_EVERYTHING}": InitFlag(2**64 - 1),
    _OLDEST: InitFlag.INIT_EXT | _IN_FLAGS2,
}
# Between what the kernel offers and what the transport makes of it. The kernel then behaves as one
# that does not offer it: what is not agreed on does not hold.
_MASK = """
from imgvol.fs.kernel import negotiation
negotiate = negotiation.negotiate
def negotiate_with_less(asked, wanted):
    minor, flags = min(asked.minor, {minor}), asked.flags & ~negotiation.InitFlag({lacking})
    return negotiate(asked._replace(minor=minor, flags=flags), wanted)
negotiation.negotiate = negotiate_with_less
"""

# Makes the fixture `daemon` use each of them in turn, and `shared_daemon` where the whole module is
# marked: within one that is not, pytest does not notice that another daemon is wanted.
each = pytest.mark.parametrize("transport", ["pyfuse3", "kernel"], scope="module")
# The same where large files are read: by us, and by the kernel itself.
each_way = pytest.mark.parametrize("transport", ["pyfuse3", "kernel", CACHED], scope="module")

# The same over kernels that lack one feature each, as far as we can see, and all of them.
each_kernel = pytest.mark.parametrize("transport", ["pyfuse3", "kernel", *_LACKING], scope="module")


def options(transport: str) -> tuple[str, ...]:
    """Of `imgvol serve`."""
    if transport == CACHED:
        return "--transport", "kernel", "--no-passthrough"
    if transport in _LACKING:
        # The log says what was agreed on.
        return "--transport", "kernel", "--log-level", "debug"
    return "--transport", transport


def prelude(transport: str) -> str:
    """What a daemon runs before all else: `Imgvol.prelude`."""
    if transport not in _LACKING:
        return "pass"
    minor = OLDEST_MINOR if transport == _OLDEST else 1 << 32
    return f"exec({_MASK.format(minor=minor, lacking=int(_LACKING[transport]))!r})"


def lacks(transport: str, flag: InitFlag) -> bool:
    """Whether a kernel of that name does not offer something."""
    return bool(_LACKING.get(transport, InitFlag(0)) & flag)


def maps_owners() -> bool:
    """Whether this machine's kernel can map owners in a filesystem that allows it."""
    return version_of(os.uname().release) >= (6, 12)


def passes_through() -> bool:
    """Whether this machine's kernel can."""
    return is_recent()


def has_resend() -> bool:
    """Whether this machine's kernel can send again what a process has read and not answered."""
    return is_recent()


def is_recent() -> bool:
    """Whether the kernel's own transport is the usual one here."""
    return version_of(os.uname().release) >= OLDEST_KERNEL
