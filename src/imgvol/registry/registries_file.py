"""`registries.yaml` of k3s and RKE2: mirrors with rewritten names, and logins and TLS for servers.

    mirrors:
      docker.io:
        endpoint: ["https://mirror.example.com"]
        rewrite: {"^library/(.*)": "hub/$1"}
    configs:
      mirror.example.com:
        auth: {username: ..., password: ...}
        tls: {ca_file: ...}

Whatever is looked up is looked up by name, `*` meaning everybody: the first name that is there
counts, whatever it says. All scalars are taken as text: `password: 0123` is what it looks like.
"""

import base64
import binascii
import logging
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import yaml

from imgvol import limits
from imgvol.registry.config_files import BadKey
from imgvol.registry.credentials import HUB_NAMES, Credential
from imgvol.registry.hosts import TLSFiles, default_scheme
from imgvol.registry.hosts_file import read_url
from imgvol.registry.redaction import Secret, quote_remote
from imgvol.registry.rewrites import Rewrite

log = logging.getLogger(__name__)

ANYBODY: Final = "*"
_TRUE: Final = frozenset(("true", "yes", "on"))
_FALSE: Final = frozenset(("", "false", "no", "off", "null", "~"))
_EMPTY: Final = ("", "null", "~")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirrors:
    """What a file says of one registry.

    Attributes:
        bases: The mirrors' URLs, in order.
        rewrites: What they call repositories.
        is_named: Whether the registry is named, and not just everybody.
    """

    bases: tuple[httpx.URL, ...]
    rewrites: tuple[Rewrite, ...]
    is_named: bool


class RegistriesFile:
    """A file as it was read. Entries are looked at when they are needed.

    So an entry that is wrong is in the way of those only that need it.
    """

    def __init__(self, mirrors: Mapping[str, Any], configs: Mapping[str, Any]) -> None:
        self._mirrors = mirrors
        self._configs = configs

    @classmethod
    def parse(cls, data: bytes) -> "RegistriesFile":
        """Read a file.

        Raises:
            BadKey: It is not YAML, or not of this form.
        """
        document = _mapping(_load(data), "")
        return cls(
            _mapping(document.get("mirrors", ""), "mirrors"),
            _mapping(document.get("configs", ""), "configs"),
        )

    def mirrors_of(self, domain: str) -> Mirrors | None:
        """The mirrors of a registry; None when the file says nothing of it.

        A mirror or a rule that cannot be used is left out, with a warning, as k3s does it.

        Raises:
            BadKey: The entry is not of the form that it should have.
        """
        name = next((name for name in lookup_names(domain) if name in self._mirrors), None)
        if name is None:
            return None
        key = f'mirrors."{name}"'
        entry = _mapping(self._mirrors[name], key)
        endpoints = _list(entry.get("endpoint", ""), f"{key}.endpoint")
        if len(endpoints) >= limits.ENDPOINTS:
            raise BadKey(f"more than {limits.ENDPOINTS - 1} endpoints", f"{key}.endpoint")
        rules = _mapping(entry.get("rewrite", ""), f"{key}.rewrite")
        if len(rules) > limits.REWRITE_RULES:
            raise BadKey(f"more than {limits.REWRITE_RULES} rules", f"{key}.rewrite")
        return Mirrors(
            bases=tuple(_bases(endpoints, f"{key}.endpoint")),
            rewrites=tuple(_rules(rules, f"{key}.rewrite")),
            is_named=name != ANYBODY,
        )

    def login_for(self, server: str) -> Credential | None:
        """The login that is configured for a server.

        Raises:
            BadKey: The entry is not of the form that it should have.
        """
        key, config = self._config(server)
        auth = _mapping(config.get("auth", ""), f"{key}.auth")
        texts = {
            name: _text(auth.get(name, ""), f"{key}.auth.{name}")
            for name in ("username", "password", "identity_token", "auth")
        }
        # In containerd's order.
        if texts["username"]:
            found = Credential(username=texts["username"], password=Secret(texts["password"]))
        elif texts["identity_token"]:
            found = Credential(identity_token=Secret(texts["identity_token"]))
        else:
            found = _decode(texts["auth"], f"{key}.auth.auth")
        return found if found.is_usable else None

    def tls_for(self, server: str, directory: Path) -> TLSFiles:
        """How a server is trusted; names of files are relative to `directory`.

        Raises:
            BadKey: The entry is not of the form that it should have.
        """
        key, config = self._config(server)
        tls = _mapping(config.get("tls", ""), f"{key}.tls")
        ca, certificate, private = (
            _text(tls.get(name, ""), f"{key}.tls.{name}")
            for name in ("ca_file", "cert_file", "key_file")
        )
        if bool(certificate) != bool(private):
            raise BadKey("cert_file and key_file go together", f"{key}.tls")
        if "\0" in ca + certificate + private:
            raise BadKey("not the name of a file", f"{key}.tls")
        insecure = _text(tls.get("insecure_skip_verify", ""), f"{key}.tls.insecure_skip_verify")
        if insecure.lower() not in _TRUE | _FALSE:
            raise BadKey("neither true nor false", f"{key}.tls.insecure_skip_verify")
        return TLSFiles(
            insecure=insecure.lower() in _TRUE,
            authorities=(directory / ca,) if ca else (),
            clients=((directory / certificate, directory / private),) if certificate else (),
        )

    def _config(self, server: str) -> tuple[str, Mapping[str, Any]]:
        for name in lookup_names(server):
            if name in self._configs:
                key = f'configs."{name}"'
                return key, _mapping(self._configs[name], key)
        return "configs", {}


def lookup_names(server: str) -> tuple[str, ...]:
    """The names under which a registry or a server may stand, the first one that is there counts.

    >>> lookup_names("registry.example.com")
    ('registry.example.com', 'registry.example.com:443', 'registry.example.com:80', '*')
    """
    names = [server]
    if server in HUB_NAMES:
        names += [name for name in HUB_NAMES if name != server]
    has_port = server.rpartition("]")[2].count(":") > 0
    if not has_port:
        names += [f"{server}:443", f"{server}:80"]
    return (*names, ANYBODY)


def _bases(endpoints: list[Any], key: str) -> Iterator[httpx.URL]:
    for position, endpoint in enumerate(endpoints):
        where = f"{key}[{position}]"
        try:
            yield _base(_text(endpoint, where), where)
        except BadKey as error:
            log.warning("%s is left out: %s", where, error.problem)


def _base(text: str, key: str) -> httpx.URL:
    server = text.partition("/")[0]
    if "://" not in text:
        if not server:
            raise BadKey("a URL without a host", key)
        text = f"{default_scheme(server)}://{text}"
    url = read_url(text, key)
    path = posixpath.normpath(f"/{url.path.strip('/')}")
    # What begins with /v2 is a place inside a registry's API, as registries with projects have.
    if not path.endswith("/v2") and not path.startswith("/v2/"):
        path = f"{path.rstrip('/')}/v2"
    return url.copy_with(path=path)


def _rules(rules: Mapping[str, Any], key: str) -> Iterator[Rewrite]:
    for pattern, replacement in rules.items():
        where = f'{key}."{quote_remote(pattern)}"'
        try:
            yield Rewrite.compile(pattern, _text(replacement, where))
        except ValueError as error:
            log.warning("%s is left out: %s", where, error)


def _decode(text: str, key: str) -> Credential:
    if not text:
        return Credential()
    try:
        username, colon, password = base64.b64decode(text, validate=True).decode().partition(":")
    except (binascii.Error, ValueError) as error:
        raise BadKey("not a login in base64", key) from error
    if not colon:
        raise BadKey("not a login in base64", key)
    return Credential(username=username, password=Secret(password.strip("\0")))


# --- YAML -----------------------------------------------------------------------------------------

# libyaml's; scalars become text, and nothing else is ever made.
_BASE: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


class _Loader(_BASE):  # type: ignore[misc] # chosen at run time
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        if len(mapping) < len(node.value):
            raise BadKey(f"the same key twice, from line {node.start_mark.line + 1} on")
        return mapping


def _load(data: bytes) -> Any:
    try:
        _check_depth(data)
        return yaml.load(data, Loader=_Loader)  # noqa: S506 - it makes text, lists and mappings
    except yaml.YAMLError as error:
        # Its own words may quote the file.
        mark = getattr(error, "problem_mark", None)
        where = f": see line {mark.line + 1}" if mark is not None else ""
        raise BadKey(f"not YAML{where}") from None
    except (ValueError, RecursionError):
        raise BadKey("not YAML") from None


def _check_depth(data: bytes) -> None:
    """Refuse what is nested deeply: building it would take a stack as deep."""
    depth = 0
    for event in yaml.parse(data, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > limits.REGISTRIES_FILE_DEPTH:
            raise BadKey("nested too deeply")


def _mapping(value: object, key: str) -> Mapping[str, Any]:
    if value is None or value in _EMPTY:
        return {}
    if not isinstance(value, dict):
        raise BadKey("not a mapping", key)
    return value


def _list(value: object, key: str) -> list[Any]:
    if value in _EMPTY:
        return []
    if not isinstance(value, list):
        raise BadKey("not a list", key)
    return value


def _text(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise BadKey("not a text", key)
    return value
