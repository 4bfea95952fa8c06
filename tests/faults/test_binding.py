"""A view that the kernel forgets while it is being mounted: it is looked up again."""

import pytest

from support import images, transports
from support.daemon import Imgvol
from support.programs import require_fuse, stop

pytestmark = pytest.mark.fuse

IMAGE = images.Image([images.Layer([images.file("motd", b"hello")], "gzip")])
# Between finding the view's directory and attaching it, as after an earlier withdrawal.
FORGETTING = """
import os
from imgvol.fs import choice
from imgvol.volumes import syscalls

made = []
make_transport = choice.make_transport

def make(*args, **options):
    made.append(make_transport(*args, **options))
    return made[-1]

choice.make_transport = make
attach = syscalls.attach
left = [{times}]

def forget_first(tree, target):
    if left[0]:
        left[0] -= 1
        (name,) = os.listdir({views!r}.encode()) or [b""]
        made[0].invalidate_entry(1, name)
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


@transports.each
@pytest.mark.parametrize(("times", "message"), [(2, ""), (9, "cannot bind the view")])
def test_a_view_that_is_forgotten_while_it_is_mounted_is_looked_up_again(
    short_path, agent, transport, times, message
):
    require_fuse()
    fired = short_path / "fired"
    imgvol = Imgvol(short_path, options=("--transport", transport))
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
