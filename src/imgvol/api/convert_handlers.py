"""What the route that converts images does: checked values in, an answer out."""

import dataclasses
from functools import partial

from imgvol.api.encoding import Document
from imgvol.api.fields import Values
from imgvol.api.handlers import options_with_login, report_work
from imgvol.api.http import NDJSON, Stream
from imgvol.api.services import Services
from imgvol.oci.descriptor import Descriptor
from imgvol.publish.conversion import (
    ConversionProgress,
    ConversionReport,
    ConversionRequest,
    ConvertedLayer,
)


async def convert_image(services: Services, values: Values) -> Stream:
    """Convert, telling how far it is."""
    request = ConversionRequest(
        image=values.text("image"),
        target=values.text("target"),
        format=values.text("format"),
        platform=values.optional("platform"),
        chunk_size=int(values.number("chunk_size") or 0),
        level=int(values.number("level") or 0),
        prefetch_from=values.optional("prefetch_from") or "",
        options=options_with_login(values),
    )
    progress = ConversionProgress()

    async def work() -> Document:
        return encode_report(await services.converter.convert(request, progress))

    snapshot = partial(encode_progress, progress)
    return Stream(media_type=NDJSON, produce=partial(report_work, work, snapshot))


def encode_progress(progress: ConversionProgress) -> Document:
    """`ConvertEvent`."""
    if progress.stage == "pull":
        layers = [(layer.digest, layer.size, layer.received) for layer in progress.pull.layers]
    elif progress.stage == "convert":
        layers = [(str(layer.digest), layer.size, layer.done) for layer in progress.layers]
    else:
        layers = [(str(blob.digest), blob.size, blob.sent) for blob in progress.push.blobs]
    return {
        "event": "progress",
        "stage": progress.stage,
        "layers": [{"digest": digest, "size": size, "done": done} for digest, size, done in layers],
    }


def encode_report(report: ConversionReport) -> Document:
    """The members of `ConvertedEvent` that are its own."""
    return {
        "name": report.name,
        "digest": str(report.digest),
        "left_out": list(report.left_out),
        "images": [
            {
                "platform": image.platform,
                "manifest": str(image.manifest),
                "id": str(image.id),
                "missing": image.missing,
                "layers": [_encode_layer(layer) for layer in image.layers],
            }
            for image in report.images
        ],
    }


def _encode_layer(layer: ConvertedLayer) -> Document:
    plain = {
        field.name: getattr(layer, field.name)
        for field in dataclasses.fields(layer)
        if field.name not in ("before", "after", "diff_id", "seconds")
    }
    return {
        "before": _encode_blob(layer.before),
        "after": _encode_blob(layer.after),
        "diff_id": str(layer.diff_id),
        "seconds": round(layer.seconds, 3),
        **plain,
    }


def _encode_blob(blob: Descriptor) -> Document:
    return {"digest": str(blob.digest), "size": blob.size, "media_type": blob.media_type}
