"""What registries put before their blobs, for `Proxy.gates`: tokens that expire, and places
elsewhere that are good for one visit."""

import base64
import itertools
import json
import threading
from urllib.parse import parse_qs, urlsplit

from support.proxy import Exchange, Proxy


class TokenGate:
    """Lets in whoever has a token; each is good for so many requests.

    Attributes:
        refused: Requests that came with a token that had expired.
    """

    def __init__(self, host: str, uses: int) -> None:
        self.refused = 0
        self._host = host
        self._uses = uses
        self._left: dict[str, int] = {}
        self._lock = threading.Lock()

    def answer(self, exchange: Exchange, head: list[str]) -> bytes | None:
        with self._lock:
            if exchange.path.startswith("/token"):
                token = f"token-{len(self._left)}"
                self._left[token] = self._uses
                return _answer(200, json.dumps({"token": token, "expires_in": 3600}).encode())
            sent = _header(head, "authorization").removeprefix("Bearer ")
            if self._left.get(sent, 0) > 0:
                self._left[sent] -= 1
                return None
            self.refused += bool(sent)
        challenge = f'Bearer realm="http://{self._host}/token",service="gate"'
        return _answer(401, b"", f"WWW-Authenticate: {challenge}")


class PasswordGate:
    """Lets in whoever has the password, which may change.

    Attributes:
        seen: What was sent for authorisation, let in or not.
        refused: How many did not have it.
        challenge: What they are asked for.
    """

    def __init__(self, password: str, username: str = "jane") -> None:
        self.password = password
        self.challenge = 'Basic realm="gate"'
        self.seen: set[str] = set()
        self.refused = 0
        self._username = username

    def answer(self, exchange: Exchange, head: list[str]) -> bytes | None:
        sent = _header(head, "authorization")
        self.seen.add(sent)
        pair = f"{self._username}:{self.password}".encode()
        if sent == f"Basic {base64.b64encode(pair).decode()}":
            return None
        self.refused += 1
        # What a registry that means ill could say: all it was sent.
        said = json.dumps({"errors": [{"code": "DENIED", "message": f"not {sent}"}]}).encode()
        body = b"" if exchange.method == "HEAD" else said
        return _answer(401, body, f"WWW-Authenticate: {self.challenge}")


class RedirectGate:
    """Sends every other request for a blob to another host, with a signature in the URL."""

    def __init__(self, target: Proxy) -> None:
        self._target = target
        self._signatures = itertools.count(1)
        self._lock = threading.Lock()

    def answer(self, exchange: Exchange, head: list[str]) -> bytes | None:
        if not exchange.is_blob:
            return None
        with self._lock:
            signature = next(self._signatures)
        if signature % 2:
            return None
        where = f"http://{self._target.host}{exchange.path}?signature={signature}"
        return _answer(307, b"", f"Location: {where}")


class SignatureGate:
    """Lets in each signature once.

    Attributes:
        refused: Requests with one that had been used.
        leaked: Requests that carried a token, which is nobody's but the registry's.
    """

    def __init__(self) -> None:
        self.refused = self.leaked = 0
        self._used: set[str] = set()
        self._lock = threading.Lock()

    def answer(self, exchange: Exchange, head: list[str]) -> bytes | None:
        (signature,) = parse_qs(urlsplit(exchange.path).query)["signature"]
        with self._lock:
            self.leaked += bool(_header(head, "authorization"))
            if signature not in self._used:
                self._used.add(signature)
                return None
            self.refused += 1
        return _answer(403, b"<Error>expired</Error>")


def _header(head: list[str], name: str) -> str:
    for line in head:
        found, _, value = line.partition(":")
        if found.lower() == name:
            return value.strip()
    return ""


def _answer(status: int, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body)}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body
