"""Which transport is used where."""

import pytest

from imgvol.config import TransportChoice
from imgvol.fs.choice import choose, passthrough_obstacle

AUTO, PYFUSE3, KERNEL = TransportChoice.AUTO, TransportChoice.PYFUSE3, TransportChoice.KERNEL


@pytest.mark.parametrize(
    ("release", "chosen"),
    [
        ("6.18.44-fc", KERNEL),
        ("6.9.0", KERNEL),
        ("6.10-rc1", KERNEL),
        ("6.8.12", PYFUSE3),
        ("odd", PYFUSE3),
    ],
)
def test_what_is_used_unless_somebody_says(release, chosen):
    choice = choose(AUTO, release=release)
    assert choice.transport is chosen
    assert choice.reason


@pytest.mark.parametrize("wanted", [PYFUSE3, KERNEL])
def test_what_somebody_says_is_used(wanted):
    choice = choose(wanted, release="5.12")
    assert choice == (wanted, "asked for")


@pytest.mark.parametrize(
    ("release", "may_mount", "filesystem", "said"),
    [
        ("6.9.0", True, "ext4", None),
        ("6.18.44-x", True, "xfs", None),
        ("6.8.12", True, "ext4", "Linux 6.9"),
        ("6.18", False, "ext4", "CAP_SYS_ADMIN"),
        ("6.18", True, "overlay", "overlay"),
    ],
)
def test_what_passthrough_takes(release, may_mount, filesystem, said):
    found = passthrough_obstacle(release=release, may_mount=may_mount, filesystem=filesystem)
    assert found is None if said is None else said in found
