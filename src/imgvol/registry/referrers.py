"""Who refers to a manifest: the rules of the distribution specification, "Listing Referrers".

A registry answers with an index whose entries are the artifacts that name the manifest as their
`subject`, in pages; one that has no such API keeps the same index under a tag. Nothing of it is
pinned by anything: whoever may push to the repository can add an entry.
"""

import httpx

from imgvol.errors import InvalidDocument, ProtocolError
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.manifest import Index, parse_manifest
from imgvol.registry.redaction import redact_url
from imgvol.registry.redirects import Origin, next_hop


def referrers_tag(manifest: Digest) -> str:
    """The tag that lists a manifest's referrers where the registry has no API for them.

    Distribution specification, "Referrers Tag Schema".
    """
    return f"{manifest.algorithm}-{manifest.encoded[:64]}"


def parse_referrers(
    raw: bytes, *, media_type: str | None, artifact_type: str
) -> tuple[Descriptor, ...]:
    """The referrers of one type that a page, or the index under the tag, lists, in its order.

    A registry that has left out the others says so (`OCI-Filters-Applied`); but it may leave none
    out, and to look again costs nothing.

    Raises:
        InvalidDocument: It is no index.
        LimitExceeded: It is too long.
        Unsupported: It is something else.
    """
    index = parse_manifest(raw, media_type=media_type)
    if not isinstance(index, Index):
        raise InvalidDocument("a list of referrers that is no index")
    return tuple(item for item in index.manifests if item.artifact_type == artifact_type)


def next_page(response: httpx.Response) -> httpx.URL | None:
    """Where an answer says that the next page is; None: it is the last.

    Raises:
        ProtocolError: That is no URL of the server that answered.
    """
    location = response.links.get("next", {}).get("url")
    if location is None:
        return None
    target = next_hop(response.url, location)
    if Origin.of(target) != Origin.of(response.url):
        raise ProtocolError(
            "refused a next page on another server",
            url=redact_url(response.url),
            target=redact_url(target),
        )
    return target
