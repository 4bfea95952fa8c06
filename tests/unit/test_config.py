"""What a daemon takes from its environment."""

import pytest

from imgvol.config import Config
from imgvol.errors import InvalidArgument


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, False),
        ({"IMGVOL_SOCI_REFERRERS": ""}, False),
        ({"IMGVOL_SOCI_REFERRERS": "0"}, False),
        ({"IMGVOL_SOCI_REFERRERS": "1"}, True),
    ],
)
def test_soci_referrers_are_off_unless_asked_for(environ, expected):
    assert Config.from_environment(environ, 0).soci_referrers is expected


@pytest.mark.parametrize("value", ["yes", "true", " 1", "2"])
def test_switch_that_is_neither_on_nor_off_is_refused(value):
    with pytest.raises(InvalidArgument, match="IMGVOL_SOCI_REFERRERS"):
        Config.from_environment({"IMGVOL_SOCI_REFERRERS": value}, 0)
