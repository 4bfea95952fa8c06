"""Who we are to a registry: logins, and where they are kept.

The files are those that `docker login` and `podman login` write. They are read anew at every
question: a login that was made while the daemon runs counts from the next pull on. A file or a
helper that cannot be read is no error by itself, for most images need no login; what was found,
and what was not, is told as notes, which end up in the hint of a refused access.
"""

import base64
import binascii
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from imgvol import limits
from imgvol.registry.helpers import HelperFailed, ask_helper
from imgvol.registry.redaction import Secret, quote_remote

# Docker Hub's names for itself; its logins are kept under the last.
HUB_NAMES: Final = ("docker.io", "index.docker.io", "registry-1.docker.io")
_HUB_KEY: Final = "index.docker.io"
_HUB_HELPER_KEY: Final = "https://index.docker.io/v1/"
# A helper's user name for "the secret is an identity token".
_TOKEN_USER: Final = "<token>"  # noqa: S105 - a marker, no password


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A login. An identity token is traded for access tokens; a registry token is one already."""

    username: str = ""
    password: Secret | None = None
    identity_token: Secret | None = None
    registry_token: Secret | None = None

    @property
    def is_usable(self) -> bool:
        """Whether there is anything in it to log in with."""
        return bool((self.username and self.password) or self.identity_token or self.registry_token)

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """All that is secret in it, in every spelling that goes over the wire."""
        given = [self.password, self.identity_token, self.registry_token]
        if self.username and self.password:
            given.append(Secret(basic(self.username, self.password).reveal().split()[1]))
        return tuple(secret for secret in given if secret)


@dataclass(frozen=True, slots=True)
class Lookup:
    """The answer of a source: a login or None, and notes on where it was looked for."""

    credential: Credential | None
    notes: tuple[str, ...] = ()


def basic(username: str, password: Secret) -> Secret:
    """An `Authorization` header's value, after RFC 7617."""
    pair = f"{username}:{password.reveal()}".encode()
    return Secret(f"Basic {base64.b64encode(pair).decode('ascii')}")


class CredentialSource(Protocol):
    """Knows logins. Called in worker threads, by several at once; may block for a while."""

    def find(self, registry: str, repository: str) -> Lookup:
        """Look for the login to pull from a repository. Never raises.

        Args:
            registry: The domain of a reference: `docker.io`.
            repository: The path of a reference: `library/alpine`.
        """
        ...


class NoCredentials:
    """Knows none."""

    def find(self, registry: str, repository: str) -> Lookup:  # noqa: ARG002 - the protocol's
        """None."""
        return Lookup(None, ("no login was given",))


@dataclass(frozen=True, slots=True)
class StaticCredentials:
    """One login for whatever registry is asked: a client of this room has only one."""

    credential: Credential

    def find(self, registry: str, repository: str) -> Lookup:  # noqa: ARG002 - the protocol's
        """The login."""
        return Lookup(self.credential, ("used the login that came with the request",))


@dataclass(frozen=True, slots=True)
class ConfiguredCredentials:
    """The login that an administrator has configured for one server.

    Args:
        credential: The login.
        file: Where it is configured.
    """

    credential: Credential
    file: str

    def find(self, registry: str, repository: str) -> Lookup:  # noqa: ARG002 - the protocol's
        """The login."""
        return Lookup(self.credential, (f"used the login in {self.file}",))


@dataclass(frozen=True, slots=True)
class CredentialChain:
    """Several sources; the first one that has a login wins."""

    sources: Sequence[CredentialSource]

    def find(self, registry: str, repository: str) -> Lookup:
        """Ask in order."""
        notes: tuple[str, ...] = ()
        for source in self.sources:
            found = source.find(registry, repository)
            if found.credential is not None and found.credential.is_usable:
                return found
            notes += found.notes
        return Lookup(None, notes)


class FileCredentials:
    """Logins in files, the first file that has one wins.

    Args:
        files: Docker's `config.json` or containers' `auth.json`, by name; a `.dockercfg` is read
            in its own, older form.
        helper_deadline: Seconds that a credential helper gets.
    """

    def __init__(
        self,
        files: Sequence[Path],
        *,
        helper_deadline: float = limits.CREDENTIAL_HELPER_DEADLINE,
    ) -> None:
        self._files = tuple(files)
        self._helper_deadline = helper_deadline

    def find(self, registry: str, repository: str) -> Lookup:
        """Look through the files in order."""
        notes: list[str] = []
        for file in self._files:
            credential = self._find_in(file, registry, repository, notes)
            if credential is not None and credential.is_usable:
                return Lookup(credential, (f"used the login in {file}",))
        return Lookup(None, tuple(notes))

    def _find_in(
        self, file: Path, registry: str, repository: str, notes: list[str]
    ) -> Credential | None:
        try:
            document = _read_document(file)
        except FileNotFoundError:
            notes.append(f"{file} is not there")
            return None
        except OSError as error:
            notes.append(f"{file} cannot be read: {os.strerror(error.errno or 0).lower()}")
            return None
        except ValueError:
            notes.append(f"{file} is not a file of logins")
            return None
        found = (
            self._ask(_text(document, "credHelpers", registry), registry, notes)
            or _find_in_auths(_mapping(document, "auths"), registry, repository)
            or self._ask(_text(document, "credsStore"), registry, notes)
        )
        if found is None:
            notes.append(f"{file} has no login for {registry}")
        return found

    def _ask(self, helper: str, registry: str, notes: list[str]) -> Credential | None:
        if not helper:
            return None
        key = _HUB_HELPER_KEY if _canonical(registry) == _HUB_KEY else registry
        try:
            found = ask_helper(helper, key, deadline=self._helper_deadline)
        except HelperFailed as failure:
            notes.append(f"credential helper {quote_remote(helper)} failed: {failure}")
            return None
        if found is None:
            return None
        username, secret = found
        if username == _TOKEN_USER:
            return Credential(identity_token=secret)
        return Credential(username=username, password=secret)


def credential_files(environ: Mapping[str, str], *, home: Path, uid: int) -> tuple[Path, ...]:
    """Where logins are kept, in the order of containers-auth.json(5).

    `REGISTRY_AUTH_FILE` is the only place when it is set.
    """
    if explicit := environ.get("REGISTRY_AUTH_FILE"):
        return (Path(explicit),)
    runtime = environ.get("XDG_RUNTIME_DIR")
    config = environ.get("XDG_CONFIG_HOME")
    docker = environ.get("DOCKER_CONFIG")
    return (
        (Path(runtime) / "containers" if runtime else Path(f"/run/containers/{uid}")) / "auth.json",
        (Path(config) if config else home / ".config") / "containers" / "auth.json",
        (Path(docker) if docker else home / ".docker") / "config.json",
        home / ".dockercfg",
    )


def names_registry(address: str, registry: str) -> bool:
    """Whether a URL or a name of a server, as clients write them, means a registry.

    Args:
        address: `https://registry.example.com/v1/`, `registry.example.com:5000`.
        registry: The domain of a reference.
    """
    _, separator, rest = address.partition("://")
    host = (rest if separator else address).partition("/")[0].rpartition("@")[2]
    return _canonical(host.lower()) == _canonical(registry.lower())


def logins_of_this_user() -> FileCredentials:
    """The logins that `docker login` and `podman login` of this process's user have written."""
    return FileCredentials(credential_files(os.environ, home=Path.home(), uid=os.geteuid()))


def _read_document(file: Path) -> Mapping[str, object]:
    """The top object of a file. Raises OSError or ValueError."""
    # Not blocking: a FIFO in the place of the file must not hold us.
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as opened:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("not a regular file")
        data = opened.read(limits.CREDENTIAL_FILE_SIZE + 1)
    if len(data) > limits.CREDENTIAL_FILE_SIZE:
        raise ValueError("too large")
    try:
        document = json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(document, dict):
        raise ValueError("not an object")  # noqa: TRY004 - the file's fault, not the caller's
    return {"auths": document} if file.name == ".dockercfg" else document


def _find_in_auths(
    auths: Mapping[str, object], registry: str, repository: str
) -> Credential | None:
    """The entry for the repository, the most specific first; then whatever names the registry."""
    candidates = (
        *(key for key in _keys(registry, repository) if key in auths),
        *(key for key in auths if _canonical(key) == _canonical(registry)),
    )
    found = (_parse_entry(_mapping(auths, key)) for key in candidates)
    return next((credential for credential in found if credential.is_usable), None)


def _keys(registry: str, repository: str) -> Iterator[str]:
    key = f"{registry}/{repository}"
    while key:
        yield key
        key = key.rpartition("/")[0]


def _canonical(key: str) -> str:
    """The registry that a key means, for keys that are URLs or other names of Docker Hub."""
    scheme, separator, rest = key.partition("://")
    host = rest.partition("/")[0] if separator and scheme in {"http", "https"} else key
    return _HUB_KEY if host in HUB_NAMES else host


def _parse_entry(entry: Mapping[str, object]) -> Credential:
    credential = Credential(
        username=_text(entry, "username"),
        password=_secret(entry, "password"),
        identity_token=_secret(entry, "identitytoken"),
        registry_token=_secret(entry, "registrytoken"),
    )
    username, colon, password = _decode(_text(entry, "auth")).partition(":")
    if not colon:
        return credential  # docker writes empty entries as marks that a helper has the login
    return replace(credential, username=username, password=Secret(password.strip("\0")))


def _decode(text: str) -> str:
    try:
        return base64.b64decode(text).decode("utf-8")
    except (binascii.Error, ValueError):
        return ""


def _mapping(document: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = document.get(key)
    return value if isinstance(value, dict) else {}


def _text(document: Mapping[str, object], *keys: str) -> str:
    *outer, last = keys
    for key in outer:
        document = _mapping(document, key)
    value = document.get(last)
    return value if isinstance(value, str) else ""


def _secret(document: Mapping[str, object], key: str) -> Secret | None:
    text = _text(document, key)
    return Secret(text) if text else None
