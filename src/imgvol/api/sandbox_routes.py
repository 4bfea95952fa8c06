"""The routes for runtimes: leases, and the volumes of sandboxes."""

from typing import Final

from imgvol import limits
from imgvol.api import sandbox_handlers as handlers
from imgvol.api.fields import Field
from imgvol.api.route import Route

_LEASE: Final = Field(
    name="lease",
    description="Its ID; a sandbox's lease has the sandbox's.",
    required=True,
    maximum=limits.REFERENCE_LENGTH,
    example="3f9c2a71",
)
_EXPIRES: Final = Field(
    name="expires",
    kind="number",
    description="Seconds that it lasts from now on. When absent: until it is deleted; of a lease "
    "that is renewed: as long as it was to last before.",
    maximum=limits.LEASE_DURATION,
    example=86_400,
)
_ID_RANGE: Final = (
    Field(name="host_id", kind="integer", description="First ID on the host.", required=True),
    Field(
        name="container_id", kind="integer", description="First ID in the container.", required=True
    ),
    Field(name="length", kind="integer", description="How many.", required=True),
)
# The CRI's message Mount, version 1, with its names.
_MOUNT: Final = (
    Field(
        name="container_path",
        description="Where it will be in the container; of no meaning here.",
        default="",
        is_path=True,
        example="/data",
    ),
    Field(
        name="image",
        description="A reference or an image ID, of an image that is here. Without it the mount is "
        "of something else, and returned as it is.",
        example="docker.io/library/alpine:3.20",
    ),
    Field(
        name="host_path",
        description="Must be empty for an image; the answer has it.",
        default="",
        is_path=True,
    ),
    Field(name="readonly", kind="boolean", description="Must be true for an image."),
    Field(
        name="image_sub_path",
        description="What of the image is wanted.",
        default="",
        is_path=True,
    ),
    Field(
        name="propagation",
        description="How mounts and unmounts below propagate.",
        default="private",
        choices=("private", "host-to-container", "bidirectional"),
    ),
    Field(name="selinux_relabel", kind="boolean", description="Whether to relabel for SELinux."),
    Field(
        name="recursive_read_only",
        kind="boolean",
        description="Whether mounts below are to be read-only, too.",
    ),
    Field(
        name="uid_mappings",
        kind="records",
        description="Ranges of user IDs; cleared in the answer for an image.",
        maximum=limits.ID_MAPPINGS,
        members=_ID_RANGE,
    ),
    Field(
        name="gid_mappings",
        kind="records",
        description="Ranges of group IDs; cleared in the answer for an image.",
        maximum=limits.ID_MAPPINGS,
        members=_ID_RANGE,
    ),
    Field(
        name="mount_options",
        kind="strings",
        description="For the runtime, when it binds the host path; returned as they are.",
        maximum=limits.MOUNT_OPTIONS,
    ),
)

SANDBOX_ROUTES: Final[tuple[Route, ...]] = (
    Route(
        method="POST",
        path="/sandboxes/mounts",
        operation="mountForSandbox",
        summary="Give a sandbox the image volumes of one container: all of them, or none.",
        tag="sandboxes",
        handler=handlers.mount_for_sandbox,
        answers=("SandboxMounts",),
        body=(
            Field(
                name="sandbox",
                description="Its ID; its lease is made if there is none.",
                required=True,
                example="3f9c2a71",
            ),
            Field(
                name="platform",
                description="`os/architecture[/variant]` of the sandbox; the daemon's own when "
                "absent.",
                example="linux/arm64",
            ),
            Field(
                name="mounts",
                kind="records",
                description="Every mount of the container. Images are never pulled.",
                required=True,
                maximum=limits.SANDBOX_MOUNTS,
                members=_MOUNT,
            ),
        ),
        errors=(404, 409, 422, 501),
    ),
    Route(
        method="GET",
        path="/leases",
        operation="listLeases",
        summary="List the leases.",
        tag="leases",
        handler=handlers.list_leases,
        answers=("LeaseList",),
        query=(
            Field(
                name="label",
                description="Only those that have it: `key` or `key=value`.",
                example="pod=web-1",
            ),
        ),
    ),
    Route(
        method="POST",
        path="/leases",
        operation="createLease",
        summary="Make a lease, or return the one that has its ID as it is.",
        tag="leases",
        handler=handlers.create_lease,
        answers=("Lease",),
        body=(
            Field(
                name="lease",
                description="Its ID; a sandbox's lease has the sandbox's. A new one when absent.",
                example="3f9c2a71",
            ),
            Field(
                name="labels",
                kind="labels",
                description="What to find it by.",
                maximum=limits.LABELS,
            ),
            _EXPIRES,
            Field(
                name="images",
                kind="strings",
                description="Images that it keeps, also if it exists already: references or IDs.",
                maximum=limits.SANDBOX_MOUNTS,
            ),
        ),
        errors=(404,),
    ),
    Route(
        method="POST",
        path="/leases/renew",
        operation="renewLease",
        summary="Start a lease's time again.",
        tag="leases",
        handler=handlers.renew_lease,
        answers=("Lease",),
        body=(_LEASE, _EXPIRES),
        errors=(404,),
    ),
    Route(
        method="DELETE",
        path="/leases",
        operation="deleteLease",
        summary="Unmount the volumes of a lease and let go of what it keeps; none is fine, too.",
        tag="leases",
        handler=handlers.delete_lease,
        answers=("LeaseDeletion",),
        query=(
            _LEASE,
            Field(
                name="drain",
                kind="number",
                description="Seconds that the users of its volumes have to leave.",
                default=limits.DRAIN_DEFAULT,
                maximum=limits.DRAIN,
            ),
            Field(
                name="detach",
                kind="boolean",
                description="Take volumes that are busy even then out of the tree. Otherwise they "
                "stay, and the lease with them.",
            ),
        ),
        errors=(409,),
    ),
)
