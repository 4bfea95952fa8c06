"""Where a redirect may lead, and what may go along.

A registry hands most blobs to an object store or a CDN by redirect, so redirects are followed; but
whoever answers chooses the next address, so the rules are strict:

1. https never becomes http.
2. The target is http or https, with a host and without a user or password.
3. Credentials go to the registry's own origin, that is the same scheme, host and port, and nowhere
   else. (`follow` in `imgvol.registry.session` applies it, hop by hop.)
4. Private addresses are out of reach unless the registry is at one itself: `addresses`.
"""

import re
from typing import Final, NamedTuple

import httpx

from imgvol import limits
from imgvol.errors import ProtocolError
from imgvol.registry.redaction import redact_url

# 300 and 304 to 306 are no redirects that a registry has a use for.
REDIRECT_STATUSES: Final = frozenset((301, 302, 303, 307, 308))
# Those after which the same request is sent (RFC 9110, 15.4); after the others it becomes a GET.
FAITHFUL_REDIRECTS: Final = frozenset((307, 308))
# A name in its wire form, or an address; httpx quotes whatever else it is given.
_HOST: Final = re.compile(r"[A-Za-z0-9._:-]+", re.ASCII)
_PORTS: Final = {"http": 80, "https": 443}


class Origin(NamedTuple):
    """The scheme, host and port that credentials are bound to."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: httpx.URL) -> "Origin":
        """The origin of a URL."""
        return cls(url.scheme, url.host, url.port or _PORTS.get(url.scheme, 0))


def next_hop(current: httpx.URL, location: str | None, *, what: str = "a redirect") -> httpx.URL:
    """The URL that a redirect leads to.

    Args:
        current: The URL that was asked.
        location: The answer's `Location` header.
        what: What it is, for messages: uploads are sent somewhere, too.

    Raises:
        ProtocolError: There is none, it cannot be read, or it leads where we do not go.
    """
    if not location:
        raise _refused(what, "without a target", current)
    if len(location) > limits.LOCATION_LENGTH:
        raise _refused(what, "to a URL that is too long", current)
    try:
        target = current.join(location).copy_with(fragment=None)
    except (httpx.InvalidURL, ValueError) as error:
        raise _refused(what, "to what is not a URL", current) from error
    if problem := url_problem(target):
        raise _refused(what, f"to a URL {problem}", current, target)
    if current.scheme == "https" and target.scheme == "http":
        raise _refused(what, "from https to http", current, target)
    return target


def url_problem(url: httpx.URL) -> str:
    """Why we do not go to a URL that a server named; empty when there is no reason."""
    if url.scheme not in _PORTS:
        return "that is neither http nor https"
    try:
        host = url.raw_host.decode("ascii")
    except UnicodeError:  # in brackets httpx takes what has no ASCII form
        host = ""
    if not _HOST.fullmatch(host):
        return "without a host that could exist"
    if url.port is not None and not 0 < url.port < 1 << 16:
        return "with a port that does not exist"
    if url.userinfo:
        return "with a user or password in it"
    return ""


def _refused(
    what: str, problem: str, current: httpx.URL, target: httpx.URL | None = None
) -> ProtocolError:
    return ProtocolError(
        f"refused {what} {problem}",
        url=redact_url(current),
        target=redact_url(target) if target is not None else None,
    )
