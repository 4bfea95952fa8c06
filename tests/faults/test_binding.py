"""A view that the kernel forgets while it is being mounted: it is looked up again."""

import pytest

from support import images
from support.daemon import Imgvol
from support.programs import require_fuse, stop

pytestmark = pytest.mark.fuse

IMAGE = images.Image([images.Layer([images.file("motd", b"hello")], "gzip")])
# Between finding the view's directory and attaching it, as after an earlier withdrawal.
FORGETTING = """
import os, pyfuse3
from imgvol.volumes import syscalls

attach = syscalls.attach
left = [{times}]

def forget_first(tree, target):
    if left[0]:
        left[0] -= 1
        (name,) = os.listdir({views!r}.encode()) or [b""]
        pyfuse3.invalidate_entry(pyfuse3.ROOT_INODE, name)
        try:
            attach(tree, target)
        except FileNotFoundError:
            with open({log!r}, "a") as log:
                log.write("x")
            raise
    else:
        attach(tree, target)

syscalls.attach = forget_first
"""


@pytest.mark.parametrize(("times", "message"), [(2, ""), (9, "cannot bind the view")])
def test_a_view_that_is_forgotten_while_it_is_mounted_is_looked_up_again(
    short_path, agent, times, message
):
    require_fuse()
    fired = short_path / "fired"
    imgvol = Imgvol(short_path)
    source = FORGETTING.format(times=times, views=str(imgvol.run_dir / "views"), log=str(fired))
    imgvol.prelude = f"exec({source!r})"
    layout = images.write_layout(short_path / "layout", {"v1": IMAGE})
    imgvol.start()
    try:
        target = imgvol.target("mnt")
        done = imgvol.run("mount", f"oci:{layout}:v1", target, check=False)
        if not fired.exists():
            pytest.skip("this kernel attaches directories that it has forgotten")
        assert fired.read_text() == "x" * min(times, 5)
        assert message in done.stderr
        if not message:
            assert done.returncode == 0, done.stderr
            assert agent.ask_bytes("content", path=f"{target}/motd") == b"hello"
        imgvol.terminate()
    finally:
        stop(imgvol.process)
