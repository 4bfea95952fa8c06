"""What the routes for traces do: checked values in, an answer out."""

import os
from functools import partial

import trio

from imgvol import limits
from imgvol.api import encoding
from imgvol.api.fields import Values
from imgvol.api.handlers import report_work
from imgvol.api.http import NDJSON, Response, Stream, json_bytes, json_response
from imgvol.api.pushing import encode_push_progress, encode_pushed, open_push
from imgvol.api.services import Services
from imgvol.content.records import ImageRecord
from imgvol.content.records.traces import repository_of
from imgvol.errors import Conflict, InvalidArgument
from imgvol.images.traces.service import RecordingProgress
from imgvol.oci.reference import Reference
from imgvol.publish.pushing import PushProgress


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


async def push_trace(services: Services, values: Values) -> Stream:
    """Push a trace beside its image, telling how far it is."""
    image = await services.images.find(values.text("image"), platform=values.optional("platform"))
    target = _repository(image)
    if values.file is not None:
        document = await trio.to_thread.run_sync(_read, values.file)
    else:
        document = await services.traces.document(await services.traces.find(image))
    subject = await services.images.descriptor(image)
    progress = PushProgress()

    async def work() -> encoding.Document:
        async with open_push(values, target, services.registries) as pusher:
            return encode_pushed(await services.push_trace(pusher, subject, document, progress))

    def snapshot() -> encoding.Document:
        return {"event": "progress", **encode_push_progress(progress)}

    return Stream(media_type=NDJSON, produce=partial(report_work, work, snapshot))


def _repository(image: ImageRecord) -> Reference:
    """Where an image comes from: there it is what a trace refers to."""
    for name in image.names:
        if repository_of(name):
            reference = Reference.parse(name)
            return Reference(reference.domain, reference.path)
    raise InvalidArgument(
        "the image has no name of a registry", hint="Name the image by its reference."
    )


def _read(file: int) -> bytes:
    pieces, left = [], limits.TRACE_SIZE + 1
    while left > 0 and (piece := os.read(file, min(left, limits.MIB))):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


async def finish_trace(services: Services, values: Values) -> Response:
    """End a recording, and keep it."""
    services.traces.finish(values.text("recording"))
    return Response(body=json_bytes({"finishing": True}))
