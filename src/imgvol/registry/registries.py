"""What this process knows of registries: where their images come from, and who failed lately.

Which of the two kinds of files speaks for a registry: what names it goes before what speaks of
all, and of two that name it, containerd's `hosts.toml`. They are not merged; only logins, which
`hosts.toml` cannot have, always come from `registries.yaml`. See docs/design/registries.md.
"""

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import httpx

from imgvol import limits
from imgvol.config import RegistryPaths
from imgvol.errors import BadConfiguration
from imgvol.registry.config_files import BadKey, ConfigFiles, bad_key
from imgvol.registry.credentials import ConfiguredCredentials
from imgvol.registry.health import Health
from imgvol.registry.hosts import (
    Endpoint,
    RegistryOptions,
    TLSFiles,
    names_registry,
    own_endpoint,
    with_options,
)
from imgvol.registry.hosts_file import FILE_NAME, HostEntry, certificates_in, parse_hosts_file
from imgvol.registry.registries_file import Mirrors, RegistriesFile

log = logging.getLogger(__name__)

T = TypeVar("T")

_ANY_REGISTRY: Final = "_default"
_NOTHING: Final = RegistryOptions()
_NO_TLS: Final = TLSFiles()


class _Directory(NamedTuple):
    """The directory that containerd would read for a registry."""

    path: Path
    is_named: bool


class _Registries(NamedTuple):
    """The `registries.yaml` that counts, if there is one."""

    content: RegistriesFile
    path: Path | None


class Registries:
    """The configuration of registries, and the health of their endpoints. One for a process.

    Args:
        paths: Where the files are; None: there are none.

    Attributes:
        health: Which endpoints have failed lately.
    """

    def __init__(self, paths: RegistryPaths | None = None) -> None:
        self._paths = paths or RegistryPaths()
        self._files = ConfigFiles()
        self.health = Health()

    def endpoints(self, domain: str, options: RegistryOptions) -> tuple[Endpoint, ...]:
        """Whom to ask for images of a registry, in order. Blocks: reads files that have changed.

        Args:
            domain: The domain of a reference.
            options: How a user wants to connect to the registry itself: it beats all files.

        Raises:
            InvalidArgument: There cannot be a server of this name, or the options contradict.
            BadConfiguration: A file that may speak of this registry cannot be used.
        """
        own_endpoint(domain, options)
        registries = self._registries_file()
        found = self._configured(domain, registries)
        unique: dict[httpx.URL, Endpoint] = {}
        for configured in found:
            is_own = configured.is_registry
            endpoint = with_options(configured, domain, options) if is_own else configured
            # Asked once, where it comes first; whoever has the last word has it there, too.
            known = unique.get(endpoint.base, endpoint)
            is_authority = known.is_authority or endpoint.is_authority
            unique[endpoint.base] = dataclasses.replace(known, is_authority=is_authority)
        return tuple(self._with_login(each, domain, registries) for each in unique.values())

    def _configured(self, domain: str, registries: _Registries) -> list[Endpoint]:
        directory = self._directory(domain)
        entries = self._hosts_file(directory) if directory else None
        is_named = directory is not None and directory.is_named
        mirrors = _checked(registries, lambda: registries.content.mirrors_of(domain))
        if directory and entries and (is_named or mirrors is None or not mirrors.is_named):
            file = str(directory.path / FILE_NAME)
            return list(_from_hosts_file(domain, entries, file))
        certificates = _NO_TLS
        if directory and not entries:
            certificates = self._certificates(directory.path)
        return list(self._from_registries_file(domain, registries, mirrors, certificates))

    def _from_registries_file(
        self,
        domain: str,
        registries: _Registries,
        mirrors: Mirrors | None,
        certificates: TLSFiles,
    ) -> Iterator[Endpoint]:
        """Mirrors, if there are any, and the registry itself, which is always the last to ask.

        That is k3s' rule, and containerd's for its mirrors of old: unless it is in the list.
        """
        file = str(registries.path or "")
        is_listed = False
        for base in mirrors.bases if mirrors else ():
            is_own = names_registry(base, domain)
            is_listed = is_listed or is_own
            yield Endpoint(
                base=base,
                namespace="" if is_own else domain,
                is_authority=is_own,
                tls=self._tls_for(registries, _server(base, domain)) if _has_tls(base) else _NO_TLS,
                rewrites=() if is_own or mirrors is None else mirrors.rewrites,
                configured_by=file,
            )
        if not is_listed:
            tls = certificates or self._tls_for(registries, domain)
            yield from _own(own_endpoint(domain, _NOTHING), tls)

    def _tls_for(self, registries: _Registries, server: str) -> TLSFiles:
        directory = registries.path.parent if registries.path else Path("/")
        return _checked(registries, lambda: registries.content.tls_for(server, directory))

    def _with_login(self, endpoint: Endpoint, domain: str, registries: _Registries) -> Endpoint:
        server = domain if endpoint.is_registry else endpoint.server
        login = _checked(registries, lambda: registries.content.login_for(server))
        if login is None:
            return endpoint
        configured = ConfiguredCredentials(login, str(registries.path))
        return dataclasses.replace(endpoint, login=configured)

    # --- files ------------------------------------------------------------------------------------

    def _registries_file(self) -> _Registries:
        paths = self._paths
        for path in paths.registries_files:
            try:
                content = self._files.read(
                    path, RegistriesFile.parse, max_size=limits.REGISTRIES_FILE_SIZE
                )
            except (FileNotFoundError, PermissionError) as error:
                _pass_over(path, error, is_chosen=paths.is_file_chosen)
            else:
                return _Registries(content, path)
        return _Registries(RegistriesFile({}, {}), None)

    def _directory(self, domain: str) -> _Directory | None:
        """The first directory for a registry: nothing is merged, as containerd does it."""
        for root in self._paths.hosts_dirs:
            for name in _directory_names(domain):
                path = root / name
                try:
                    os.stat(path)
                except (FileNotFoundError, NotADirectoryError):
                    continue
                except OSError as error:
                    _pass_over(path, error, is_chosen=self._paths.are_dirs_chosen)
                else:
                    return _Directory(path, is_named=name != _ANY_REGISTRY)
        return None

    def _hosts_file(self, directory: _Directory) -> tuple[HostEntry, ...] | None:
        file = directory.path / FILE_NAME
        parse = partial(parse_hosts_file, directory.path)
        try:
            return self._files.read(file, parse, max_size=limits.HOSTS_FILE_SIZE)
        except FileNotFoundError:
            return None
        except PermissionError as error:
            _pass_over(file, error, is_chosen=self._paths.are_dirs_chosen)
            return None

    def _certificates(self, directory: Path) -> TLSFiles:
        try:
            return certificates_in(directory)
        except BadKey as error:
            raise bad_key(directory, error) from error
        except OSError as error:
            _pass_over(directory, error, is_chosen=self._paths.are_dirs_chosen)
            return _NO_TLS


def _from_hosts_file(domain: str, entries: tuple[HostEntry, ...], file: str) -> Iterator[Endpoint]:
    for entry in entries:
        base = entry.base or own_endpoint(domain, _NOTHING).base
        endpoint = Endpoint(
            base=base,
            capabilities=entry.capabilities,
            namespace="" if names_registry(base, domain) else domain,
            is_authority=entry is entries[-1],
            headers=entry.headers,
            dial_timeout=entry.dial_timeout,
            configured_by=file,
        )
        yield from _own(endpoint, entry.tls)


def _own(endpoint: Endpoint, tls: TLSFiles) -> Iterator[Endpoint]:
    """An endpoint with TLS; before one without that has certificates all the same, one with.

    As containerd does it, but at port 80, which is never TLS.
    """
    base = endpoint.base
    if base.scheme == "https" or not tls:
        yield dataclasses.replace(endpoint, tls=tls)
        return
    if base.port is not None:
        yield dataclasses.replace(endpoint, base=base.copy_with(scheme="https"), tls=tls)
    yield endpoint


def _directory_names(domain: str) -> Iterator[str]:
    host, colon, port = domain.rpartition(":")
    yield domain
    if colon and port.isdigit():
        yield f"{host}_{port}_"
        yield host
    yield _ANY_REGISTRY


def _checked(registries: _Registries, look_up: Callable[[], T]) -> T:
    """What an entry says; if it is wrong, the error names the file."""
    try:
        return look_up()
    except BadKey as error:
        raise bad_key(registries.path or Path(), error) from error


def _server(base: httpx.URL, domain: str) -> str:
    return domain if names_registry(base, domain) else base.netloc.decode("ascii")


def _has_tls(base: httpx.URL) -> bool:
    return base.scheme == "https"


def _pass_over(path: Path, error: OSError, *, is_chosen: bool) -> None:
    """Go on without a file of the system's that is not for us; not without one that was chosen."""
    if is_chosen or not isinstance(error, FileNotFoundError | PermissionError):
        raise BadConfiguration(
            "the configuration of registries cannot be read: "
            f"{os.strerror(error.errno).lower() if error.errno else 'it is not there'}",
            file=path,
        ) from error
    if isinstance(error, PermissionError):
        log.info("%s may not be read by this user: going on without it", path)
