"""Where a registry is, and how to trust it.

The name in a reference is not always the server: `docker.io` is served elsewhere, and a registry
on this very machine most often has no TLS. A registry has a list of endpoints, each with what it
may be asked for. Mirrors come before the registry itself in that list; one that is only trusted to
deliver (`PULL`) is asked by digest, never by tag. `registries` makes the list from what is
configured.
"""

import dataclasses
import enum
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from imgvol.errors import InvalidArgument
from imgvol.oci.digest import Digest
from imgvol.registry.addresses import Reach, parse_address, reach_of
from imgvol.registry.credentials import ConfiguredCredentials
from imgvol.registry.redaction import Secret
from imgvol.registry.redirects import Origin
from imgvol.registry.rewrites import Rewrite, rewrite

# Not where people say it is.
_SERVERS: Final = {"docker.io": "registry-1.docker.io"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TLSFiles:
    """What TLS with a server needs beside the system's own trust.

    Attributes:
        insecure: Accept any certificate.
        authorities: Certificates (PEM) to trust, too.
        clients: Certificates and keys (PEM) to show; without a key, it is in the same file.
    """

    insecure: bool = False
    authorities: tuple[Path, ...] = ()
    clients: tuple[tuple[Path, Path | None], ...] = ()

    def __bool__(self) -> bool:
        """Whether anything here only makes sense with TLS."""
        return self.insecure or bool(self.authorities or self.clients)


@dataclass(frozen=True, slots=True)
class RegistryOptions:
    """How to connect to the registry itself, as one user asked for it: not to its mirrors.

    Attributes:
        plain_http: Do without TLS.
        insecure: With TLS, accept any certificate.
        ca_file: Certificates (PEM) to trust beside the system's.
        client_cert: Certificate and key (PEM) to show to the registry.
    """

    plain_http: bool = False
    insecure: bool = False
    ca_file: Path | None = None
    client_cert: tuple[Path, Path] | None = None

    @property
    def tls(self) -> TLSFiles:
        """The same as files."""
        return TLSFiles(
            insecure=self.insecure,
            authorities=(self.ca_file,) if self.ca_file else (),
            clients=(self.client_cert,) if self.client_cert else (),
        )


class Capability(enum.Flag):
    """What an endpoint may be asked for.

    To turn tags into digests; to deliver by digest; to list what refers to a manifest.
    """

    RESOLVE = enum.auto()
    PULL = enum.auto()
    REFERRERS = enum.auto()
    ALL = RESOLVE | PULL | REFERRERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A server that speaks for a registry.

    Attributes:
        base: Its URL, up to and with the specification's `/v2`.
        capabilities: What it may be asked for.
        namespace: The registry that it stands for; empty for the registry itself.
        is_authority: Whether it has the last word: the registry itself, or its replacement.
        tls: How it is trusted.
        headers: Sent to it, and to nobody that it redirects to.
        rewrites: What becomes of names of repositories.
        login: The login that is configured for it.
        dial_timeout: Seconds to connect; None for the usual.
        configured_by: The file that names it; empty when none does.
    """

    base: httpx.URL
    capabilities: Capability = Capability.ALL
    namespace: str = ""
    is_authority: bool = True
    tls: TLSFiles = TLSFiles()
    headers: tuple[tuple[str, Secret], ...] = ()
    rewrites: tuple[Rewrite, ...] = ()
    login: ConfiguredCredentials | None = None
    dial_timeout: float | None = None
    configured_by: str = ""

    @property
    def origin(self) -> Origin:
        """What credentials for this endpoint are bound to."""
        return Origin.of(self.base)

    @property
    def server(self) -> str:
        """Host and, unless it is the scheme's own, port: what its logins are kept under."""
        return self.base.netloc.decode("ascii")

    @property
    def is_registry(self) -> bool:
        """Whether this is the registry itself, and no stand-in."""
        return not self.namespace

    @property
    def who(self) -> str:
        """What to call it in messages."""
        return "the registry" if self.is_registry else f"mirror {self.server}"

    def repository(self, path: str) -> str:
        """The name that it has for a repository."""
        return rewrite(path, self.rewrites)

    def manifest(self, repository: str, name: str) -> httpx.URL:
        """The URL of a manifest: `name` is a tag or a digest, `repository` the endpoint's own."""
        return self._at(f"{repository}/manifests/{name}")

    def blob(self, repository: str, digest: Digest) -> httpx.URL:
        """The URL of a blob."""
        return self._at(f"{repository}/blobs/{digest}")

    def uploads(self, repository: str) -> httpx.URL:
        """The URL that begins uploads of blobs."""
        return self._at(f"{repository}/blobs/uploads/")

    def referrers(self, repository: str, manifest: Digest, artifact_type: str) -> httpx.URL:
        """The URL of the first page of what refers to a manifest, of one type; empty: of any."""
        url = self._at(f"{repository}/referrers/{manifest}")
        return url.copy_merge_params({"artifactType": artifact_type}) if artifact_type else url

    def _at(self, path: str) -> httpx.URL:
        url = self.base.copy_with(path=f"{self.base.path.rstrip('/')}/{path}")
        # Distribution specification, "Pull-through caches": one cache may stand for many.
        return url.copy_merge_params({"ns": self.namespace}) if self.namespace else url


def own_endpoint(domain: str, options: RegistryOptions) -> Endpoint:
    """The registry itself.

    Args:
        domain: The domain of a reference: `docker.io`, `127.0.0.1:5000`, `[::1]:5000`.
        options: Whether to use TLS, and how.

    Raises:
        InvalidArgument: There cannot be a server of this name, or the options contradict.
    """
    if options.plain_http and options.tls:
        raise InvalidArgument("plain HTTP has no certificates to check", registry=domain)
    server = _SERVERS.get(domain, domain)
    scheme = "http" if options.plain_http else "https"
    if not options.plain_http and not options.tls:
        scheme = default_scheme(server)
    try:
        base = httpx.URL(f"{scheme}://{server}/v2")
        if base.port is not None and not 0 < base.port < 1 << 16:
            raise httpx.InvalidURL("no such port")
    except httpx.InvalidURL as error:
        raise InvalidArgument("not the address of a registry", registry=domain) from error
    return Endpoint(base=base, tls=options.tls)


def with_options(endpoint: Endpoint, domain: str, options: RegistryOptions) -> Endpoint:
    """The registry itself as a file describes it, and as a user wants it, who has the last word."""
    if not options.plain_http and not options.tls:
        return endpoint
    own = own_endpoint(domain, options)
    return dataclasses.replace(
        endpoint, base=endpoint.base.copy_with(scheme=own.base.scheme), tls=own.tls
    )


def names_registry(base: httpx.URL, domain: str) -> bool:
    """Whether a URL leads to the registry itself, whatever its scheme and path."""
    server = httpx.URL(f"{base.scheme}://{_SERVERS.get(domain, domain)}")
    return Origin.of(base) == Origin.of(server)


def default_scheme(server: str) -> str:
    """The scheme of a server that is named without one.

    As containerd and docker: http on this machine, unless at the port of https.
    """
    host, colon, port = server.rpartition(":")
    address = parse_address(server)
    if address is None and colon and port.isdigit():
        address = parse_address(host)
    else:
        host, port = server, ""
    is_loopback = address is not None and reach_of(address) is Reach.LOOPBACK
    is_plain = (is_loopback or host == "localhost") and port != "443"
    return "http" if is_plain else "https"


def tls_context(files: TLSFiles) -> ssl.SSLContext:
    """What to trust, and what to show.

    Raises:
        InvalidArgument: A file cannot be read, or is not what it should be.
    """
    context = ssl.create_default_context()
    for authority in files.authorities:
        _load(context.load_verify_locations, authority)
    for certificate, key in files.clients:
        _load(context.load_cert_chain, certificate, *([key] if key else []))
    if files.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _load(load: Callable[..., None], *files: Path) -> None:
    names = ", ".join(map(str, files))
    try:
        load(*files)
    except ssl.SSLError as error:
        raise InvalidArgument("not a certificate, or not its key", file=names) from error
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise InvalidArgument(f"cannot read a certificate: {reason}", file=names) from error
