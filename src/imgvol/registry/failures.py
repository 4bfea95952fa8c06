"""What other libraries raise, and what registries answer, as errors of our own: in one place.

Texts are ours wherever possible. httpx and httpcore know the headers of a request; their messages
are quoted only where they are about bytes that came in.
"""

import socket
import ssl
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import httpcore
import httpx

from imgvol import limits
from imgvol.errors import (
    DigestMismatch,
    ImgvolError,
    NotFound,
    ProtocolError,
    RegistryUnavailable,
    RemoteError,
    TooManyRequests,
    Unauthorized,
)
from imgvol.oci.json import Node
from imgvol.registry.network import CannotConnect, EndedEarly, NotTLS, Stalled
from imgvol.registry.operation import DeadlinePassed
from imgvol.registry.redaction import quote_remote, redact_url
from imgvol.registry.retry import RETRIED_STATUSES, Failure, Kind, parse_retry_after

# Everything that sending a request or reading an answer may raise, our own errors aside.
NETWORK_ERRORS: Final = (
    httpx.HTTPError,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.TimeoutException,
    httpcore.UnsupportedProtocol,
    OSError,
    CannotConnect,
    EndedEarly,
    Stalled,
    NotTLS,
    DeadlinePassed,
)
_ERRORS_QUOTED: Final = 3


def translate(error: Exception, url: httpx.URL) -> Failure:
    """What one of NETWORK_ERRORS means.

    Args:
        error: The exception; it becomes the cause of the failure's error.
        url: What was asked for.
    """
    failure = _translate(error, url)
    failure.error.__cause__ = error
    return failure


def _translate(error: Exception, url: httpx.URL) -> Failure:
    shown = redact_url(url)
    match error:
        case DeadlinePassed():
            return _unavailable("the registry does not finish its answer in time", shown)
        case Stalled():
            return _unavailable("the registry has stopped answering", shown, Kind.STALL)
        case NotTLS():
            return Failure(
                ProtocolError(
                    "the server gave a plain HTTP response to an HTTPS client",
                    hint="If this registry really has no TLS, add --plain-http.",
                    url=shown,
                ),
                Kind.PERMANENT,
            )
        case CannotConnect():
            return _translate_connect(error.reason, url.host, shown)
        case ssl.SSLError():
            return _translate_tls(error, url.host, shown)
        case httpcore.ProxyError():
            return _unavailable(
                f"the proxy refuses: {quote_remote(str(error))}", shown, Kind.CONNECT
            )
        case EndedEarly():
            return _unavailable("the connection ended early", shown, Kind.TRANSIENT)
        case httpcore.RemoteProtocolError() if _is_early_end(error):
            return _unavailable("the connection ended early", shown, Kind.TRANSIENT)
        case httpcore.ProtocolError():
            malformed = ProtocolError(
                f"the answer is not HTTP: {quote_remote(str(error))}", url=shown
            )
            return Failure(malformed, Kind.TRANSIENT)
        case OSError():
            reason = (error.strerror or type(error).__name__).lower()
            return _unavailable(f"the connection broke: {reason}", shown, Kind.TRANSIENT)
        case _:
            return _unavailable(
                f"the request failed: {type(error).__name__}", shown, Kind.TRANSIENT
            )


def _unavailable(message: str, url: str, kind: Kind = Kind.PERMANENT, hint: str = "") -> Failure:
    return Failure(RegistryUnavailable(message, hint=hint, url=url), kind)


def _translate_connect(reason: Exception | None, host: str, url: str) -> Failure:
    match reason:
        case socket.gaierror(errno=socket.EAI_AGAIN):
            message = f"cannot look up {host}: the name service does not answer"
            hint = "Check the network connection and /etc/resolv.conf."
        case socket.gaierror():
            message, hint = f"unknown host {host}", "Check the spelling of the registry's name."
        case ConnectionRefusedError():
            message = f"{host} refuses the connection"
            hint = "Is the registry running, and is the port right?"
        case Stalled():
            message, hint = f"{host} does not answer", "Check the network, the port, firewalls."
        case OSError(strerror=str(text)):
            message, hint = f"cannot connect to {host}: {text.lower()}", "Check the network."
        case _:
            message, hint = f"cannot connect to {host}", "Check the network."
    return _unavailable(message, url, Kind.CONNECT, hint)


def _translate_tls(error: ssl.SSLError, host: str, url: str) -> Failure:
    reason = (getattr(error, "reason", None) or "unknown").lower().replace("_", " ")
    if isinstance(error, ssl.SSLCertVerificationError):
        untrusted = RemoteError(
            f"the certificate of {host} is not trusted: {quote_remote(error.verify_message)}",
            hint="Name the certificate of its issuer with --ca-file or in the configuration of "
            "registries, or add it to the system's.",
            url=url,
        )
        return Failure(untrusted, Kind.PERMANENT)
    if isinstance(error, ssl.SSLEOFError):
        return _unavailable("the connection ended during TLS", url, Kind.TRANSIENT)
    if "certificate required" in reason or "handshake failure" in reason:
        hint = "The registry may want a client certificate."
        return Failure(
            RemoteError(f"TLS with {host} fails: {reason}", hint=hint, url=url), Kind.PERMANENT
        )
    return _unavailable(f"TLS with {host} fails: {reason}", url, Kind.TRANSIENT)


def _is_early_end(error: Exception) -> bool:
    text = str(error)
    return "disconnected" in text or "closed connection" in text


# --- answers --------------------------------------------------------------------------------------


class Judge(Protocol):
    """Says what an answer means that is not the one we want: see `failure_of_status`."""

    def __call__(
        self,
        response: httpx.Response,
        *,
        what: str,
        who: str = ...,
        words: str = ...,
        hint: str = ...,
    ) -> Failure:
        """What it means; its body is not touched."""
        ...


def failure_of_status(
    response: httpx.Response,
    *,
    what: str,
    who: str = "the registry",
    words: str = "",
    hint: str = "",
) -> Failure:
    """What an answer that is not the one we want means.

    Args:
        response: The answer; its body is not touched.
        what: What was asked for: `manifest docker.io/library/alpine:3`.
        who: Who was asked.
        words: What the registry said in the body: see `registry_words`.
        hint: What to do about a refused login.
    """
    status = response.status_code
    said = f": {words}" if words else ""
    fields: dict[str, Any] = {"status": status, "url": redact_url(response.url)}
    kind = Kind.TRANSIENT if status in RETRIED_STATUSES else Kind.PERMANENT
    retry_after = parse_retry_after(response.headers.get("retry-after"), now=datetime.now(UTC))
    error: ImgvolError
    if status in {401, 403}:
        error = Unauthorized(f"{who} refuses access to {what}{said}", hint=hint, **fields)
    elif status in {404, 410}:
        error = NotFound(f"{who} has no {what}{said}", **fields)
    elif status == 416:
        error = DigestMismatch(f"{what} is shorter than its descriptor says", **fields)
    elif status == 429:
        error = TooManyRequests(
            f"{who} limits how often we may ask for {what}{said}",
            hint="Wait, or log in: registries let known users ask more often.",
            retry_after=retry_after,
            **fields,
        )
    elif status >= 500 or kind is Kind.TRANSIENT:
        error = RegistryUnavailable(
            f"{who} fails to deliver {what}{said}", retry_after=retry_after, **fields
        )
    else:
        error = ProtocolError(f"unexpected answer to a request for {what}{said}", **fields)
    return Failure(error, kind, retry_after)


def registry_words(body: bytes) -> str:
    """What an error body `{"errors": [{"code", "message"}]}` says, in one line; else nothing."""
    try:
        document = Node.parse(body, what="error", max_size=limits.ERROR_BODY_SIZE)
        return "; ".join(map(_error_words, document.get_array("errors")[:_ERRORS_QUOTED]))
    except ImgvolError:
        return ""


def _error_words(error: Node) -> str:
    code, message = error.get_string("code"), error.get_string("message")
    return f"{code}: {message}" if code and message else code or message
