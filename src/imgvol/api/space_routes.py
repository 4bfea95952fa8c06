"""Routes about the room that the store takes."""

from typing import Final

from imgvol.api import encoding
from imgvol.api.fields import Field, Values
from imgvol.api.http import Response, json_response
from imgvol.api.route import Route
from imgvol.api.services import Services

# No filesystem has more.
_LARGEST: Final = 1 << 63

_TO: Final = Field(
    name="to",
    kind="number",
    description="Bytes that the store is to take at most.",
    required=True,
    maximum=_LARGEST,
    example=20_000_000_000,
)


async def get_space(services: Services, _values: Values) -> Response:
    """How full the store is."""
    return json_response(encoding.encode_space(await services.space.status()))


async def plan_eviction(services: Services, values: Values) -> Response:
    """What would go."""
    report = await services.space.plan(int(values.number("to")))
    return json_response(encoding.encode_eviction(report))


async def evict(services: Services, values: Values) -> Response:
    """Make room."""
    report = await services.space.evict_to(int(values.number("to")))
    return json_response(encoding.encode_eviction(report))


SPACE_ROUTES: Final[tuple[Route, ...]] = (
    Route(
        method="GET",
        path="/space",
        operation="getSpace",
        summary="Say how full the store is, what could be evicted, and what could not.",
        tag="daemon",
        handler=get_space,
        answers=("Space",),
    ),
    Route(
        method="POST",
        path="/space/plan",
        operation="planEviction",
        summary="Say what making room would evict.",
        tag="daemon",
        handler=plan_eviction,
        answers=("Eviction",),
        body=(_TO,),
    ),
    Route(
        method="POST",
        path="/space/evict",
        operation="evict",
        summary="Make room: evict what was used longest ago and can be fetched again.",
        tag="daemon",
        handler=evict,
        answers=("Eviction",),
        body=(_TO,),
        errors=(507,),
    ),
)
