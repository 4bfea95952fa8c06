"""A registry that takes pushes, as well or as badly as a test wants it, over real sockets.

    with UploadServer() as server:
        server.cuts.append(Cut("PATCH", 500_000))
        ...
        assert server.blobs[digest] == data

What went wrong on purpose notes its name in `fired`.
"""

import dataclasses
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs, urlsplit

INDEX = "application/vnd.oci.image.index.v1+json"


@dataclass(frozen=True)
class Seen:
    """A request, and what it was answered; 0: nothing."""

    method: str
    target: str
    headers: dict[str, str]
    size: int
    status: int

    @property
    def path(self) -> str:
        return urlsplit(self.target).path


@dataclass(frozen=True)
class Cut:
    """The next request of a method is read up to so many bytes of its body, and then reset.

    `skip` requests of the method are done before that.
    """

    method: str
    after: int
    skip: int = 0


@dataclass(frozen=True)
class Refusal:
    """After `skip` of them, the next `times` requests of a method get this answer.

    Those whose paths match `path`.
    """

    method: str
    status: int
    code: str = ""
    message: str = ""
    path: str = ""
    times: int = 10**6
    skip: int = 0
    headers: tuple[tuple[str, str], ...] = ()


class UploadServer:
    """See above.

    Attributes:
        cuts: Connections to be reset.
        lost_answers: Methods whose next request is done, and its answer lost.
        refusals: What is answered instead.
        keeps_at_most: Bytes of a piece; what is more is dropped, and nothing said.
        keeps_parts: Whether what came before a reset is kept, as the specification has it.
        forgets: Whether an upload that was reset is unknown, as docker-registry does it.
        largest_body: More is answered with 413.
        smallest_piece: Told as OCI-Chunk-Min-Length.
        place: Before the path of an upload's Location; empty for a relative one.
        tells_range: Whether answers have a Range.
        authorization: What every request has to carry; its answer is `challenge` otherwise.
        mountable: Digests that other repositories have.
        lists_referrers: Whether there is the API, and OCI-Subject.
        before_manifest: Called with the name before a manifest is stored.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.cuts: list[Cut] = []
        self.lost_answers: list[str] = []
        self.refusals: list[Refusal] = []
        self.keeps_at_most = 1 << 40
        self.keeps_parts = True
        self.forgets = False
        self.largest_body = 1 << 40
        self.smallest_piece = 0
        self.place = ""
        self.tells_range = True
        self.authorization = ""
        self.challenge = 'Basic realm="test"'
        self.mountable: dict[str, bytes] = {}
        self.lists_referrers = False
        self.before_manifest: Callable[[str], None] = lambda _: None
        self.uploads: dict[str, bytearray] = {}
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.seen: list[Seen] = []
        self.fired: list[str] = []
        self.lock = threading.Lock()
        outer = self

        class Handler(_Handler):
            server_of_test = outer

        self._http = ThreadingHTTPServer((host, 0), Handler)
        self._http.daemon_threads = True
        self.domain = f"{host}:{self._http.server_port}"
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.02}
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(5)

    def methods(self, path: str = "") -> list[str]:
        """The methods of what was asked of paths that have this in them."""
        return [seen.method for seen in self.seen if path in seen.path]

    def put(self, name: str, raw: bytes, media_type: str) -> str:
        """Stores a manifest under a name and its digest."""
        digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        self.manifests[name] = self.manifests[digest] = (media_type, raw)
        return digest


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of_test: UploadServer

    def __getattr__(self, name: str):
        # Whatever the method, that is what the standard library's class looks for.
        if name.startswith("do_"):
            return self._reply
        raise AttributeError(name)

    def log_message(self, *_: object) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(10)

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True

    def _reply(self) -> None:
        self._answer(self.server_of_test)

    def _note(self, status: int) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        size = int(headers.get("content-length", 0))
        self.server_of_test.seen.append(Seen(self.command, self.path, headers, size, status))

    def _answer(self, server: UploadServer) -> None:
        path = urlsplit(self.path).path
        length = int(self.headers.get("content-length", 0))
        for position, refusal in enumerate(server.refusals):
            if refusal.method == self.command and re.search(refusal.path, path):
                if refusal.skip:
                    server.refusals[position] = dataclasses.replace(refusal, skip=refusal.skip - 1)
                    continue
                server.fired.append(f"{refusal.status}")
                if refusal.times == 1:
                    del server.refusals[position]
                else:
                    left = dataclasses.replace(refusal, times=refusal.times - 1)
                    server.refusals[position] = left
                return self._refuse(refusal)
        if server.authorization and self.headers.get("authorization") != server.authorization:
            return self._send(401, {"WWW-Authenticate": server.challenge})
        if length > server.largest_body:
            server.fired.append("413")
            return self._refuse(Refusal(self.command, 413))
        cut = next((cut for cut in server.cuts if cut.method == self.command and length), None)
        if cut is not None:
            server.cuts.remove(cut)
            if not cut.skip:
                return self._cut(server, cut)
            server.cuts.insert(0, Cut(cut.method, cut.after, cut.skip - 1))
        body = self.rfile.read(length)
        status, headers, data = self._do(server, path, body)
        if self.command in server.lost_answers:
            server.lost_answers.remove(self.command)
            server.fired.append("lost answer")
            return self._reset()
        return self._send(status, headers, data)

    def _cut(self, server: UploadServer, cut: Cut) -> None:
        upload = urlsplit(self.path).path.rpartition("/")[2]
        part = self.rfile.read(cut.after)
        if server.forgets:
            server.uploads.pop(upload, None)
        elif server.keeps_parts and self.command == "PATCH":
            server.uploads[upload] += part
        server.fired.append("reset")
        self._reset()

    def _reset(self) -> None:
        self._note(0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()
        raise ConnectionResetError

    def _refuse(self, refusal: Refusal) -> None:
        errors = [{"code": refusal.code, "message": refusal.message}] if refusal.code else []
        self.close_connection = True
        self._send(refusal.status, dict(refusal.headers), json.dumps({"errors": errors}).encode())

    def _send(self, status: int, headers: dict[str, str], data: bytes = b"") -> None:
        self._note(status)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers and status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # --- what a registry does ---------------------------------------------------------------------

    def _do(
        self, server: UploadServer, path: str, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        repository, _, rest = path.removeprefix("/v2/").rpartition("/blobs/")
        with server.lock:
            if repository and rest.startswith("uploads/"):
                return self._upload(server, repository, rest.removeprefix("uploads/"), body)
            if repository:
                return self._blob(server, rest)
            repository, _, name = path.removeprefix("/v2/").rpartition("/manifests/")
            if repository:
                return self._manifest(server, name, body)
            return self._referrers(server, path.rpartition("/referrers/")[2])

    def _blob(self, server, digest):
        if digest not in server.blobs:
            return 404, {}, b""
        return 200, {"Content-Length": str(len(server.blobs[digest]))}, server.blobs[digest]

    def _upload(self, server, repository, upload, body):
        query = parse_qs(urlsplit(self.path).query)
        if self.command == "POST":
            mount = query.get("mount", [""])[0]
            if mount in server.mountable:
                server.blobs[mount] = server.mountable[mount]
                return 201, {"Location": f"/v2/{repository}/blobs/{mount}"}, b""
            upload = str(len(server.uploads) + 1)
            server.uploads[upload] = bytearray()
            return 202, self._place(server, repository, upload), b""
        if upload not in server.uploads:
            error = {"errors": [{"code": "BLOB_UPLOAD_UNKNOWN", "message": "unknown upload"}]}
            return 404, {}, json.dumps(error).encode()
        data = server.uploads[upload]
        if self.command == "GET":
            return 204, self._place(server, repository, upload), b""
        content_range = self.headers.get("content-range")
        if self.command == "PATCH":
            if content_range != f"{len(data)}-{len(data) + len(body) - 1}":
                return 416, self._place(server, repository, upload), b""
            data += body[: server.keeps_at_most]
            return 202, self._place(server, repository, upload), b""
        data += body
        digest = query["digest"][0]
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
            error = {"errors": [{"code": "DIGEST_INVALID", "message": "not what it should be"}]}
            return 400, {}, json.dumps(error).encode()
        server.blobs[digest] = bytes(data)
        del server.uploads[upload]
        return 201, {"Docker-Content-Digest": digest}, b""

    def _place(self, server, repository, upload):
        size = len(server.uploads[upload])
        headers = {"Location": f"{server.place}/v2/{repository}/blobs/uploads/{upload}?_state=a%3D"}
        if server.tells_range:
            headers["Range"] = f"0-{max(0, size - 1)}"
        if server.smallest_piece:
            headers["OCI-Chunk-Min-Length"] = str(server.smallest_piece)
        return headers

    def _manifest(self, server, name, body):
        if self.command == "PUT":
            server.before_manifest(name)
            digest = server.put(name, body, self.headers["content-type"])
            headers = {"Docker-Content-Digest": digest}
            subject = json.loads(body).get("subject")
            if server.lists_referrers and subject:
                headers["OCI-Subject"] = subject["digest"]
            return 201, headers, b""
        if name not in server.manifests:
            return 404, {}, b""
        if self.command == "DELETE":
            del server.manifests[name]
            return 202, {}, b""
        media_type, raw = server.manifests[name]
        digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        return 200, {"Content-Type": media_type, "Docker-Content-Digest": digest}, raw

    def _referrers(self, server, subject):
        if not server.lists_referrers:
            return 404, {}, b""
        found = []
        for name, (media_type, raw) in server.manifests.items():
            if json.loads(raw).get("subject", {}).get("digest") == subject and ":" in name:
                found.append({"mediaType": media_type, "digest": name, "size": len(raw)})
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": found}
        return 200, {"Content-Type": INDEX}, json.dumps(index).encode()
