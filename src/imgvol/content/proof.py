"""That a lazy layer was proven as a whole: its diff ID, in a file of its directory.

    lazy/<hex>/proof    checksum and diff ID, as text

Written when blob digest, diff ID and every file have been checked over every byte that the layer
has. From then on each of its spans is what was proven, whether it is fetched again or not: the same
digests pin it. The file goes with the directory. One that is damaged counts as none.
"""

import contextlib
import os
import zlib
from pathlib import Path
from typing import Final

from imgvol.content.durable import sync_directory, translate_os_errors, write_file
from imgvol.content.open_file import read_whole
from imgvol.errors import InvalidDigest
from imgvol.oci.digest import DiffID, Digest

PROOF_NAME: Final = "proof"


def write_proof(directory: Path, diff_id: DiffID) -> None:
    """Notes durably what a layer was proven to be. Blocks.

    Raises:
        StoreFull: No room.
        LocalError: The disk failed, or the layer has been removed.
    """
    path = directory / PROOF_NAME
    new = path.with_name(f"{PROOF_NAME}.new")
    body = str(diff_id).encode()
    with translate_os_errors("note the proof of a layer"):
        new.unlink(missing_ok=True)
        write_file(new, b"%08x %s\n" % (zlib.crc32(body), body))
        os.replace(new, path)
        sync_directory(directory)


def read_proof(directory: Path) -> DiffID | None:
    """What a layer was proven to be; None: it was not, or nobody knows any more. Blocks."""
    with contextlib.suppress(OSError, ValueError, InvalidDigest):
        checksum, body = read_whole(directory / PROOF_NAME).rstrip(b"\n").split(b" ")
        if int(checksum, 16) == zlib.crc32(body):
            return DiffID(Digest.parse(body.decode()))
    return None
