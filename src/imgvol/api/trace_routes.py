"""The routes for traces: what starts of images read, recorded and shown."""

from typing import Final

from imgvol import limits
from imgvol.api import trace_handlers as handlers
from imgvol.api.fetching import PLATFORM
from imgvol.api.fields import Field
from imgvol.api.http import NDJSON
from imgvol.api.pushing import PUSH_ERRORS, PUSHING
from imgvol.api.route import Route

_IMAGE: Final = Field(
    name="image",
    description="An image that is here, as a reference or an image ID.",
    required=True,
    example="docker.io/library/python:3.12",
)

TRACE_ROUTES: Final[tuple[Route, ...]] = (
    Route(
        method="GET",
        path="/traces",
        operation="listTraces",
        summary="List the traces.",
        tag="traces",
        handler=handlers.list_traces,
        answers=("TraceList",),
    ),
    Route(
        method="POST",
        path="/traces/record",
        operation="recordTrace",
        summary="Record what is read of a volume until it is told to finish, or the time is over; "
        "progress meanwhile. Nothing is kept of a recording whose caller goes away.",
        tag="traces",
        handler=handlers.record_trace,
        answers=("RecordingEvent", "RecordedEvent", "ErrorEvent"),
        media_type=NDJSON,
        body=(
            Field(
                name="volume",
                description="Its ID, or the absolute path it is mounted at.",
                required=True,
                example="/mnt/python",
                is_path=True,
            ),
            Field(
                name="seconds",
                kind="number",
                description="How long at most.",
                default=limits.TRACE_SECONDS,
                maximum=limits.TRACE_SECONDS,
            ),
        ),
        errors=(404, 409, 507),
    ),
    Route(
        method="POST",
        path="/traces/finish",
        operation="finishTrace",
        summary="End a recording, and keep it.",
        tag="traces",
        handler=handlers.finish_trace,
        answers=("Finishing",),
        body=(
            Field(
                name="recording",
                description="Its ID, as its progress tells it.",
                required=True,
                example="5f2c9e10b3a4",
            ),
        ),
        errors=(404,),
    ),
    Route(
        method="POST",
        path="/traces/push",
        operation="pushTrace",
        summary="Push a trace into the image's repository, as an artifact that refers to it: the "
        "one that mounts follow, or the open file that comes with the request (SCM_RIGHTS).",
        tag="traces",
        handler=handlers.push_trace,
        answers=("PushEvent", "PushedEvent", "ErrorEvent"),
        media_type=NDJSON,
        takes_file=True,
        body=(_IMAGE, PLATFORM, *PUSHING),
        errors=PUSH_ERRORS,
    ),
    Route(
        method="GET",
        path="/traces/document",
        operation="readTrace",
        summary="Give the trace that mounts of an image follow, as it is stored: its own, or the "
        "latest one of its repository.",
        tag="traces",
        handler=handlers.read_trace,
        answers=("Trace",),
        query=(_IMAGE, PLATFORM),
        errors=(404,),
    ),
    Route(
        method="DELETE",
        path="/traces",
        operation="removeTrace",
        summary="Forget the trace that mounts of an image follow.",
        tag="traces",
        handler=handlers.remove_trace,
        answers=("TraceSummary",),
        query=(_IMAGE, PLATFORM),
        errors=(404,),
    ),
)
