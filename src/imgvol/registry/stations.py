"""The endpoints of one registry, asked one after another until one delivers.

What makes us go on to the next: whatever the one before it did wrong. It could not be reached, it
does not have it, it does not let us in, it sends what it should not. What is got is verified by
digest, so that it does not matter who delivers; who may say what a tag means is the administrator's
choice (`Capability.RESOLVE`).
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TypeVar

from imgvol.errors import BadConfiguration, ImgvolError, NotFound, RegistryUnavailable, Unauthorized
from imgvol.registry.auth import Authorizer, Scopes, pull_scopes
from imgvol.registry.bounds import Bounds
from imgvol.registry.channel import Channel, ChannelPool
from imgvol.registry.credentials import CredentialChain, CredentialSource
from imgvol.registry.documents import Documents
from imgvol.registry.health import Health
from imgvol.registry.hops import Hops, public_errors
from imgvol.registry.hosts import Capability, Endpoint, tls_context
from imgvol.registry.operation import Operation
from imgvol.registry.proxies import ProxySelector
from imgvol.registry.redaction import redact_url
from imgvol.registry.session import Session

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Station:
    """An endpoint, and the means to ask it."""

    endpoint: Endpoint
    session: Session
    documents: Documents
    pool: ChannelPool


def make_station(
    domain: str,
    endpoint: Endpoint,
    *,
    credentials: CredentialSource | None,
    kept_logins: CredentialSource | None,
    bounds: Bounds,
    proxies: ProxySelector,
    random: Random,
    scopes: Scopes = pull_scopes,
) -> Station:
    """What is needed to ask an endpoint. Blocks: it reads certificates.

    Raises:
        InvalidArgument: One of them cannot be used.
    """
    name = domain if endpoint.is_registry else endpoint.server
    sources = (credentials if endpoint.is_registry else None, endpoint.login, kept_logins)
    logins = CredentialChain([source for source in sources if source is not None])
    if endpoint.dial_timeout is not None:
        bounds = dataclasses.replace(bounds, connect_timeout=endpoint.dial_timeout)
    tls = functools.cache(partial(tls_context, endpoint.tls))
    if endpoint.tls:
        # Now rather than at the first request: files that cannot be used are an error here.
        tls()
    hops = Hops(endpoint.origin, bounds, random)
    session = Session(endpoint, hops, Authorizer(name, hops, logins, scopes))
    documents = Documents(endpoint, session)
    return Station(endpoint, session, documents, ChannelPool(tls, bounds, proxies))


class Stations:
    """The endpoints of one registry. Safe to use from any thread.

    Args:
        domain: The registry.
        stations: In the order to ask.
        health: Who has failed lately.
    """

    def __init__(self, domain: str, stations: Sequence[Station], health: Health) -> None:
        self._domain = domain
        self._stations = {station.endpoint: station for station in stations}
        self.health = health

    @property
    def authority(self) -> Station:
        """The one that has the last word: the registry itself, or its replacement."""
        return next(
            station
            for station in reversed(self._stations.values())
            if station.endpoint.is_authority
        )

    def able(self, wanted: Capability) -> tuple[Station, ...]:
        """Those that may be asked for something, those that have failed lately at the end.

        Raises:
            BadConfiguration: There is none.
        """
        able = [each for each in self._stations if wanted in each.capabilities]
        if not able:
            raise BadConfiguration(
                "no server of this registry may be asked",
                hint="Give one of them the capability.",
                registry=self._domain,
                capability=(wanted.name or "").lower(),
                file=next(iter(self._stations)).configured_by or None,
            )
        return tuple(self._stations[endpoint] for endpoint in self.health.order(able))

    def ask(
        self, operation: Operation, wanted: Capability, work: Callable[[Station, Channel], T]
    ) -> T:
        """The first result of `work`. Blocks.

        Args:
            operation: Bounds it; its deadline is set anew for each endpoint.
            wanted: What an endpoint must be able to do.
            work: Asks one endpoint, over a channel of its own.

        Raises:
            ImgvolError: Nobody delivers; why, of each.
        """
        stations = self.able(wanted)
        failures = Failures()
        for position, station in enumerate(stations, 1):
            operation.has_alternative = position < len(stations)
            # The deadline begins here: waiting for a thread is not the registry's fault.
            operation.allow_within(station.session.hops.bounds.document_deadline)
            try:
                with (
                    public_errors(station.endpoint.base),
                    station.pool.lend(operation) as channel,
                ):
                    result = work(station, channel)
            except ImgvolError as error:
                if operation.is_cancelled:
                    raise
                self.note_failure(station, error)
                failures.add(station.endpoint, error)
            else:
                self.health.note_answer(station.endpoint)
                return result
        raise failures.error()

    def note_failure(self, station: Station, error: ImgvolError) -> None:
        """An endpoint has failed: if it is in trouble, others are asked first for a while."""
        if not isinstance(error, RegistryUnavailable):
            return
        if len(self._stations) > 1 and not self.health.rests(station.endpoint):
            log.info("%s fails, and is asked last for a while: %s", station.endpoint.who, error)
        self.health.note_failure(station.endpoint)


class Failures:
    """Why each endpoint did not deliver."""

    def __init__(self) -> None:
        self._failures: list[tuple[Endpoint, ImgvolError]] = []

    def add(self, endpoint: Endpoint, error: ImgvolError) -> None:
        """Note one more."""
        self._failures.append((endpoint, error))

    def error(self) -> ImgvolError:
        """The error that tells most, with what the others say in a field of it."""
        (_, first), *others = sorted(self._failures, key=_telling)
        if not others:
            return first
        told = "; ".join(f"{redact_url(each.base)}: {error.message}" for each, error in others)
        error = type(first)(first.message, hint=first.hint, **{**first.fields, "others": told})
        error.__cause__ = first
        return error


def _telling(failure: tuple[Endpoint, ImgvolError]) -> int:
    """The registry's own word is final; without it, whatever can be helped is told first.

    That a mirror does not have it says least: somebody who is away may have it.
    """
    endpoint, error = failure
    if endpoint.is_authority and not isinstance(error, RegistryUnavailable):
        return 0
    match error:
        case Unauthorized():
            return 1
        case RegistryUnavailable():
            return 3
        case NotFound():
            return 4
        case _:
            return 2
