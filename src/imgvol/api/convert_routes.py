"""The route that converts images."""

from typing import Final

from imgvol import limits
from imgvol.api import convert_handlers as handlers
from imgvol.api.fields import Field
from imgvol.api.http import NDJSON
from imgvol.api.pushing import PUSHING
from imgvol.api.route import Route
from imgvol.publish.conversion import FORMATS

CONVERT_ROUTES: Final[tuple[Route, ...]] = (
    Route(
        method="POST",
        path="/images/convert",
        operation="convertImage",
        summary="Write an image in a format that can be mounted lazily, to a registry or an OCI "
        "layout; progress while it lasts.",
        tag="images",
        handler=handlers.convert_image,
        answers=("ConvertEvent", "ConvertedEvent", "ErrorEvent"),
        media_type=NDJSON,
        body=(
            Field(
                name="image",
                description="A reference or an image ID. What is not here is pulled first.",
                required=True,
                example="docker.io/library/python:3.13",
            ),
            Field(
                name="target",
                description="A reference with a tag, or `oci:DIR[:TAG]` with an absolute path.",
                required=True,
                example="registry.example.com/python:3.13-lazy",
            ),
            Field(
                name="format", description="Of the layers.", required=True, choices=tuple(FORMATS)
            ),
            Field(
                name="platform",
                description="`os/architecture[/variant]`; all that the image has when absent.",
                example="linux/arm64",
            ),
            Field(
                name="chunk_size",
                kind="number",
                description="Bytes of content that are fetched at once; the format's own when "
                "absent.",
                maximum=limits.WRITTEN_CHUNK_MAX,
            ),
            Field(
                name="level",
                kind="number",
                description="Of the compression; a sane one when absent.",
                maximum=22,
            ),
            Field(
                name="prefetch_from",
                description="Files that come first: the absolute path of a trace, or an image of "
                "which a trace is kept.",
                example="/srv/traces/python.json",
                is_path=True,
            ),
            *PUSHING,
        ),
        errors=(403, 404, 409, 422, 429, 502, 503, 507),
    ),
)
