"""What the routes for traces do: checked values in, an answer out."""

from functools import partial

from imgvol.api import encoding
from imgvol.api.fields import Values
from imgvol.api.handlers import report_work
from imgvol.api.http import NDJSON, Response, Stream, json_bytes, json_response
from imgvol.api.services import Services
from imgvol.errors import Conflict
from imgvol.images.traces.service import RecordingProgress


async def list_traces(services: Services, _values: Values) -> Response:
    """All traces."""
    traces = await services.traces.list()
    return json_response({"traces": [encoding.encode_numbers(trace) for trace in traces]})


async def read_trace(services: Services, values: Values) -> Response:
    """The document of the trace that mounts of an image follow."""
    image = await services.images.find(values.text("image"), platform=values.optional("platform"))
    record = await services.traces.find(image)
    return Response(body=await services.traces.document(record))


async def remove_trace(services: Services, values: Values) -> Response:
    """Forget the trace that mounts of an image follow."""
    image = await services.images.find(values.text("image"), platform=values.optional("platform"))
    return json_response(encoding.encode_numbers(await services.traces.remove(image)))


async def record_trace(services: Services, values: Values) -> Stream:
    """Record a volume until it is told to finish."""
    held = services.volumes.find(values.text("volume"))
    image, view = held.image, held.view
    if image is None or view is None:
        raise Conflict("the volume is lost: there is nothing to record", volume=held.record.id)
    progress = RecordingProgress()

    async def work() -> encoding.Document:
        trace = await services.traces.record(
            image, view, progress=progress, seconds=values.number("seconds")
        )
        return {"trace": encoding.encode_numbers(trace)}

    def snapshot() -> encoding.Document:
        return {"event": "progress", **encoding.encode_numbers(progress)}

    return Stream(media_type=NDJSON, produce=partial(report_work, work, snapshot))


async def finish_trace(services: Services, values: Values) -> Response:
    """End a recording, and keep it."""
    services.traces.finish(values.text("recording"))
    return Response(body=json_bytes({"finishing": True}))
