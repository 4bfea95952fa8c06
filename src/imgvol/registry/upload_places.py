"""Where an upload goes on, and from which byte: what a registry's answers say of it.

Pure: headers in, a URL or a number out, or a ProtocolError.
"""

import re
from typing import Final, NamedTuple

import httpx

from imgvol import limits
from imgvol.errors import ProtocolError
from imgvol.oci.digest import Digest
from imgvol.registry.redaction import quote_remote
from imgvol.registry.redirects import next_hop

# The specification has `0-9`; some write it as HTTP does.
_RANGE: Final = re.compile(r"(?:bytes[= ])?0-([0-9]{1,18})", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]{1,18}", re.ASCII)


class UploadPlace(NamedTuple):
    """A URL, and the first byte that is missing there."""

    url: httpx.URL
    position: int


def upload_location(current: httpx.URL, location: str | None) -> httpx.URL:
    """Where a registry wants an upload to go, within the rules for redirects.

    A registry behind a proxy that ends TLS often does not know it, and names itself without: what
    has the registry's own host and port is taken for the registry.

    Args:
        current: What was asked.
        location: The `Location` header of the answer.

    Raises:
        ProtocolError: It is no URL, or one where we do not go.
    """
    try:
        target = current.join(location) if location else None
    except (httpx.InvalidURL, ValueError):
        target = None
    if (
        target is not None
        and (current.scheme, target.scheme) == ("https", "http")
        and target.host == current.host
        and target.port in {None, current.port}
    ):
        location = str(target.copy_with(scheme="https", port=current.port))
    return next_hop(current, location, what="an upload")


def with_digest(location: httpx.URL, digest: Digest) -> httpx.URL:
    """The URL that ends an upload."""
    # Appended as it is: what the registry has signed in the query stays letter by letter.
    query = location.query + (b"&" if location.query else b"") + b"digest=" + str(digest).encode()
    return location.copy_with(query=query)


def parse_kept(header: str | None) -> int | None:
    """How many bytes of an upload a `Range` header says are there; None when it says nothing.

    `0-0` is none: docker-registry has no other way to say it.

    Raises:
        ProtocolError: It cannot be read, or does not begin with the first byte.
    """
    text = (header or "").strip()
    if not text:
        return None
    match = _RANGE.fullmatch(text)
    if match is None:
        raise ProtocolError(
            "the registry does not say which bytes of an upload it has", range=quote_remote(text)
        )
    last = int(match[1])
    return last + 1 if last else 0


def parse_smallest_piece(header: str | None) -> int:
    """What pieces have to be at least: `OCI-Chunk-Min-Length`; 0 when nothing is said."""
    text = (header or "").strip()
    return min(int(text), limits.PUSH_CHUNK_LARGEST) if _NUMBER.fullmatch(text) else 0
