"""What registries answer when they do not take a push, as errors of our own.

The same answers as in `failures` mean something else here: that somebody may read is no promise
that they may write, a cache takes nothing, and what is too large for a proxy is so for good.
"""

import dataclasses
from typing import Any, Final

import httpx

from imgvol.errors import (
    ImgvolError,
    NotFound,
    PushRefused,
    RegistryUnavailable,
    TooManyRequests,
    Unauthorized,
)
from imgvol.registry.failures import failure_of_status
from imgvol.registry.redaction import redact_url
from imgvol.registry.retry import Failure, Kind

# Statuses and codes (distribution specification, "Error Codes") of registries that take nothing.
_READ_ONLY: Final = frozenset((405, 501))
_UNSUPPORTED: Final = frozenset(("UNSUPPORTED", "METHOD_UNKNOWN"))
_TOO_LARGE: Final = frozenset(("TOOBIG", "SIZE_INVALID"))
# Of those that keep what has a tag, or what is being changed by somebody else.
_CONFLICTS: Final = frozenset((409, 412))


def failure_of_push(
    response: httpx.Response,
    *,
    what: str,
    who: str = "the registry",
    words: str = "",
    hint: str = "",
) -> Failure:
    """What an answer to a push means that is not the one we want: a `Judge`.

    Args:
        response: The answer; its body is not touched.
        what: What is pushed: `blob 44136fa355b3 to registry.example.com/team/app`.
        who: Who was asked.
        words: What the registry said in the body: see `registry_words`.
        hint: What to do about a refused login.
    """
    status, code = response.status_code, words.partition(":")[0].partition(";")[0]
    fields: dict[str, Any] = {"status": status, "url": redact_url(response.url)}
    said = f": {words}" if words else ""
    error: ImgvolError
    if status in {401, 403}:
        advice = f"{hint} The login has to be one that may push there." if hint else ""
        error = Unauthorized(f"{who} does not let us push {what}{said}", hint=advice, **fields)
    elif code in _UNSUPPORTED or status in _READ_ONLY:
        error = PushRefused(
            f"{who} takes no pushes: it refuses {what}{said}",
            hint="It is read-only, or a cache: push to where it has its images from.",
            **fields,
        )
    elif status == 413 or code in _TOO_LARGE:
        error = PushRefused(
            f"{what} is larger than {who} takes{said}",
            hint="A proxy in front of the registry may bound the size of requests.",
            **fields,
        )
    elif status in _CONFLICTS:
        error = PushRefused(
            f"{who} keeps what it has instead of {what}{said}",
            hint="Its tags may not be changed: choose another one.",
            **fields,
        )
    elif status in {404, 410}:
        error = NotFound(
            f"{who} has no place for {what}{said}",
            hint="Is the name right? Some registries want a repository to be created first.",
            **fields,
        )
    elif status == 507:
        error = PushRefused(f"{who} has no room for {what}{said}", **fields)
    elif 400 <= status < 500 and status not in {408, 425, 429}:
        advice = "It may not know manifests of this kind." if code == "MANIFEST_INVALID" else ""
        error = PushRefused(f"{who} refuses {what}{said}", hint=advice, **fields)
    else:
        return _trouble(failure_of_status(response, what=what), who, what, said)
    return Failure(error, Kind.PERMANENT)


def _trouble(failure: Failure, who: str, what: str, said: str) -> Failure:
    """What a registry means that is in trouble, or limits our rate: the same for everybody."""
    known = failure.error
    match known:
        case TooManyRequests():
            message = f"{who} limits how often we may push {what}{said}"
        case RegistryUnavailable():
            message = f"{who} fails to take {what}{said}"
        case _:
            message = f"unexpected answer to a push of {what}{said}"
    error = type(known)(message, hint=known.hint, **known.fields)
    return dataclasses.replace(failure, error=error)
