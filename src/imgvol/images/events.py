"""What happens to images, for whoever wants to know."""

from collections.abc import Mapping
from dataclasses import dataclass

from imgvol.oci.digest import Digest
from imgvol.oci.json import JSONValue


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that has happened.

    Attributes:
        kind: image.created, image.updated, image.removed, pull.progress or pull.failed.
        at: Seconds since the epoch.
        image: A name of it, or its ID if it has none.
        id: The image ID, once it is known.
        data: What belongs to the kind.
    """

    kind: str
    at: float
    image: str
    id: Digest | None
    data: Mapping[str, JSONValue]
