"""Blobs that a registry does not have, from where the image says that they are.

Licences forbid to push some layers; a descriptor's `urls` then say who gives them out. An image may
name any server there, so that the rules are those for redirects, and stricter in what goes along:

1. The registry is asked first, so that a copy inside a network is used inside it, and an image
   cannot make us visit a server for content that is at hand.
2. https only, unless the registry itself is spoken to without TLS.
3. Private addresses are out of reach unless the registry is at one itself (`addresses`), on every
   hop.
4. No login is ever sent there, no certificate of ours shown, and no challenge answered, not even if
   the server is the registry under another path.

Whose bytes they are the digest says, as for every blob.
"""

import dataclasses
import logging
from typing import Final

import httpx

from imgvol import limits
from imgvol.errors import ImgvolError
from imgvol.oci.descriptor import Descriptor
from imgvol.registry.channel import Channel
from imgvol.registry.failures import failure_of_status
from imgvol.registry.hops import Hops, Request, words_of
from imgvol.registry.redirects import Origin, url_problem

log = logging.getLogger(__name__)

_WHO: Final = "the server that the image names"


def foreign_urls(descriptor: Descriptor, *, registry: Origin) -> tuple[httpx.URL, ...]:
    """Where a blob may be fetched from beside the registry, in the image's order.

    What cannot be used is left out: it is the image's advice, and others of its URLs may do. Of
    what can, no more than limits.FOREIGN_URLS.
    """
    usable: list[httpx.URL] = []
    for text in descriptor.urls:
        problem, url = _read(text, registry)
        if problem:
            log.info("blob %s is not looked for at a URL %s", descriptor.digest, problem)
        elif url is not None:
            usable.append(url)
    return tuple(usable[: limits.FOREIGN_URLS])


def _read(text: str, registry: Origin) -> tuple[str, httpx.URL | None]:
    """What is wrong with a URL, or the URL."""
    if len(text) > limits.LOCATION_LENGTH:
        return "that is too long", None
    try:
        url = httpx.URL(text).copy_with(fragment=None)
    except (httpx.InvalidURL, ValueError):
        return "that is none", None
    if problem := url_problem(url):
        return problem, None
    if url.scheme == "http" and registry.scheme == "https":
        return "without TLS, which the registry has", None
    return "", url


class Stranger:
    """A server that is nobody's registry: asked as a `Session` asks, but by nobody in particular.

    Args:
        hops: The registry's: what it may not lead us to, its images may not, either.
    """

    def __init__(self, hops: Hops) -> None:
        self.hops = hops

    def send(self, channel: Channel, request: Request, _repository: str) -> httpx.Response:
        """One try, without any authorisation. Whatever comes, comes.

        To be called by what `Hops.insist` calls.
        """
        return self.hops.follow(channel, dataclasses.replace(request, who=_WHO))

    def refusal(self, response: httpx.Response, request: Request, _repository: str) -> ImgvolError:
        """The error that an answer means which is not the one we want; the answer is closed."""
        return failure_of_status(
            response,
            what=request.what,
            who=_WHO,
            words=words_of(response, request),
        ).error
