"""containerd's `hosts.toml`: the mirrors of one registry, in order, and the registry's own server.

As containerd reads it, but for one thing: a file that is wrong is an error, and not passed over.
The file lies in a directory of its own; names of files in it are relative to that directory. A
directory without one may hold certificates as Docker keeps them: `*.crt`, `*.cert` with `*.key`.
"""

import os
import posixpath
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx

from imgvol import limits
from imgvol.registry.config_files import BadKey
from imgvol.registry.hosts import Capability, TLSFiles
from imgvol.registry.redaction import Secret, quote_remote
from imgvol.registry.redirects import url_problem

FILE_NAME: Final = "hosts.toml"
# Pushing is nothing that we do.
_CAPABILITIES: Final = {
    "pull": Capability.PULL,
    "resolve": Capability.RESOLVE,
    "referrers": Capability.REFERRERS,
    "push": Capability(0),
}
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_VALUE: Final = re.compile(r"[\t\x20-\x7e]*", re.ASCII)
# They say how a message is framed, or which part is wanted: that is ours to say.
_OUR_HEADERS: Final = frozenset(
    (
        "accept-encoding",
        "connection",
        "content-length",
        "expect",
        "host",
        "proxy-authorization",
        "range",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
_DURATION: Final = re.compile(r"(?:\d{1,9}(?:\.\d{0,9})?(?:ns|us|µs|ms|s|m|h))+", re.ASCII)
_PART: Final = re.compile(r"([\d.]+)([a-zµ]+)")
_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class HostEntry:
    """What the file says of one server; `base` is None for the registry's usual one."""

    base: httpx.URL | None
    capabilities: Capability
    tls: TLSFiles
    headers: tuple[tuple[str, Secret], ...]
    dial_timeout: float | None


def parse_hosts_file(directory: Path, data: bytes) -> tuple[HostEntry, ...]:
    """The servers in the order to try them; the last is the one for the registry itself.

    An empty file is as good as none, as it is for containerd.

    Raises:
        BadKey: It is not TOML, or a value cannot be used.
    """
    if not data:
        return ()
    try:
        document = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        # tomllib quotes a character at most.
        where = str(error) if isinstance(error, tomllib.TOMLDecodeError) else ""
        raise BadKey(f"not TOML{': ' if where else ''}{quote_remote(where)}") from error
    hosts = document.get("host", {})
    if not isinstance(hosts, dict):
        raise BadKey("not a table of hosts", "host")
    if len(hosts) >= limits.ENDPOINTS:
        raise BadKey(f"more than {limits.ENDPOINTS - 1} hosts", "host")
    entries = [_mirror(directory, url, table) for url, table in hosts.items()]
    return (*entries, _parse_entry(directory, document, "", document.get("server", ""), "server"))


def certificates_in(directory: Path) -> TLSFiles:
    """Certificates in a directory as Docker keeps them.

    Raises:
        BadKey: A certificate for a client has no key, or there are too many.
        OSError: The directory cannot be read.
    """
    names = sorted(os.listdir(directory))
    certificates = [name for name in names if name.endswith((".crt", ".cert"))]
    if len(certificates) > limits.HOST_CERTIFICATES:
        raise BadKey(f"more than {limits.HOST_CERTIFICATES} certificates")
    clients = []
    for name in certificates:
        if name.endswith(".cert"):
            key = f"{name.removesuffix('.cert')}.key"
            if key not in names:
                raise BadKey(f"there is no key to it: {key} is missing", name)
            clients.append((directory / name, directory / key))
    authorities = tuple(directory / name for name in certificates if name.endswith(".crt"))
    return TLSFiles(authorities=authorities, clients=tuple(clients))


def _mirror(directory: Path, url: str, table: object) -> HostEntry:
    path = f'host."{quote_remote(url)}"'
    if not isinstance(table, dict):
        raise BadKey("not a table", path)
    if not url:
        raise BadKey("a host without a URL", path)
    return _parse_entry(directory, table, f"{path}.", url, path)


def _parse_entry(
    directory: Path, table: Mapping[str, Any], prefix: str, url: object, url_key: str
) -> HostEntry:
    return HostEntry(
        base=_base(url, url_key, is_whole=_switch(table, prefix, "override_path")),
        capabilities=_capabilities(table, prefix),
        tls=TLSFiles(
            insecure=_switch(table, prefix, "skip_verify"),
            authorities=tuple(_files(directory, table.get("ca", []), f"{prefix}ca")),
            clients=tuple(_clients(directory, table.get("client", []), f"{prefix}client")),
        ),
        headers=tuple(_headers(table.get("header", {}), f"{prefix}header")),
        dial_timeout=_duration(table.get("dial_timeout", ""), f"{prefix}dial_timeout"),
    )


def _base(text: object, key: str, *, is_whole: bool) -> httpx.URL | None:
    if not isinstance(text, str):
        raise BadKey("not a text", key)
    if not text:
        return None
    url = read_url(text if "://" in text else f"https://{text}", key)
    path = posixpath.normpath(url.path).lstrip("/") if url.path else ""
    path = f"/{path}" if path and path != "." else ""
    if not is_whole and not path.endswith("/v2"):
        path += "/v2"
    return url.copy_with(path=path or "/")


def read_url(text: str, key: str) -> httpx.URL:
    """The URL of a server.

    Raises:
        BadKey: It is none that we can ask.
    """
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError) as error:
        raise BadKey("not a URL", key) from error
    if problem := url_problem(url):
        raise BadKey(f"a URL {problem}", key)
    if url.query or url.fragment:
        raise BadKey("a URL with a query", key)
    return url


def _capabilities(table: Mapping[str, Any], prefix: str) -> Capability:
    key = f"{prefix}capabilities"
    names = table.get("capabilities", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadKey("not a list of texts", key)
    if unknown := [name for name in names if name.lower() not in _CAPABILITIES]:
        known = ", ".join(_CAPABILITIES)
        raise BadKey(f"{quote_remote(unknown[0])} is none of {known}", key)
    if not names:
        return Capability.ALL
    granted = Capability(0)
    for name in names:
        granted |= _CAPABILITIES[name.lower()]
    return granted


def _files(directory: Path, value: object, key: str) -> Iterator[Path]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or len(names) > limits.HOST_CERTIFICATES:
        raise BadKey("neither a file nor a short list of files", key)
    for name in names:
        yield _file(directory, name, key)


def _clients(directory: Path, value: object, key: str) -> Iterator[tuple[Path, Path | None]]:
    entries = [value] if isinstance(value, str) else value
    if not isinstance(entries, list) or len(entries) > limits.HOST_CERTIFICATES:
        raise BadKey("neither a file nor a short list of files or pairs", key)
    file = partial(_file, directory, key=key)
    for entry in entries:
        match entry:
            case str():
                yield file(entry), None
            case [certificate, ""]:
                yield file(certificate), None
            case [certificate, private]:
                yield file(certificate), file(private)
            case _:
                raise BadKey("neither a file nor a pair of certificate and key", key)


def _file(directory: Path, name: object, key: str) -> Path:
    if not isinstance(name, str) or not name or "\0" in name:
        raise BadKey("not the name of a file", key)
    return directory / name


def _headers(value: object, key: str) -> Iterator[tuple[str, Secret]]:
    if not isinstance(value, dict):
        raise BadKey("not a table", key)
    if len(value) > limits.HOST_HEADERS:
        raise BadKey(f"more than {limits.HOST_HEADERS} headers", key)
    for name, given in value.items():
        where = f"{key}.{quote_remote(name)}"
        if not _TOKEN.fullmatch(name):
            raise BadKey("not the name of a header", where)
        if name.lower() in _OUR_HEADERS:
            raise BadKey("a header that cannot be set", where)
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or len(texts) > limits.HOST_HEADERS:
            raise BadKey("neither a text nor a short list of texts", where)
        for text in texts:
            if not isinstance(text, str) or len(text) > limits.HOST_HEADER_LENGTH:
                raise BadKey("not a text that can stand in a header", where)
            if not _VALUE.fullmatch(text):
                raise BadKey("characters that cannot stand in a header", where)
            yield name, Secret(text)


def _switch(table: Mapping[str, Any], prefix: str, name: str) -> bool:
    value = table.get(name, False)
    if not isinstance(value, bool):
        raise BadKey("neither true nor false", f"{prefix}{name}")
    return value


def _duration(text: object, key: str) -> float | None:
    """Seconds of a duration as Go writes it: `3s`, `1m30s`, `500ms`."""
    if text == "":
        return None
    if not isinstance(text, str) or not _DURATION.fullmatch(text):
        raise BadKey("not a duration such as 3s or 500ms", key)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    if not 0 < seconds <= limits.DIAL_TIMEOUT:
        raise BadKey(f"not between 0 and {limits.DIAL_TIMEOUT:g} seconds", key)
    return seconds
