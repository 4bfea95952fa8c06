"""Who refers to a manifest: the rules of the distribution specification, "Listing Referrers".

A registry answers with an index whose entries are the artifacts that name the manifest as their
`subject`, in pages; one that has no such API keeps the same index under a tag. Nothing of it is
pinned by anything: whoever may push to the repository can add an entry.
"""

import json

import httpx

from imgvol import limits
from imgvol.errors import InvalidDocument, LimitExceeded, ProtocolError
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.json import JSONValue
from imgvol.oci.manifest import Index, parse_manifest
from imgvol.oci.media_types import OCI_INDEX
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


def with_referrer(known: Index | None, referrer: Descriptor) -> bytes | None:
    """The index under a manifest's tag with one more entry, which comes last; all else stays.

    Args:
        known: What is there; None: nothing.
        referrer: The entry, with its artifact type and its annotations.

    Returns:
        None: it is in there, just so.

    Raises:
        LimitExceeded: There would be too many entries.
    """
    document, entries = _members(known)
    if any(entry == referrer for entry in (known.manifests if known else ())):
        return None
    kept = [each for each in entries if not _names(each, referrer.digest)]
    if len(kept) >= limits.INDEX_MANIFESTS:
        raise LimitExceeded(
            "too much refers to one manifest",
            limit="INDEX_MANIFESTS",
            allowed=limits.INDEX_MANIFESTS,
        )
    document["manifests"] = [*kept, referrer.to_json()]
    return _encode(document)


def without_referrer(known: Index, referrer: Digest) -> bytes | None:
    """The same without an entry; None: it is not in there."""
    document, entries = _members(known)
    kept = [each for each in entries if not _names(each, referrer)]
    if len(kept) == len(entries):
        return None
    document["manifests"] = kept
    return _encode(document)


def _members(known: Index | None) -> tuple[dict[str, JSONValue], list[JSONValue]]:
    """A document to change, and its entries; what we do not know in them stays in them."""
    if known is None:
        return {"schemaVersion": 2, "mediaType": OCI_INDEX}, []
    # It has been parsed strictly: it has one meaning.
    document: dict[str, JSONValue] = json.loads(known.raw)
    entries = document.get("manifests")
    # Docker's type for the same would be refused when it comes back as OCI's.
    document["mediaType"] = OCI_INDEX
    return document, entries if isinstance(entries, list) else []


def _names(entry: JSONValue, digest: Digest) -> bool:
    return isinstance(entry, dict) and entry.get("digest") == str(digest)


def _encode(document: dict[str, JSONValue]) -> bytes:
    raw = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    if len(raw) > limits.MANIFEST_SIZE:
        raise LimitExceeded(
            "too much refers to one manifest",
            limit="MANIFEST_SIZE",
            allowed=limits.MANIFEST_SIZE,
        )
    return raw


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
