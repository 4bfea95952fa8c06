"""An OCI layout as the target of what is published: a directory, new or with other images in it.

Blobs come first, the name last, with one rename. What fails before takes its blobs away again.
"""

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from imgvol import limits
from imgvol.content.durable import sync_directory, translate_os_errors
from imgvol.errors import Conflict, DigestMismatch, InvalidDocument, LimitExceeded
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.json import parse_json
from imgvol.oci.media_types import OCI_INDEX
from imgvol.publish.pushing import Blob, Document
from imgvol.sources.layout import LAYOUT_VERSION, REF_NAME, blob_path

_INDEX: Final = "index.json"
_MARK: Final = "oci-layout"
_MODE: Final = 0o644


def write_layout(
    directory: Path, blobs: Sequence[Blob], documents: Sequence[Document], tag: str | None
) -> Digest:
    """Adds an image to a layout. Blocks.

    Args:
        directory: Absolute. It is made if it is not there, but not what it is in.
        blobs: What the documents name.
        documents: Children first; the last one gets the name.
        tag: The name, which an image may have had until now; None: it has none.

    Returns:
        The digest of the last document.

    Raises:
        Conflict: There is something else.
        InvalidDocument: The layout's index is damaged.
        StoreFull, LocalError: It cannot be written.
        DigestMismatch: A blob is not what it should be.
    """
    made: list[Path] = []
    try:
        with translate_os_errors("write the layout"):
            top = _write(directory, blobs, documents, tag, made)
    except BaseException:
        for path in reversed(made):
            with contextlib.suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
        raise
    return top


def _write(
    directory: Path,
    blobs: Sequence[Blob],
    documents: Sequence[Document],
    tag: str | None,
    made: list[Path],
) -> Digest:
    index = _read_index(directory)
    _make(directory, made)
    if not (directory / _MARK).exists():
        _put(directory / _MARK, _json({"imageLayoutVersion": LAYOUT_VERSION}), made)
    _make(directory / "blobs", made)
    for blob in blobs:
        _copy(blob, _blob_file(directory, blob.descriptor.digest, made), made)
    for document in documents:
        path = _blob_file(directory, document.descriptor.digest, made)
        if not path.exists():
            _put(path, document.raw, made)
    top = documents[-1].descriptor
    _add(index, top, tag)
    for folder in {directory / "blobs", *(directory / "blobs").iterdir()}:
        sync_directory(folder)
    _put(directory / _INDEX, _json(index), [])
    sync_directory(directory)
    return top.digest


def _read_index(directory: Path) -> dict[str, Any]:
    """What the layout lists already; nothing when there is none yet."""
    if not directory.exists() or not any(directory.iterdir()):
        return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
    if not (directory / _MARK).is_file() or not (directory / _INDEX).is_file():
        raise Conflict(
            "the directory has something in it that is no OCI layout",
            hint="Name an empty or a new directory.",
            path=str(directory),
        )
    with (directory / _INDEX).open("rb") as file:
        raw = file.read(limits.MANIFEST_SIZE + 1)
    if len(raw) > limits.MANIFEST_SIZE:
        raise LimitExceeded(
            "the layout's index is too large", limit="MANIFEST_SIZE", allowed=limits.MANIFEST_SIZE
        )
    index = parse_json(raw, what="index of the layout", max_size=limits.MANIFEST_SIZE)
    if not isinstance(index, dict) or not isinstance(index.get("manifests"), list):
        raise InvalidDocument("malformed index of the layout", path=str(directory))
    return index


def _add(index: dict[str, Any], top: Descriptor, tag: str | None) -> None:
    entry = top.to_json()
    if tag is not None:
        entry["annotations"] = {REF_NAME: tag}
    kept = [one for one in index["manifests"] if not _is_replaced(one, top, tag)]
    index["manifests"] = [*kept, entry]


def _is_replaced(entry: Any, top: Descriptor, tag: str | None) -> bool:
    if not isinstance(entry, dict):
        return False
    annotations = entry.get("annotations")
    name = annotations.get(REF_NAME) if isinstance(annotations, dict) else None
    return (
        name == tag if tag is not None else name is None and entry.get("digest") == str(top.digest)
    )


def _blob_file(directory: Path, digest: Digest, made: list[Path]) -> Path:
    path = directory / blob_path(digest)
    _make(path.parent, made)
    return path


def _make(path: Path, made: list[Path]) -> None:
    if not path.is_dir():
        path.mkdir(0o755)
        made.append(path)


def _copy(blob: Blob, path: Path, made: list[Path]) -> None:
    """A blob gets its name when it is whole, and what it should be."""
    if path.exists():
        return
    expected = blob.descriptor.digest
    partial = path.with_name(f".{path.name}.partial")
    hasher = expected.hasher()
    try:
        with blob.open_body() as source, partial.open("wb") as target:
            while piece := source.read(limits.MIB):
                hasher.update(piece)
                target.write(piece)
            target.flush()
            os.fchmod(target.fileno(), _MODE)
            os.fsync(target.fileno())
        actual = Digest.from_hasher(hasher)
        if actual != expected:
            raise DigestMismatch("a blob has changed", expected=expected, actual=actual)
        os.rename(partial, path)
        made.append(path)
    finally:
        partial.unlink(missing_ok=True)


def _put(path: Path, data: bytes, made: list[Path]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), _MODE)
            os.fsync(file.fileno())
        os.rename(partial, path)
        made.append(path)
    finally:
        partial.unlink(missing_ok=True)


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
