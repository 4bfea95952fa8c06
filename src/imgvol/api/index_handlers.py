"""What the routes for SOCI indexes do: checked values in, an answer out."""

from functools import partial

from imgvol.api import encoding
from imgvol.api.fields import Values
from imgvol.api.handlers import options_with_login, report_work
from imgvol.api.http import NDJSON, Response, Stream, json_response
from imgvol.api.pushing import encode_push_progress, encode_pushed, open_push, parse_target
from imgvol.api.services import Services
from imgvol.content.records import IndexedBlob, IndexRecord
from imgvol.errors import InvalidArgument
from imgvol.publish.index_push import referrer_target
from imgvol.publish.indexes import IndexProgress, IndexRequest
from imgvol.publish.pushing import PushProgress


async def create_index(services: Services, values: Values) -> Stream:
    """Make an index, telling how far it is."""
    span_size = values.optional_number("span_size")
    request = IndexRequest(
        image=values.text("image"),
        platform=values.optional("platform"),
        options=options_with_login(values),
        span_size=None if span_size is None else int(span_size),
        min_layer_size=int(values.number("min_layer_size")),
    )
    progress = IndexProgress()

    async def work() -> encoding.Document:
        index = await services.indexes.create(request, progress)
        return {"index": encode_index(index), "kept": not index.is_empty}

    def snapshot() -> encoding.Document:
        layers = [encoding.encode_numbers(layer) for layer in progress.layers]
        return {"event": "progress", "layers": layers}

    return Stream(media_type=NDJSON, produce=partial(report_work, work, snapshot))


async def list_indexes(services: Services, values: Values) -> Response:
    """The indexes that are here."""
    found = await services.indexes.kept(values.optional("image"))
    return json_response({"indexes": [encode_index(index) for index in found]})


async def remove_indexes(services: Services, values: Values) -> Response:
    """Remove an image's."""
    removed = await services.indexes.remove(values.text("image"))
    return json_response({"indexes": [encode_index(index) for index in removed]})


async def push_indexes(services: Services, values: Values) -> Stream:
    """Push, telling how far it is."""
    image, is_v1 = values.text("image"), values.flag("v1")
    if is_v1 == (values.optional("target") is not None):
        raise InvalidArgument(
            "give a target, or ask for version 1, and not both",
            hint="Version 1 goes to the image; version 2 makes another image, which needs a name.",
        )
    indexes = services.indexes
    progress = PushProgress()

    async def work() -> encoding.Document:
        target = referrer_target(await indexes.kept(image)) if is_v1 else parse_target(values)
        async with open_push(values, target, indexes.registries) as pusher:
            if is_v1:
                pushed = await indexes.push_referrers(image, pusher, progress)
            else:
                assert target.tag is not None, "a target has a tag"
                pushed = await indexes.push_image(image, pusher, target.tag, progress)
        return encode_pushed(pushed)

    def snapshot() -> encoding.Document:
        return {"event": "progress", **encode_push_progress(progress)}

    return Stream(media_type=NDJSON, produce=partial(report_work, work, snapshot))


def encode_index(index: IndexRecord) -> encoding.Document:
    """An index as JSON."""
    return {
        "image": index.name,
        "manifest": str(index.manifest),
        "platform": index.platform,
        "created_at": index.created_at,
        "layers": [
            {
                "digest": str(layer.digest),
                "media_type": layer.media_type,
                "size": layer.size,
                "span_size": layer.span_size,
                "spans": layer.spans,
                "ztoc": _blob(layer.ztoc),
                "twin": _blob(layer.twin),
                "frames": _blob(layer.frames),
                "reason": layer.reason,
            }
            for layer in index.layers
        ],
    }


def _blob(blob: IndexedBlob | None) -> encoding.Document | None:
    return None if blob is None else {"digest": str(blob.digest), "size": blob.size}
