"""A daemon whose run directory is named by way of a link, as /var/run is."""

import pytest

from support import images
from support.daemon import Imgvol
from support.programs import require_fuse, stop

pytestmark = pytest.mark.fuse


class Linked(Imgvol):
    @property
    def run_dir(self):
        return self.base / "link" / "run"


def test_a_run_directory_behind_a_link_serves_and_leaves_nothing(short_path):
    require_fuse()
    (short_path / "real").mkdir()
    (short_path / "link").symlink_to("real")
    layer = images.Layer([images.file("motd", b"hello")])
    layout = images.write_layout(short_path / "layout", {"v1": images.Image([layer])})
    imgvol = Linked(short_path)
    imgvol.start()
    try:
        target = imgvol.target("mnt")
        imgvol.run("mount", f"oci:{layout}:v1", target)
        assert imgvol.run("cat", f"oci:{layout}:v1", "/motd").stdout == "hello"
        imgvol.run("unmount", target)
    except BaseException:
        stop(imgvol.process)
        raise
    imgvol.terminate()
    with open("/proc/self/mountinfo") as table:
        assert str(short_path) not in table.read()
    assert not imgvol.unexpected_log()
