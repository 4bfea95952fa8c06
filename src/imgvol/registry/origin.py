"""The registry itself, among all that stands for it: whoever pushes speaks to nobody else."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import httpx
import trio

from imgvol.errors import BadConfiguration, ImgvolError
from imgvol.registry.channel import Channel
from imgvol.registry.hops import Request, discard, public_errors
from imgvol.registry.hosts import Endpoint
from imgvol.registry.operation import Operation
from imgvol.registry.stations import Station
from imgvol.threads import run_cancellable

T = TypeVar("T")


def own_endpoints(domain: str, configured: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
    """The registry itself: with TLS and without, where a file leaves that open.

    Args:
        domain: The registry.
        configured: Whom to ask for its images.

    Raises:
        BadConfiguration: It is not among them.
    """
    own = tuple(endpoint for endpoint in configured if endpoint.is_registry)
    if not own:
        raise BadConfiguration(
            "this registry is configured to be another server, and only a registry itself is "
            "pushed to",
            hint="Write that server's name instead of the registry's.",
            registry=domain,
            file=configured[0].configured_by or None,
        )
    return own


async def first_that_answers(stations: Sequence[Station]) -> Station:
    """The first server that says anything to GET /v2/; the last need not be asked."""
    *others, last = stations
    for station in others:
        try:
            await in_thread(station, partial(_greet, station), trio.CapacityLimiter(1))
        except ImgvolError:
            continue
        return station
    return last


def _greet(station: Station, channel: Channel) -> None:
    endpoint, hops = station.endpoint, station.session.hops
    url = endpoint.base.copy_with(path=f"{endpoint.base.path.rstrip('/')}/")
    request = Request(method="GET", url=url, what="/v2/", trusted=endpoint.origin)

    def once() -> httpx.Response:
        return hops.follow(channel, request)

    channel.operation.has_alternative = True
    discard(hops.insist(channel, request, hops.attempts(channel.operation), once))


async def in_thread(
    station: Station, work: Callable[[Channel], T], limiter: trio.CapacityLimiter
) -> T:
    """The result of work over a channel of its own; a cancelled caller shuts its connection down.

    Args:
        station: Whom the work asks.
        work: Blocks.
        limiter: How many threads of this kind may run at once.
    """
    operation = Operation()

    def run() -> T:
        # The deadline begins here: waiting for a thread is not the registry's fault.
        operation.allow_within(station.session.hops.bounds.document_deadline)
        with (
            public_errors(station.endpoint.base),
            station.pool.lend(operation) as channel,
        ):
            return work(channel)

    return await run_cancellable(run, operation.cancel, limiter=limiter)
