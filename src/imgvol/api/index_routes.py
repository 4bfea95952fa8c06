"""The routes for SOCI indexes: made, listed, removed, pushed."""

from typing import Final

from imgvol.api import index_handlers as handlers
from imgvol.api.fetching import FETCHING, LOGIN
from imgvol.api.fields import Field
from imgvol.api.http import NDJSON
from imgvol.api.pushing import PUSH_ERRORS, PUSHING, TARGET
from imgvol.api.route import Route
from imgvol.publish.indexes import DEFAULT_MIN_LAYER_SIZE

_EXAMPLE: Final = "registry.example.com/team/app:1"
_IMAGE: Final = Field(
    name="image",
    description="A reference, or `oci:DIR[:TAG]`, `oci-archive:FILE`, `docker-archive:FILE[:REF]`"
    " with an absolute path; it need not be in the store.",
    required=True,
    example=_EXAMPLE,
)
_INDEXED: Final = Field(
    name="image",
    description="An image that has an index here: as it was named, or its manifest's digest.",
    required=True,
    example=_EXAMPLE,
)

INDEX_ROUTES: Final[tuple[Route, ...]] = (
    Route(
        method="POST",
        path="/indexes/create",
        operation="createIndex",
        summary="Make the SOCI index of an image, with which others read its layers lazily.",
        tag="indexes",
        handler=handlers.create_index,
        answers=("IndexEvent", "IndexedEvent", "ErrorEvent"),
        media_type=NDJSON,
        body=(
            _IMAGE,
            *FETCHING,
            *LOGIN,
            Field(
                name="span_size",
                kind="integer",
                description="Plain bytes that are fetched at once; by the size of the layer when "
                "absent: 4 MiB, and more for layers of more than 2 GiB.",
                example=4 << 20,
            ),
            Field(
                name="min_layer_size",
                kind="integer",
                description="Smaller layers are not indexed.",
                default=DEFAULT_MIN_LAYER_SIZE,
            ),
        ),
        errors=(403, 404, 422, 429, 502, 503, 507),
    ),
    Route(
        method="GET",
        path="/indexes",
        operation="listIndexes",
        summary="List the indexes that are here, or those of an image.",
        tag="indexes",
        handler=handlers.list_indexes,
        answers=("IndexList",),
        query=(Field(name="image", description=_INDEXED.description, example=_EXAMPLE),),
        errors=(404,),
    ),
    Route(
        method="DELETE",
        path="/indexes",
        operation="removeIndexes",
        summary="Remove the indexes of an image, for all platforms.",
        tag="indexes",
        handler=handlers.remove_indexes,
        answers=("IndexList",),
        query=(_INDEXED,),
        errors=(404,),
    ),
    Route(
        method="POST",
        path="/indexes/push",
        operation="pushIndexes",
        summary="Push an image with its indexes under another name, or the indexes to the image.",
        tag="indexes",
        handler=handlers.push_indexes,
        answers=("PushEvent", "PushedEvent", "ErrorEvent"),
        media_type=NDJSON,
        body=(
            _INDEXED,
            Field(
                name=TARGET.name,
                description=f"{TARGET.description} Needed unless `v1` is set.",
                example=TARGET.example,
            ),
            Field(
                name="v1",
                kind="boolean",
                description="Push indexes of version 1, as referrers of the image, which stays as "
                "it is.",
            ),
            *PUSHING,
        ),
        errors=PUSH_ERRORS,
    ),
)
