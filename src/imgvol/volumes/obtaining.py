"""Getting the image that a user wants to mount: from the store, or by a pull if one is wanted."""

from typing import Literal

from imgvol.content.records import ImageRecord
from imgvol.errors import InvalidArgument, NotFound
from imgvol.images.catalog import ID
from imgvol.images.pull import PullProgress
from imgvol.images.readiness import Readiness
from imgvol.images.service import ImageService, PullOptions

PullPolicy = Literal["missing", "never", "always"]


async def obtain(
    images: ImageService,
    image: str,
    platform: str | None,
    pull: PullPolicy,
    options: PullOptions,
    progress: PullProgress,
    readiness: Readiness,
) -> ImageRecord:
    """The image, as ready as was asked.

    Raises:
        NotFound: There is none, or it is not here and may not be pulled.
        InvalidArgument: An ID is to be looked for in a registry.
    """
    found = await find_usable(images, image, platform, pull, readiness)
    if isinstance(found, ImageRecord):
        progress.stage = "done"
        return found
    return await images.pull(
        found, platform=platform, options=options, progress=progress, readiness=readiness
    )


async def find_usable(
    images: ImageService,
    image: str,
    platform: str | None,
    pull: PullPolicy,
    readiness: Readiness,
) -> ImageRecord | str:
    """The image, if it is here as ready as was asked; or the name to pull.

    Raises:
        NotFound: There is none, or it is not here and may not be pulled.
        InvalidArgument: An ID is to be looked for in a registry.
    """
    if pull == "always":
        await _refuse_id(images, image)
        return image
    try:
        record = await images.find(image, platform=platform)
    except NotFound:
        if pull == "never":
            raise
        return image
    # A layout or an archive that has changed since cannot show the old image any more.
    is_usable = pull == "never" or await images.is_current(image, record)
    if record.is_stored or (is_usable and readiness.is_met_by(record)):
        return record
    return _name_to_pull(image, record, pull)


async def _refuse_id(images: ImageService, image: str) -> None:
    """To a registry, an ID is the name of some other image."""
    known = await images.find_by_id(image)
    if known is not None:
        name = known.names[0] if known.names else "IMAGE"
        raise InvalidArgument(
            "an image ID cannot be looked for in a registry",
            hint=f"To look for a newer image, name it: --pull=always {name}."
            " For this very image, leave --pull=always out.",
            image=image,
        )


def _name_to_pull(image: str, record: ImageRecord, pull: PullPolicy) -> str:
    """What to pull to complete an image: the name that was given, or, for an ID, one of its names.

    Raises:
        NotFound: It may not be pulled, or has no name.
    """
    if pull == "never" or not record.names:
        raise NotFound(
            "image is not in the store as a whole",
            hint="Pull it first: imgvol pull IMAGE. Or mount it with --lazy=auto --verify=lazy.",
            image=image,
        )
    if ID.fullmatch(image):
        return record.names[0]
    return image
