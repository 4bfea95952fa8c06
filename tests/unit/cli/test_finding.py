"""The tests of `imgvol find`."""

import pytest

from imgvol.cli.finding import Tests


def passing(**changes):
    values = {"name": None, "iname": None, "whole": None, "types": frozenset(), "maxdepth": None}
    return Tests.make(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "path", "kind", "is_found"),
    [
        ({}, "/etc/passwd", "file", True),
        ({"name": "*.conf"}, "/etc/a.conf", "file", True),
        ({"name": "*.CONF"}, "/etc/a.conf", "file", False),
        ({"iname": "*.CONF"}, "/etc/a.conf", "file", True),
        ({"name": "*"}, "/etc/.hidden", "file", True),
        ({"name": "etc"}, "/etc/", "directory", True),
        ({"name": "/"}, "/", "directory", True),
        ({"whole": "/etc/*"}, "/etc/a/b", "file", True),
        ({"types": frozenset({"symlink"})}, "/etc/a", "file", False),
        ({"maxdepth": 0}, "/", "directory", True),
        ({"maxdepth": 1}, "/etc", "directory", True),
        ({"maxdepth": 1}, "/etc/a", "file", False),
        ({"name": "latin\udce9"}, "/latin\udce9", "file", True),
    ],
)
def test_accept(changes, path, kind, is_found):
    assert passing(**changes).accept(path, kind, "/") is is_found


def test_depth_counts_from_the_start():
    assert passing(maxdepth=1).accept("/usr/lib/a", "file", "/usr/lib")
    assert not passing(maxdepth=1).accept("/usr/lib/a/b", "file", "/usr/lib/")
