"""What requests that push have in common: fields, what they mean, and what is told of the push.

A route takes PUSHING beside fields of its own, and `open_push` makes of it what `push_tree` needs.
The shapes of what is told are PUSH_PROGRESS and PUSHED, members of an event's schema.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from imgvol.api.fetching import FETCHING, LOGIN, PLATFORM
from imgvol.api.fields import Field, Values
from imgvol.oci.reference import DEFAULT_TAG, Reference
from imgvol.publish.pushing import Pushed, PushProgress, open_target
from imgvol.registry.auth_config import parse_auth_config
from imgvol.registry.hosts import RegistryOptions
from imgvol.registry.push import Pusher
from imgvol.registry.registries import Registries

TARGET: Final = Field(
    name="target",
    required=True,
    description="Where to push to: `registry/repository[:tag]`; the tag is `latest` when absent.",
    example="registry.example.com/team/app:1-lazy",
)
# How the target's registry is reached, and as whom; named as what pulls take.
PUSHING: Final = (*(field for field in FETCHING if field is not PLATFORM), *LOGIN)
# The statuses of its errors.
PUSH_ERRORS: Final = (403, 404, 409, 422, 429, 502, 503)

_COUNT: Final[dict[str, object]] = {"type": "integer", "minimum": 0}
PUSH_PROGRESS: Final[dict[str, dict[str, object]]] = {
    "stage": {"enum": ["blobs", "manifests", "done"]},
    "blobs": {**_COUNT, "description": "How many there are."},
    "finished": {**_COUNT, "description": "How many the registry has."},
    "size": {**_COUNT, "description": "Bytes of those that it did not have."},
    "sent": {**_COUNT, "description": "Bytes of them that have been sent."},
}
PUSHED: Final[dict[str, dict[str, object]]] = {
    "name": {"type": "string", "description": "What it can be pulled by."},
    "digest": {"type": "string", "pattern": "^[a-z0-9]+:[0-9a-f]{32,}$"},
    "uploaded": {**_COUNT, "description": "Blobs that were sent."},
    "uploaded_bytes": _COUNT,
    "mounted": {**_COUNT, "description": "Blobs that the registry had in another repository."},
    "existing": {**_COUNT, "description": "Blobs that were there."},
}


def parse_target(values: Values) -> Reference:
    """The target, with its tag.

    Raises:
        InvalidReference: It is no reference.
    """
    reference = Reference.parse(values.text(TARGET.name))
    has_name = reference.tag is not None or reference.digest is not None
    return reference if has_name else reference.with_tag(DEFAULT_TAG)


@asynccontextmanager
async def open_push(
    values: Values, target: Reference, registries: Registries | None
) -> AsyncIterator[Pusher]:
    """What pushes to a target, as a request with PUSHING wants it; see `open_target`.

    Raises:
        InvalidArgument: The options contradict, or the login is malformed.
        BadConfiguration: The configuration of registries cannot be used.
    """
    ca_file = values.optional("ca_file")
    options = RegistryOptions(
        plain_http=values.flag("plain_http"),
        insecure=values.flag("insecure"),
        ca_file=None if ca_file is None else Path(ca_file),
    )
    login = parse_auth_config(
        username=values.optional("username") or "",
        password=values.optional("password") or "",
        auth=values.optional("auth") or "",
        identity_token=values.optional("identity_token") or "",
        registry_token=values.optional("registry_token") or "",
    )
    async with open_target(target, options, login, registries=registries) as pusher:
        yield pusher


def encode_push_progress(progress: PushProgress) -> dict[str, object]:
    """The members PUSH_PROGRESS."""
    missing = [blob for blob in progress.blobs if blob.state not in {"exists", "mounted"}]
    return {
        "stage": progress.stage,
        "blobs": len(progress.blobs),
        "finished": sum(blob.is_finished for blob in progress.blobs),
        "size": sum(blob.size for blob in missing),
        "sent": sum(blob.sent for blob in missing),
    }


def encode_pushed(pushed: Pushed) -> dict[str, object]:
    """The members PUSHED."""
    return {
        "name": pushed.name,
        "digest": str(pushed.digest),
        "uploaded": pushed.uploaded,
        "uploaded_bytes": pushed.uploaded_bytes,
        "mounted": pushed.mounted,
        "existing": pushed.existing,
    }
