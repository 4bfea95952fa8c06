"""The helper's part of a conversion: one layer, from its tar to a blob of another format.

It makes two files: `blob`, and in between a scratch file without a name, about as large. Before it
says that it is done, it reads the table of contents as any other node will.
"""

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Final

from imgvol import limits
from imgvol.errors import InternalError, StoreDamaged
from imgvol.layers.lazy.locate import Format, NeedTail, TocRange, find_toc, open_layer
from imgvol.layers.lazy.writing.formats import UNCOMPRESSED_SIZE, open_dialect
from imgvol.layers.lazy.writing.writer import LayerWriter, WriterOptions
from imgvol.oci.digest import Digest

BLOB_NAME: Final = "blob"
"""What it makes."""

PRIORITIZED_NAME: Final = "prioritized"
"""What it is given beside its input: paths, each with a NUL behind it."""


def run(
    request: Mapping[str, Any],
    source: IO[bytes],
    output: Path,
    progress: Callable[[int], None],
) -> Mapping[str, Any]:
    """Write one layer.

    Args:
        request: `format` (the value of a `Format`), `digest` (of the tar), `chunk_size`, `level`.
        source: The tar.
        output: Gets the blob; may have a list of files that are wanted first.
        progress: Told how much of the tar has been written.

    Returns:
        `digest`, `size`, `diff_id`, `unpacked_size`, `annotations`, `files`, `prioritized`.

    Raises:
        StoreDamaged: The tar is not what it should be.
        ContentError: The format cannot have it.
    """
    format_ = Format(request["format"])
    options = WriterOptions(
        chunk_size=request["chunk_size"],
        level=request["level"],
        prioritized=_prioritized(output),
    )
    expected = Digest.parse(request["digest"])
    with tempfile.TemporaryFile(dir=output) as scratch:
        writer = LayerWriter(open_dialect(format_), scratch, options)
        hasher = expected.hasher()
        done = 0
        while piece := source.read(limits.BODY_PIECE):
            hasher.update(piece)
            writer.feed(piece)
            done += len(piece)
            progress(done)
        if Digest.from_hasher(hasher) != expected:
            raise StoreDamaged(
                "a stored layer has changed",
                hint="Find out more, and repair it: imgvol scrub --repair",
                expected=expected,
            )
        digest, size = _write_blob(writer, output / BLOB_NAME)
    written = writer.result
    assert written is not None
    del writer  # and what it remembers
    annotations = dict(written.annotations)
    if format_ is Format.ESTARGZ:
        annotations[UNCOMPRESSED_SIZE] = str(written.unpacked_size)
    _check(output / BLOB_NAME, size, annotations)
    return {
        "digest": str(digest),
        "size": size,
        "diff_id": str(written.diff_id or expected),
        "unpacked_size": written.unpacked_size,
        "annotations": annotations,
        "files": written.files,
        "prioritized": written.prioritized,
    }


def _prioritized(directory: Path) -> list[bytes]:
    try:
        return (directory / PRIORITIZED_NAME).read_bytes().split(b"\0")[:-1]
    except FileNotFoundError:
        return []


def _write_blob(writer: LayerWriter, path: Path) -> tuple[Digest, int]:
    hasher = hashlib.sha256()
    size = 0
    with path.open("wb") as blob:
        for piece in writer.finish():
            hasher.update(piece)
            size += len(piece)
            blob.write(piece)
    return Digest("sha256", hasher.hexdigest()), size


def _check(path: Path, size: int, annotations: Mapping[str, str]) -> None:
    """Open the layer as those will who mount it; raises what they would see."""
    with path.open("rb") as blob:

        def read(start: int, end: int) -> bytes:
            blob.seek(start)
            return blob.read(end - start)

        found = find_toc(annotations, size)
        if isinstance(found, NeedTail):
            found = find_toc(annotations, size, read(size - found.size, size))
        if not isinstance(found, TocRange):
            raise InternalError("a layer that was written has no table of contents")
        open_layer(found, read(found.start, found.end))
