"""What a hook of an OCI runtime does with the kernel, and what it reads from the runtime.

The runtime calls a `createRuntime` hook in its own namespaces, once the container's exist and
before its root is pivoted (runtime-spec `config.md`, "POSIX-platform Hooks"). At that moment the
container's mount namespace still has the host's tree, with the root file system at its path in it.
A bind mount made on the host would reach it only where propagation lets it. So the mount is made
detached, on the host's side, where the view is, and attached by a thread that has entered the
container's namespace.

Everything that the container's image may have put on the way to a destination is resolved inside
the root file system: a link in it cannot lead a mount to the host (CVE-2021-30465).
"""

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import parse_qsl

from imgvol import limits
from imgvol.errors import ImgvolError, InvalidArgument, InvalidDocument, LimitExceeded, LocalError
from imgvol.oci.json import Node
from imgvol.volumes import syscalls

# The path in the container follows, with its slash.
ANNOTATION: Final = "io.imgvol.volumes"
_OPTIONS: Final = ("subpath", "pull")
_PULL: Final = ("missing", "never")
_DIRECTORY_MODE: Final = 0o755


@dataclass(frozen=True, slots=True, kw_only=True)
class HookState:
    """What the runtime tells a hook on its standard input (runtime-spec `runtime.md`, "State").

    Attributes:
        id: The container's.
        pid: Of its first process; 0 once it has stopped.
        bundle: Directory of the container's configuration.
        annotations: None when the runtime leaves them to the configuration.
    """

    id: str
    pid: int
    bundle: str
    annotations: Mapping[str, str] | None

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Reads it.

        Raises:
            InvalidDocument: It is something else.
            LimitExceeded: It is too long.
        """
        document = Node.parse(raw, what="state", max_size=limits.HOOK_STATE_SIZE)
        pid = document.get("pid")
        bundle = document.require("bundle").string()
        if not os.path.isabs(bundle):
            raise document.require("bundle").error("not an absolute path")
        return cls(
            id=document.require("id").string(),
            pid=pid.integer() if pid else 0,
            bundle=bundle,
            annotations=(
                document.get_string_map("annotations") if document.get("annotations") else None
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleConfig:
    """What of a bundle's config.json a hook needs.

    Attributes:
        rootfs: Absolute path, on the host, of what becomes the container's root.
    """

    rootfs: str
    annotations: Mapping[str, str]

    @classmethod
    def read(cls, bundle: str) -> Self:
        """Reads it from a bundle. Blocks.

        Raises:
            InvalidDocument: It cannot be read.
        """
        try:
            with open(os.path.join(bundle, "config.json"), "rb") as file:
                raw = file.read(limits.HOOK_CONFIG_SIZE + 1)
        except OSError as exc:
            raise InvalidDocument(
                f"the bundle's config.json cannot be read: {exc.strerror}", bundle=bundle
            ) from exc
        document = Node.parse(raw, what="config.json", max_size=limits.HOOK_CONFIG_SIZE)
        root = document.require("root").require("path").string()
        return cls(
            rootfs=os.path.join(bundle, root),
            annotations=document.get_string_map("annotations"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedMount:
    """One annotation, read.

    Attributes:
        destination: Absolute, clean path in the container.
        pull: "missing" or "never".
    """

    destination: str
    image: str
    sub_path: str = ""
    pull: str = "missing"


def wanted_mounts(annotations: Mapping[str, str]) -> tuple[WantedMount, ...]:
    """The images that a container's annotations ask for, outer destinations first.

    Raises:
        InvalidArgument: One of them makes no sense.
        LimitExceeded: They are too many.
    """
    wanted = tuple(
        _parse_annotation(key, value)
        for key, value in sorted(annotations.items())
        if key.startswith(f"{ANNOTATION}/")
    )
    if len(wanted) > limits.HOOK_MOUNTS:
        raise LimitExceeded(
            "too many images for one container", limit="HOOK_MOUNTS", allowed=limits.HOOK_MOUNTS
        )
    return wanted


def _parse_annotation(key: str, value: str) -> WantedMount:
    destination = key.removeprefix(ANNOTATION)
    if (
        os.path.normpath(destination) != destination
        or destination == "/"
        or destination.startswith("//")
        or "\0" in destination
    ):
        raise InvalidArgument(
            "an annotation does not end in a clean path of the container",
            hint=f"Write it as in {ANNOTATION}/usr/share/models.",
            annotation=key,
        )
    image, _, query = value.partition("?")
    options = parse_qsl(query, keep_blank_values=True)
    given = dict(options)
    if not image or len(given) != len(options) or not given.keys() <= set(_OPTIONS):
        raise InvalidArgument(
            "an annotation is not IMAGE or IMAGE?OPTION=VALUE",
            hint=f"Options are {' and '.join(_OPTIONS)}, with & in between.",
            annotation=key,
            value=value,
        )
    pull = given.get("pull", "missing")
    if pull not in _PULL:
        raise InvalidArgument("pull is neither missing nor never", annotation=key, pull=pull)
    return WantedMount(
        destination=destination, image=image, sub_path=given.get("subpath", ""), pull=pull
    )


def mount_in_container(pid: int, rootfs: str, mounts: Sequence[tuple[str, str]]) -> None:
    """Mounts directories or files of views in a container whose root is not pivoted yet. Blocks.

    Destinations that do not exist are made, as runtimes do for their own mounts.

    Args:
        pid: Of the container's first process.
        rootfs: Path of what becomes its root.
        mounts: Paths of views, or in views, with the destinations in the container.

    Raises:
        LocalError: The kernel refuses.
    """
    with contextlib.ExitStack() as stack:
        trees = []
        for source, destination in mounts:
            with _explained("open", source):
                place = stack.enter_context(syscalls.open_place(os.fsencode(source)))
                tree = stack.enter_context(syscalls.clone_tree(place))
                syscalls.restrict(tree)
            trees.append((tree, destination))
        with _explained("enter the container of process", str(pid)):
            namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, namespace)
        _in_thread(namespace, rootfs, trees)


def _in_thread(namespace: int, rootfs: str, trees: Sequence[tuple[int, str]]) -> None:
    """Attaches the mounts in a thread: it cannot come back from the namespace."""
    failures: list[Exception] = []

    def work() -> None:
        try:
            with _explained("enter", "the container's mount namespace"):
                syscalls.enter_mount_namespace(namespace)
            _attach_all(rootfs, trees)
        except Exception as exc:  # noqa: BLE001 - raised again below
            failures.append(exc)

    thread = threading.Thread(target=work, name="imgvol-attach", daemon=True)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def _attach_all(rootfs: str, trees: Sequence[tuple[int, str]]) -> None:
    with _explained("open", rootfs):
        root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for tree, destination in trees:
            is_directory = stat.S_ISDIR(syscalls.standing_at(tree).mode)
            with (
                _explained("mount at", destination),
                _open_destination(root, os.fsencode(destination), is_directory) as place,
            ):
                syscalls.attach(tree, place)
    finally:
        os.close(root)


@contextlib.contextmanager
def _open_destination(root: int, path: bytes, is_directory: bool) -> Iterator[int]:
    with contextlib.ExitStack() as stack:
        try:
            place = stack.enter_context(syscalls.open_in_root(root, path))
        except FileNotFoundError:
            _make(root, path, is_directory)
            place = stack.enter_context(syscalls.open_in_root(root, path))
        yield place


def _make(root: int, path: bytes, is_directory: bool) -> None:
    """Makes what is missing of a path inside a root."""
    parent, name = os.path.split(path)
    try:
        with syscalls.open_in_root(root, parent) as directory:
            _make_last(directory, name, is_directory)
    except FileNotFoundError:
        if parent == path:
            raise
        _make(root, parent, is_directory=True)
        with syscalls.open_in_root(root, parent) as directory:
            _make_last(directory, name, is_directory)


def _make_last(directory: int, name: bytes, is_directory: bool) -> None:
    if is_directory:
        os.mkdir(name, _DIRECTORY_MODE, dir_fd=directory)
    else:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        os.close(os.open(name, flags, 0o644, dir_fd=directory))


@contextlib.contextmanager
def _explained(what: str, where: str) -> Iterator[None]:
    try:
        yield
    except ImgvolError:
        raise
    except OSError as exc:
        hint = ""
        if exc.errno == errno.EPERM:
            hint = "The hook needs the privileges that the runtime has as root."
        raise LocalError(f"cannot {what} {where}: {exc.strerror}", hint=hint) from exc
