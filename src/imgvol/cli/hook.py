"""`hook`: what an OCI runtime calls when a container is created and when it is gone."""

import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Final

import click

from imgvol import limits
from imgvol.cli.client import Client
from imgvol.cli.session import Session, examples, pass_session
from imgvol.errors import DaemonUnavailable, ImgvolError

if TYPE_CHECKING:
    from imgvol.volumes.runtime_hook import HookState, WantedMount

# Of one answer; the daemon says something every few seconds while it works.
_SILENCE: Final = 20.0
# For giving back what a failed start had taken.
_RELEASE_DEADLINE: Final = 10.0


@click.command(
    "hook",
    epilog=examples(
        "imgvol hook createRuntime < state.json",
        "imgvol hook poststop < state.json",
        after='In config.json: "annotations": {"io.imgvol.volumes/data": "debian:12?subpath=etc"}, '
        '"hooks": {"createRuntime": [{"path": "/usr/bin/imgvol", '
        '"args": ["imgvol", "hook", "createRuntime"]}], "poststop": ...}',
    ),
)
@click.argument("stage", type=click.Choice(["createRuntime", "poststop"]))
@click.option(
    "--deadline",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    default=limits.HOOK_DEADLINE,
    show_default=True,
    help="How long a container's start may wait for its images.",
)
@pass_session
def hook_command(session: Session, /, stage: str, deadline: float) -> None:
    """Mount the images that a container's annotations name; release them when it has stopped.

    Reads the container's state from standard input, as runtimes give it to hooks. Each annotation
    io.imgvol.volumes/PATH names an image to be mounted read-only at /PATH of the container. The
    daemon has to run; if it does not, or an image cannot be mounted, the container does not start.
    """
    from imgvol.volumes.runtime_hook import BundleConfig, HookState, wanted_mounts

    state = HookState.parse(sys.stdin.buffer.read(limits.HOOK_STATE_SIZE + 1))
    client = Client(str(session.config.socket), timeout=_SILENCE)
    with _deadline(deadline):
        annotations = state.annotations
        if annotations is None:
            annotations = BundleConfig.read(state.bundle).annotations
        wanted = wanted_mounts(annotations)
        if not wanted:
            return
        if stage == "poststop":
            _release(client, state.id)
            return
    try:
        with _deadline(deadline):
            _mount_all(client, state, wanted)
    except BaseException:
        # The container will not start: nothing is to be left of it.
        with contextlib.suppress(ImgvolError), _deadline(_RELEASE_DEADLINE):
            _release(client, state.id)
        raise


def _mount_all(client: Client, state: "HookState", wanted: "Sequence[WantedMount]") -> None:
    from imgvol.volumes.runtime_hook import BundleConfig, mount_in_container

    mounts = []
    for mount in wanted:
        body = {
            "image": mount.image,
            "sandbox": _sandbox(state.id),
            "sub_path": mount.sub_path,
            "pull": mount.pull,
        }
        *_, done = client.iter_events("POST", "/volumes", body=body)
        mounts.append((done["volume"]["path"], mount.destination))
    mount_in_container(state.pid, BundleConfig.read(state.bundle).rootfs, mounts)


def _release(client: Client, container: str) -> None:
    # With its volumes: whatever the container has left open, it is gone.
    client.call("DELETE", "/leases", {"lease": _sandbox(container), "drain": 0, "detach": True})


def _sandbox(container: str) -> str:
    # A container may have any name: `cli` must not release what the command has mounted.
    return f"oci-{container}"


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raises DaemonUnavailable in the block when the time is over."""

    def give_up(_number: int, _frame: FrameType | None) -> None:
        raise DaemonUnavailable(
            f"the container's images were not ready after {seconds:g} s",
            hint="Pull them before: imgvol pull IMAGE. Or give the hook more time: --deadline.",
        )

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
