"""What the routes for runtimes do: checked values in, an answer out."""

import secrets
from collections.abc import Sequence

from imgvol.api import encoding
from imgvol.api.fields import Values
from imgvol.api.http import Response, json_response
from imgvol.api.services import Services
from imgvol.volumes.plan import IDMapping, MountRequest


async def mount_for_sandbox(services: Services, values: Values) -> Response:
    """All image volumes of a container, or none."""
    sandbox = values.text("sandbox")
    mounts = await services.sandboxes.mount(
        sandbox,
        [_request(mount) for mount in values.records("mounts")],
        platform=values.optional("platform"),
    )
    encoded = [encoding.encode_mount(mount) for mount in mounts]
    return json_response({"sandbox": sandbox, "mounts": encoded})


async def list_leases(services: Services, values: Values) -> Response:
    """All leases, or those with a label."""
    leases = await services.sandboxes.list_leases(values.optional("label"))
    return json_response({"leases": [encoding.encode_lease(lease) for lease in leases]})


async def create_lease(services: Services, values: Values) -> Response:
    """A lease, new or known."""
    lease = await services.sandboxes.create_lease(
        values.optional("lease") or secrets.token_hex(8),
        labels=values.labels("labels"),
        duration=values.optional_number("expires"),
        images=values.strings("images"),
    )
    return json_response(encoding.encode_lease(lease))


async def renew_lease(services: Services, values: Values) -> Response:
    """A lease whose time begins again."""
    lease = await services.sandboxes.renew_lease(
        values.text("lease"), values.optional_number("expires")
    )
    return json_response(encoding.encode_lease(lease))


async def delete_lease(services: Services, values: Values) -> Response:
    """What became of a lease's volumes."""
    deletion = await services.sandboxes.delete_lease(
        values.text("lease"), drain=values.number("drain"), detach=values.flag("detach")
    )
    return json_response(encoding.encode_deletion(deletion))


def _request(mount: Values) -> MountRequest:
    return MountRequest(
        container_path=mount.text("container_path"),
        image=mount.given("image"),
        host_path=mount.text("host_path"),
        readonly=mount.flag("readonly"),
        image_sub_path=mount.text("image_sub_path"),
        propagation=mount.text("propagation"),
        selinux_relabel=mount.flag("selinux_relabel"),
        recursive_read_only=mount.flag("recursive_read_only"),
        uid_mappings=_mappings(mount.records("uid_mappings")),
        gid_mappings=_mappings(mount.records("gid_mappings")),
        mount_options=tuple(mount.strings("mount_options")),
    )


def _mappings(ranges: Sequence[Values]) -> tuple[IDMapping, ...]:
    return tuple(
        IDMapping(
            host_id=int(one.number("host_id")),
            container_id=int(one.number("container_id")),
            length=int(one.number("length")),
        )
        for one in ranges
    )
