"""The route that tells what happens, as long as somebody listens."""

from collections.abc import Sequence
from functools import partial
from typing import Final

import trio

from imgvol.api import encoding
from imgvol.api.fields import Field, Values
from imgvol.api.handlers import HEARTBEAT
from imgvol.api.http import NDJSON, Send, Stream, json_bytes
from imgvol.api.route import Route
from imgvol.api.services import Services
from imgvol.errors import InvalidArgument
from imgvol.images.events import KINDS, Lost, Subscription

_ALIVE: Final = json_bytes({"event": "alive"})


async def follow_events(services: Services, values: Values) -> Stream:
    """Tell what happens from now on."""
    wanted = [kind for kind in values.text("kinds").split(",") if kind]
    unknown = next((kind for kind in wanted if kind not in KINDS), None)
    if unknown is not None:
        raise InvalidArgument(
            "there are no events of this kind", hint=f"There are: {', '.join(KINDS)}.", kind=unknown
        )
    return Stream(media_type=NDJSON, produce=partial(_send_events, services, wanted))


async def _send_events(services: Services, kinds: Sequence[str], send: Send) -> None:
    async with services.events.subscribe(kinds) as subscription:
        # The first line says that whatever happens from now on will be told.
        await send(_ALIVE)
        while (line := await _next_line(subscription)) is not None:
            await send(line)
    await send(json_bytes({"event": "done"}))


async def _next_line(subscription: Subscription) -> bytes | None:
    """What has happened, or a sign of life where nothing has; None at the end."""
    with trio.move_on_after(HEARTBEAT):
        event = await subscription.receive()
        if event is None:
            return None
        if isinstance(event, Lost):
            return json_bytes({"event": "lost", "count": event.count})
        return json_bytes(encoding.encode_event(event))
    return _ALIVE


EVENT_ROUTES: Final = (
    Route(
        method="GET",
        path="/events",
        operation="followEvents",
        summary="Tell what happens to images from now on; a slow reader is told how much it lost.",
        tag="events",
        handler=follow_events,
        answers=("HappenedEvent", "AliveEvent", "LostEvent", "FarewellEvent", "ErrorEvent"),
        media_type=NDJSON,
        query=(
            Field(
                name="kinds",
                description=f"Only these, with commas in between: {', '.join(KINDS)}.",
                default="",
                example="image.created,image.removed",
            ),
        ),
        errors=(409,),
    ),
)
