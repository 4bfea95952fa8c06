"""The routes for archives of images."""

from typing import Final

from imgvol import limits
from imgvol.api import bundle_handlers as handlers
from imgvol.api.fields import Field
from imgvol.api.http import NDJSON
from imgvol.api.route import Route

# Platforms of one import; no image has so many.
_PLATFORMS: Final = 64

BUNDLE_ROUTES: Final[tuple[Route, ...]] = (
    Route(
        method="POST",
        path="/images/import",
        operation="importImages",
        summary="Import all images of an archive, or none; progress while it lasts. Instead of a "
        "path, an open file or pipe may come with the request (SCM_RIGHTS).",
        tag="images",
        handler=handlers.import_images,
        answers=("ProgressEvent", "ImportedEvent", "ErrorEvent"),
        media_type=NDJSON,
        takes_file=True,
        body=(
            Field(
                name="path",
                description="Absolute path of an archive or of an OCI layout.",
                example="/srv/images/app.tar",
                is_path=True,
            ),
            Field(
                name="link",
                kind="boolean",
                description="Uncompressed layers stay where they are, in the archive.",
            ),
            Field(
                name="platforms",
                kind="strings",
                description="Only variants for these; without it, all.",
                maximum=_PLATFORMS,
            ),
            Field(
                name="base_name",
                description="Repository of images that have only a tag, or nothing.",
                maximum=limits.REFERENCE_LENGTH,
                example="docker.io/library/app",
            ),
            Field(
                name="digests",
                kind="boolean",
                description="Name images by digest, too; also those without any other name.",
            ),
        ),
        errors=(404, 422, 507),
    ),
    Route(
        method="POST",
        path="/images/export",
        operation="exportImages",
        summary="Write images into one archive: into the open file or pipe that comes with the "
        "request (SCM_RIGHTS); progress while it lasts.",
        tag="images",
        handler=handlers.export_images,
        answers=("ExportEvent", "ExportedEvent", "ErrorEvent"),
        media_type=NDJSON,
        takes_file=True,
        body=(
            Field(
                name="images",
                kind="strings",
                description="Names, or IDs; those named by ID have no name in the archive.",
                required=True,
                maximum=limits.ARCHIVE_IMAGES,
            ),
            Field(
                name="platform",
                description="Which variant; the daemon's own when absent.",
                example="linux/arm64",
            ),
        ),
        errors=(404, 409, 422),
    ),
)
