"""What lies in the store's directories, compared with what is recorded. All of this blocks."""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from imgvol.content.layout import FILES_NAME, StoreLayout
from imgvol.content.records import FaultKind, LayerRecord
from imgvol.errors import InvalidDigest
from imgvol.oci.digest import Digest

# How Digest tells algorithms apart by nothing but length.
_ALGORITHMS = {64: "sha256", 96: "sha384", 128: "sha512"}


def homes(layout: StoreLayout) -> tuple[Path, ...]:
    """The directories that have one directory for each layer."""
    return layout.layers, layout.lazy_layers, layout.places


def home_of(layout: StoreLayout, record: LayerRecord) -> Path:
    """Which directory has a layer's own."""
    if record.is_in_place:
        return layout.places
    # What was stored whole and is damaged lies where it lay: most of it may still be good.
    was_stored = record.fault is not None and record.fault.kind is FaultKind.DAMAGED
    return layout.layers if record.is_complete or was_stored else layout.lazy_layers


def digest_named(name: str) -> Digest | None:
    """The digest whose encoded part a file's name is; None: it is no name of ours."""
    try:
        return Digest(_ALGORITHMS.get(len(name), ""), name)
    except InvalidDigest:
        return None


def strays(layout: StoreLayout, recorded: Sequence[LayerRecord]) -> list[Path]:
    """Directories of layers that no record speaks of: of forgotten layers, or of earlier forms."""
    wanted = {home_of(layout, record) / record.digest.encoded for record in recorded}
    return [
        Path(entry.path)
        for home in homes(layout)
        for entry in os.scandir(home)
        if Path(entry.path) not in wanted
    ]


def lost(layout: StoreLayout, recorded: Sequence[LayerRecord]) -> list[LayerRecord]:
    """Records of layers whose directories are gone."""
    return [
        record
        for record in recorded
        if not (home_of(layout, record) / record.digest.encoded).is_dir()
    ]


def remove_stray(path: Path) -> int:
    """Removes a stray, whatever it is; returns the bytes given back."""
    freed = tree_usage(path, shared_links=2)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    return freed


def shared_file_users(layout: StoreLayout) -> dict[str, set[str]]:
    """The large files that can be shared, by content, and which layers link to each."""
    names: dict[tuple[int, int], str] = {}
    users: dict[str, set[str]] = {}
    for entry in os.scandir(layout.shared_files):
        status = entry.stat(follow_symlinks=False)
        names[status.st_dev, status.st_ino] = entry.name
        users[entry.name] = set()
    for layer in os.scandir(layout.layers):
        for entry in _entries(Path(layer.path) / FILES_NAME):
            status = entry.stat(follow_symlinks=False)
            if name := names.get((status.st_dev, status.st_ino)):
                users[name].add(layer.name)
    return users


def _entries(directory: Path) -> Iterator[os.DirEntry[str]]:
    try:
        yield from os.scandir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return


def sweep_shared_files(layout: StoreLayout) -> list[str]:
    """Removes large files that no layer links to any more; returns their names.

    A layer that links to one in this moment has it all the same.
    """
    removed = []
    for entry in os.scandir(layout.shared_files):
        if entry.stat(follow_symlinks=False).st_nlink == 1:
            os.unlink(entry.path)
            removed.append(entry.name)
    return removed


def shared_usage(top: Path) -> int:
    """Bytes of disk that hard links below a directory save: each after the first of a file."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for directory, _, files in os.walk(top):
        for name in files:
            try:
                status = os.lstat(os.path.join(directory, name))
            except FileNotFoundError:  # replaced or removed in this moment
                continue
            if status.st_nlink > 1:
                file = (status.st_dev, status.st_ino)
                total += status.st_blocks * 512 if file in seen else 0
                seen.add(file)
    return total


def tree_usage(top: Path, *, shared_links: int | None = None) -> int:
    """Bytes of disk below a directory; hard links count once, holes not at all.

    With `shared_links`, files of more links than that count nothing: others hold them too.
    """
    seen: set[int] = set()
    total = 0
    for directory, _, files in os.walk(top):
        for name in files:
            try:
                status = os.lstat(os.path.join(directory, name))
            except FileNotFoundError:  # replaced or removed in this moment
                continue
            if shared_links is not None and status.st_nlink > shared_links:
                continue
            if status.st_ino not in seen:
                seen.add(status.st_ino)
                total += status.st_blocks * 512
    return total
