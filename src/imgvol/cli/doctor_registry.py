"""`doctor --registry`: who would be asked for the images of a registry, and who says so.

Read from the files that a daemon of this user reads by itself: one that was started with
`--hosts-dir` or `--registries-file` reads others.
"""

from typing import Final

from imgvol.config import Config
from imgvol.registry.hosts import Capability, Endpoint, RegistryOptions, tls_context
from imgvol.registry.registries import Registries

_ALIASES: Final = {"index.docker.io": "docker.io", "registry-1.docker.io": "docker.io"}


def describe_registry(config: Config, domain: str) -> tuple[str, ...]:
    """One line for each endpoint, in the order in which they are asked. No login is shown.

    Args:
        config: Where the files are.
        domain: The registry, as references name it.

    Raises:
        ImgvolError: A file, or a certificate that it names, cannot be used; or the registry cannot
            be.
    """
    domain = _ALIASES.get(domain, domain)
    endpoints = Registries(config.registries).endpoints(domain, RegistryOptions())
    for endpoint in endpoints:
        if endpoint.tls:
            tls_context(endpoint.tls)
    return tuple(_line(endpoint) for endpoint in endpoints)


def _line(endpoint: Endpoint) -> str:
    parts = [str(endpoint.base), "the registry itself" if endpoint.is_registry else "a mirror"]
    if endpoint.capabilities != Capability.ALL:
        names = [(each.name or "").lower() for each in endpoint.capabilities]
        parts.append(f"only to {' and '.join(names) or 'push'}")
    if endpoint.tls.insecure:
        parts.append("any certificate")
    if endpoint.tls.authorities:
        parts.append("certificates of its own")
    if endpoint.tls.clients:
        parts.append("shows ours")
    if endpoint.headers:
        parts.append("with headers")
    if endpoint.rewrites:
        parts.append("other names")
    if endpoint.login is not None:
        parts.append(f"login in {endpoint.login.file}")
    if endpoint.configured_by:
        parts.append(f"by {endpoint.configured_by}")
    return ", ".join(parts)
