"""The directory of a lazy layer; `lazy_layer` says what is in it."""

import contextlib
import os
import secrets
import shutil
from typing import Final

from imgvol.content.durable import sync_directory, translate_os_errors, write_file
from imgvol.content.layout import DATA_NAME, INDEX_NAME, StoreLayout
from imgvol.content.open_file import read_whole
from imgvol.layers.lazy.spans import SpanTable
from imgvol.oci.digest import Digest

TABLE_NAME: Final = "table"
BLOB_NAME: Final = "blob"
SPANS_NAME: Final = "spans"

_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def create_lazy_layer(
    layout: StoreLayout, digest: Digest, *, index: bytes, table: SpanTable
) -> None:
    """Stores a lazy layer without content, durably. Blocks.

    Raises:
        StoreFull: No room.
    """
    with translate_os_errors("begin a lazy layer"):
        work = layout.ingest / f"lazy-{secrets.token_hex(8)}"
        work.mkdir(mode=0o700)
        try:
            write_file(work / INDEX_NAME, index)
            write_file(work / TABLE_NAME, table.to_bytes())
            for name, size in ((DATA_NAME, table.data_size), (BLOB_NAME, table.blob_size)):
                fd = os.open(work / name, _CREATE, 0o600)
                try:
                    os.ftruncate(fd, size)
                    os.fsync(fd)
                finally:
                    os.close(fd)
            sync_directory(work)
            os.rename(work, layout.lazy_layer(digest))
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        sync_directory(layout.lazy_layers)


def is_lazy_layer(layout: StoreLayout, digest: Digest, *, index: bytes, table: SpanTable) -> bool:
    """Whether a lazy layer was stored from this index and table. Blocks.

    False, too, if there is none any more: it has been completed meanwhile.
    """
    directory = layout.lazy_layer(digest)
    with translate_os_errors("compare a lazy layer"), contextlib.suppress(FileNotFoundError):
        is_same = read_whole(directory / TABLE_NAME) == table.to_bytes()
        return is_same and read_whole(directory / INDEX_NAME) == index
    return False
