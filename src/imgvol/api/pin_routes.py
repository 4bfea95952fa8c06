"""The routes for pins: images that stay until somebody says otherwise, and what they do."""

from typing import Final

from imgvol.api import encoding
from imgvol.api.fields import Field, Values
from imgvol.api.http import Response, json_response
from imgvol.api.route import Route
from imgvol.api.services import Services

_IMAGE: Final = Field(
    name="image",
    description="An image that is here. A name is pinned whatever it comes to mean, and goes with "
    "its pin; an image ID keeps this very image, named or not.",
    required=True,
    example="docker.io/library/alpine:3.20",
)


async def pin_image(services: Services, values: Values) -> Response:
    """Pin, as a user."""
    return json_response(encoding.encode_image(await services.images.pin(values.text("image"))))


async def unpin_image(services: Services, values: Values) -> Response:
    """End what users have pinned."""
    return json_response(encoding.encode_image(await services.images.unpin(values.text("image"))))


PIN_ROUTES: Final[tuple[Route, ...]] = (
    Route(
        method="POST",
        path="/images/pin",
        operation="pinImage",
        summary="Keep an image, or what a name means, from being collected.",
        tag="images",
        handler=pin_image,
        answers=("Image",),
        body=(_IMAGE,),
        errors=(404, 409),
    ),
    Route(
        method="POST",
        path="/images/unpin",
        operation="unpinImage",
        summary="End what users have pinned of an image; what the configuration pins stays.",
        tag="images",
        handler=unpin_image,
        answers=("Image",),
        body=(_IMAGE,),
        errors=(404, 409),
    ),
)
