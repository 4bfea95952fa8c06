"""User namespaces that carry an ID mapping to the kernel: for idmapped mounts, and nothing else."""

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from imgvol.errors import LocalError, MachineLacks
from imgvol.volumes.options import IDMapping

# Says that it is there, and stays until its standard input closes. A namespace needs a process to
# begin with; one of our own making would have to be forked beside our threads.
_HOLDER: Final = ("unshare", "--user", "sh", "-c", "echo; read -r end")


@contextlib.contextmanager
def open_user_namespace(
    uid_mappings: Sequence[IDMapping], gid_mappings: Sequence[IDMapping]
) -> Iterator[int]:
    """Opens a user namespace with these mappings; blocks for the start of a small program.

    Raises:
        MachineLacks: There is no `unshare`, or the kernel allows no user namespaces.
        LocalError: The kernel refuses the mappings.
    """
    try:
        holder = subprocess.Popen(_HOLDER, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    except OSError as exc:
        raise MachineLacks(
            "an idmapped volume needs the program unshare", hint="Install util-linux."
        ) from exc
    # Leaving the block closes both pipes, which ends the program, and waits for it.
    with holder:
        assert holder.stdout is not None
        if holder.stdout.readline() != b"\n":
            raise MachineLacks(
                "this machine allows no user namespaces",
                hint="sysctl user.max_user_namespaces says how many may be made.",
            )
        process = Path(f"/proc/{holder.pid}")
        try:
            (process / "uid_map").write_text(_map_text(uid_mappings))
            (process / "gid_map").write_text(_map_text(gid_mappings))
            namespace = os.open(process / "ns/user", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            raise LocalError(f"the kernel refuses the ID mapping: {exc.strerror}") from exc
    try:
        yield namespace
    finally:
        os.close(namespace)


def _map_text(mappings: Sequence[IDMapping]) -> str:
    # The kernel takes the whole of a map in one write(2), user_namespaces(7).
    return "".join(f"{m.container_id} {m.host_id} {m.length}\n" for m in mappings)
