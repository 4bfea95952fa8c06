"""A real distribution registry on a free port of the loopback address.

`python -m support.registry DIR` runs one until its standard input ends; it prints the address, and
at the end how many bytes of blobs it has sent.
"""

import contextlib
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, Request, build_opener

from support.programs import free_port, stop, wait_until

USERNAME = "tester"
PASSWORD = "correct horse"

# The registry reads bcrypt only, which the standard library does not write.
HTPASSWD = "tester:$2y$05$abcdefghijklmnopqrstuuHNbAKRhpaujgo33bRWs.NLUTJO3lOy2\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    host: str
    root: Path
    log: Path
    process: subprocess.Popen

    def reference(self, name: str) -> str:
        return f"{self.host}/{name}"

    def blob_path(self, digest: str) -> Path:
        """Where the registry keeps a blob: for tests that damage it."""
        encoded = digest.partition(":")[2]
        return self.root / "docker/registry/v2/blobs/sha256" / encoded[:2] / encoded / "data"

    def put_blob(self, repository: str, data: bytes) -> None:
        """Uploads a blob."""
        begun = self._send("POST", f"http://{self.host}/v2/{repository}/blobs/uploads/", b"")
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        location = begun.headers["Location"]
        self._send("PUT", f"{location}{'&' if '?' in location else '?'}digest={digest}", data)

    def put_manifest(self, repository: str, name: str, data: bytes, media_type: str) -> None:
        """Uploads a manifest or an index, under a tag or its digest."""
        url = f"http://{self.host}/v2/{repository}/manifests/{name}"
        self._send("PUT", url, data, media_type)

    def put(self, name: str, manifests: Mapping[str, bytes], blobs: Iterable[bytes]) -> None:
        """Stores blobs, then manifests by tag, as they are: for what skopeo does not copy."""
        for blob in blobs:
            self.put_blob(name, blob)
        for tag, manifest in manifests.items():
            self.put_manifest(name, tag, manifest, json.loads(manifest)["mediaType"])

    def _send(self, method: str, url: str, data: bytes, kind: str = "application/octet-stream"):
        request = Request(url, data, {"Content-Type": kind}, method=method)
        with build_opener(ProxyHandler({})).open(request, timeout=20) as answer:
            return answer

    def requests(self) -> list[str]:
        """The access log: one `METHOD path status bytes` per answered request."""
        return list(self._answers())

    def blob_bytes_sent(self) -> int:
        """What readers have fetched, manifests not counted."""
        requests = (line.split() for line in self.requests())
        return sum(
            int(sent) for method, path, _, sent in requests if method == "GET" and "/blobs/" in path
        )

    def _answers(self) -> Iterator[str]:
        for line in self.log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                if entry["msg"] in ("response completed", "response completed with error"):
                    method, path = entry["http.request.method"], entry["http.request.uri"]
                    status, sent = entry["http.response.status"], entry["http.response.written"]
                    yield f"{method} {path} {status} {sent}"


@contextlib.contextmanager
def running_registry(
    directory: Path,
    *,
    with_password: bool = False,
    certificate: tuple[Path, Path] | None = None,
    settings: Mapping[str, Mapping] | None = None,
) -> Iterator[Registry]:
    """Starts `docker-registry serve` with its data and log in `directory`, waits until it answers,
    stops it.

    Args:
        directory: An existing directory, its own.
        with_password: Ask for Basic credentials USERNAME and PASSWORD.
        certificate: Files of a certificate chain and its key, to speak TLS.
        settings: More sections of its configuration, or members of them.
    """
    for _ in range(5):  # another program may take the port between our asking and the registry's
        port = free_port()
        process = _start(directory, port, with_password, certificate, settings or {})
        try:
            if _answers(process, f"http{'s' if certificate else ''}://127.0.0.1:{port}/v2/"):
                root, log = directory / "data", directory / "log"
                yield Registry(host=f"127.0.0.1:{port}", root=root, log=log, process=process)
                return
        finally:
            stop(process)
    raise AssertionError(f"docker-registry does not start:\n{(directory / 'log').read_text()}")


def _start(directory, port, with_password, certificate, settings):
    config = {
        "version": "0.1",
        "log": {"level": "info", "formatter": "json", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(directory / "data")},
            "delete": {"enabled": True},
        },
        # Layers that are not here, but where their `urls` say.
        "validation": {"manifests": {"urls": {"allow": ["^https?://"]}}},
        "http": {"addr": f"127.0.0.1:{port}", "secret": "one registry only"},
    }
    if certificate:
        config["http"]["tls"] = {"certificate": str(certificate[0]), "key": str(certificate[1])}
    if with_password:
        (directory / "htpasswd").write_text(HTPASSWD)
        config["auth"] = {"htpasswd": {"realm": "tests", "path": str(directory / "htpasswd")}}
    for section, members in settings.items():
        config[section] = {**config.get(section, {}), **members}
    # JSON is YAML.
    (directory / "config.yml").write_text(json.dumps(config))
    with (directory / "log").open("ab") as log:
        command = ["docker-registry", "serve", str(directory / "config.yml")]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _answers(process, url):
    opener = build_opener(ProxyHandler({}))

    def has_settled():
        if process.poll() is not None:
            return True
        try:
            opener.open(url, timeout=2).close()
        except URLError as error:
            # An HTTP status (401) or a refused certificate is an answer too; a refused connection
            # is not.
            return not isinstance(getattr(error, "reason", None), ConnectionError)
        return True

    wait_until(has_settled, what="docker-registry to answer")
    return process.poll() is None


def main() -> None:
    with running_registry(Path(sys.argv[1])) as registry:
        print(registry.host, flush=True)
        sys.stdin.read()
        print(registry.blob_bytes_sent(), flush=True)


if __name__ == "__main__":
    main()
