"""A machine without pyfuse3: root mounts all the same, where the kernel is new enough."""

import os

import pytest

from imgvol.fs.choice import OLDEST_KERNEL, version_of
from support import images
from support.daemon import Imgvol
from support.programs import require_fuse, stop

pytestmark = pytest.mark.fuse

# `None` in the place of a module: importing it fails as if it were not installed.
WITHOUT = "import sys; sys.modules['pyfuse3'] = None"
IMAGE = images.Image([images.Layer([images.file("motd", b"hello")], "gzip")])


@pytest.mark.parametrize("oldest", [OLDEST_KERNEL, (99, 0)], ids=["as it is", "too new"])
def test_images_are_mounted_where_the_kernel_is_new_enough(short_path, agent, oldest):
    require_fuse()
    works = version_of(os.uname().release) >= oldest
    imgvol = Imgvol(short_path, options=("--transport", "auto"))
    change = f"from imgvol.fs import choice; choice.OLDEST_KERNEL = {oldest}"
    imgvol.prelude = f"{WITHOUT}; {change}"
    imgvol.expected_log = [] if works else ["pyfuse3 is not installed"]
    layout = images.write_layout(short_path / "layout", {"v1": IMAGE})
    imgvol.start()
    try:
        target = imgvol.target("mnt")
        done = imgvol.run("mount", f"oci:{layout}:v1", target, check=False)
        assert (done.returncode == 0) == works
        if works:
            assert agent.ask_bytes("content", path=f"{target}/motd") == b"hello"
        else:
            assert "pyfuse3 is not installed" in done.stderr
    except BaseException:
        stop(imgvol.process)
        raise
    imgvol.terminate()
    assert imgvol.unexpected_log() == []
