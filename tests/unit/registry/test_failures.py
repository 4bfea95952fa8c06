"""Foreign exceptions and refusals as our errors."""

import socket
import ssl

import httpcore
import httpx
import pytest

from imgvol.errors import (
    DigestMismatch,
    NotFound,
    ProtocolError,
    RegistryUnavailable,
    TooManyRequests,
    Unauthorized,
)
from imgvol.registry.failures import failure_of_status, registry_words, translate
from imgvol.registry.network import CannotConnect, EndedEarly, NotTLS, Stalled
from imgvol.registry.operation import DeadlinePassed
from imgvol.registry.retry import Kind

URL = httpx.URL("https://registry.example.com/v2/?sig=c4n4ry")
NO_NAME = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
TRY_AGAIN = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (CannotConnect(NO_NAME), Kind.CONNECT, "unknown host registry.example.com"),
        (CannotConnect(TRY_AGAIN), Kind.CONNECT, "cannot look up"),
        (CannotConnect(ConnectionRefusedError()), Kind.CONNECT, "refuses the connection"),
        (CannotConnect(Stalled()), Kind.CONNECT, "does not answer"),
        (CannotConnect(OSError(101, "Network is unreachable")), Kind.CONNECT, "unreachable"),
        (CannotConnect(None), Kind.CONNECT, "cannot connect"),
        (Stalled(), Kind.STALL, "stopped answering"),
        (DeadlinePassed(), Kind.PERMANENT, "in time"),
        (EndedEarly(), Kind.TRANSIENT, "ended early"),
        (NotTLS(), Kind.PERMANENT, "plain HTTP"),
        (ConnectionResetError(104, "Connection reset by peer"), Kind.TRANSIENT, "reset by peer"),
        (OSError(), Kind.TRANSIENT, "broke"),
        (ssl.SSLEOFError(8, "EOF"), Kind.TRANSIENT, "during TLS"),
        (ssl.SSLError(1, "[SSL: BAD_RECORD_MAC]"), Kind.TRANSIENT, "TLS"),
        (httpcore.RemoteProtocolError("Server disconnected"), Kind.TRANSIENT, "ended early"),
        (httpcore.RemoteProtocolError("illegal status line"), Kind.TRANSIENT, "not HTTP"),
        (httpcore.ProxyError("407 Login"), Kind.CONNECT, "proxy"),
        (httpcore.WriteError("secret c4n4ry"), Kind.TRANSIENT, "WriteError"),
        (httpx.PoolTimeout("secret c4n4ry"), Kind.TRANSIENT, "PoolTimeout"),
    ],
)
def test_exceptions(error, kind, message):
    failure = translate(error, URL)
    assert failure.kind is kind
    assert message in str(failure.error)
    assert isinstance(failure.error, RegistryUnavailable | ProtocolError)
    assert failure.error.__cause__ is error
    assert "c4n4ry" not in f"{failure.error} {failure.error.hint}"


@pytest.mark.parametrize(
    ("status", "expected", "kind"),
    [
        (400, ProtocolError, Kind.PERMANENT),
        (401, Unauthorized, Kind.PERMANENT),
        (403, Unauthorized, Kind.PERMANENT),
        (404, NotFound, Kind.PERMANENT),
        (408, RegistryUnavailable, Kind.TRANSIENT),
        (410, NotFound, Kind.PERMANENT),
        (416, DigestMismatch, Kind.PERMANENT),
        (429, TooManyRequests, Kind.TRANSIENT),
        (500, RegistryUnavailable, Kind.TRANSIENT),
        (501, RegistryUnavailable, Kind.PERMANENT),
        (599, RegistryUnavailable, Kind.PERMANENT),
        (204, ProtocolError, Kind.PERMANENT),
        (304, ProtocolError, Kind.PERMANENT),
    ],
)
def test_statuses(status, expected, kind):
    response = httpx.Response(status, request=httpx.Request("GET", URL))
    failure = failure_of_status(response, what="manifest x", words="W", hint="H")
    assert type(failure.error) is expected
    assert failure.kind is kind
    assert failure.error.fields["status"] == status
    assert (failure.error.hint == "H") is (expected is Unauthorized)
    assert "c4n4ry" not in str(failure.error)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"errors":[{"code":"DENIED","message":"no"}]}', "DENIED: no"),
        (b'{"errors":[{"code":"A"},{"message":"b"}]}', "A; b"),
        (b'{"errors":[{"code":"A","message":"a","detail":{"x":[1]}}]}', "A: a"),
        (b'{"errors":[' + b'{"code":"A"},' * 9 + b'{"code":"B"}]}', "A; A; A"),
        (b'{"errors":[]}', ""),
        (b'{"errors":{}}', ""),
        (b'{"errors":["x"]}', ""),
        (b'{"errors":[{"code":7}]}', ""),
        (b"<html>", ""),
        (b"", ""),
        (b"\xff", ""),
        (b"[" * 10_000, ""),
    ],
)
def test_words_of_a_registry(body, expected):
    assert registry_words(body) == expected
