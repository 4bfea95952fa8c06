"""What the routes for archives of images do: checked values in, an answer out."""

import dataclasses
from functools import partial

from imgvol.api import encoding
from imgvol.api.fields import Values
from imgvol.api.handlers import report_work, with_progress
from imgvol.api.http import NDJSON, Stream
from imgvol.api.services import Services
from imgvol.errors import InvalidArgument
from imgvol.images.exporting import ExportedImage, ExportProgress
from imgvol.images.importing import ImportReport
from imgvol.images.pull import PullProgress

# What a file that came with the request is called in messages.
_PASSED = "standard input"


async def import_images(services: Services, values: Values) -> Stream:
    """Import an archive, telling how far it is."""
    path = values.optional("path")
    if (path is None) == (values.file is None):
        raise InvalidArgument("give the path of an archive, or pass it open, and not both")
    if path is not None and not path.startswith("/"):
        raise InvalidArgument("the archive's path must be absolute", path=path)

    async def work(progress: PullProgress) -> encoding.Document:
        report = await services.images.importer.import_archive(
            path or _PASSED,
            stream=values.file,
            link=values.flag("link"),
            platforms=values.strings("platforms"),
            base_name=values.optional("base_name"),
            digests=values.flag("digests"),
            progress=progress,
        )
        return encode_import(report)

    return with_progress(work)


async def export_images(services: Services, values: Values) -> Stream:
    """Write an archive into the file that came along, telling how far it is."""
    output = values.file
    if output is None:
        raise InvalidArgument(
            "pass the file to write to with the request",
            hint="Open, over SCM_RIGHTS: imgvol export does so.",
        )
    progress = ExportProgress()

    async def work() -> encoding.Document:
        images = await services.images.exporter.export(
            values.strings("images"),
            output,
            platform=values.optional("platform"),
            progress=progress,
        )
        return {"images": [encode_exported(image) for image in images], "size": progress.written}

    def snapshot() -> encoding.Document:
        return {"event": "progress", **dataclasses.asdict(progress)}

    return Stream(media_type=NDJSON, produce=partial(report_work, work, snapshot))


def encode_import(report: ImportReport) -> encoding.Document:
    """The members of `ImportedEvent` that are its own."""
    return {
        "images": [
            {
                "names": list(image.names),
                "id": str(image.id),
                "manifest": str(image.manifest),
                "platform": image.platform,
            }
            for image in report.images
        ],
        "passed_over": [dataclasses.asdict(one) for one in report.passed_over],
    }


def encode_exported(image: ExportedImage) -> encoding.Document:
    """`ExportedImage`."""
    return {
        "names": list(image.names),
        "id": str(image.id),
        "manifest": str(image.manifest),
        "platform": image.platform,
        "is_changed": image.is_changed,
    }
