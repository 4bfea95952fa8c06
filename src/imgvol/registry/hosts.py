"""Where a registry is, and how to trust it.

The name in a reference is not always the server: `docker.io` is served elsewhere, and a registry
on this very machine most often has no TLS. A registry has a list of endpoints, each with what it
may be asked for: today the registry itself, which may be asked for everything. Mirrors come before
it in that list; one that is only trusted to deliver (`PULL`) is asked by digest, never by tag.
"""

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
from imgvol.registry.redirects import Origin

# Not where people say it is.
_SERVERS: Final = {"docker.io": "registry-1.docker.io"}


@dataclass(frozen=True, slots=True)
class RegistryOptions:
    """How to connect.

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
    def has_tls(self) -> bool:
        """Whether anything here only makes sense with TLS."""
        return self.insecure or self.ca_file is not None or self.client_cert is not None


class Capability(enum.Flag):
    """What an endpoint may be asked for: to turn tags into digests, and to deliver by digest."""

    RESOLVE = enum.auto()
    PULL = enum.auto()
    ALL = RESOLVE | PULL


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server that speaks for a registry; `base` is its URL, up to the specification's `/v2`."""

    base: httpx.URL
    capabilities: Capability = Capability.ALL

    @property
    def origin(self) -> Origin:
        """What credentials for this endpoint are bound to."""
        return Origin.of(self.base)

    def manifest(self, repository: str, name: str) -> httpx.URL:
        """The URL of a manifest: `name` is a tag or a digest."""
        return self._at(f"{repository}/manifests/{name}")

    def blob(self, repository: str, digest: Digest) -> httpx.URL:
        """The URL of a blob."""
        return self._at(f"{repository}/blobs/{digest}")

    def referrers(self, repository: str, manifest: Digest, artifact_type: str) -> httpx.URL:
        """The URL of the first page of what refers to a manifest, of one type."""
        url = self._at(f"{repository}/referrers/{manifest}")
        return url.copy_with(params={"artifactType": artifact_type})

    def _at(self, path: str) -> httpx.URL:
        return self.base.copy_with(path=f"{self.base.path.rstrip('/')}/{path}")


def endpoints_of(domain: str, options: RegistryOptions) -> tuple[Endpoint, ...]:
    """The endpoints of a registry, in the order to try them.

    Args:
        domain: The domain of a reference: `docker.io`, `127.0.0.1:5000`, `[::1]:5000`.
        options: Whether to use TLS.

    Raises:
        InvalidArgument: There cannot be a server of this name, or the options contradict.
    """
    if options.plain_http and options.has_tls:
        raise InvalidArgument("plain HTTP has no certificates to check", registry=domain)
    server = _SERVERS.get(domain, domain)
    try:
        base = httpx.URL(f"https://{server}/v2")
        if base.port is not None and not 0 < base.port < 1 << 16:
            raise httpx.InvalidURL("no such port")
    except httpx.InvalidURL as error:
        raise InvalidArgument("not the address of a registry", registry=domain) from error
    if options.plain_http or (_is_plain_by_default(server, base.host) and not options.has_tls):
        base = httpx.URL(f"http://{server}/v2")
    return (Endpoint(base),)


def tls_context(options: RegistryOptions) -> ssl.SSLContext:
    """What to trust, and what to show.

    Raises:
        InvalidArgument: A file cannot be read, or is not what it should be.
    """
    context = ssl.create_default_context()
    if options.ca_file is not None:
        _load(context.load_verify_locations, options.ca_file)
    if options.client_cert is not None:
        _load(context.load_cert_chain, *options.client_cert)
    if options.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _is_plain_by_default(server: str, host: str) -> bool:
    # As containerd and docker: a registry on this machine, unless at the port of https.
    address = parse_address(host)
    is_loopback = address is not None and reach_of(address) is Reach.LOOPBACK
    return (is_loopback or host == "localhost") and not server.endswith(":443")


def _load(load: Callable[..., None], *files: Path) -> None:
    names = ", ".join(map(str, files))
    try:
        load(*files)
    except ssl.SSLError as error:
        raise InvalidArgument("not a certificate, or not its key", file=names) from error
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise InvalidArgument(f"cannot read a certificate: {reason}", file=names) from error
