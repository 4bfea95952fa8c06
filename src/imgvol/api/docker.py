"""Docker's volume plugin protocol, version 1: JSON over HTTP on a unix socket of its own.

Sources: docs.docker.com, "Docker volume plugins" and "Docker Plugin API"; Docker's and podman's
clients take any status but 200 for a failure, and its reason from the member `Err`. Every call is a
POST; members that we do not know are left alone, for the protocol has grown before.
"""

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, Protocol

from imgvol import limits
from imgvol.api.http import Dispatch, Request, Response, json_bytes
from imgvol.api.problems import RequestError, http_status
from imgvol.errors import Conflict, ContentError, ImgvolError, InvalidArgument, InvalidDocument
from imgvol.oci.json import Node
from imgvol.volumes.named import NamedVolume

MEDIA_TYPE: Final = "application/vnd.docker.plugins.v1.2+json"
OPTIONS: Final = ("image", "subpath", "pull")

Answer = Mapping[str, object]


class NamedVolumes(Protocol):
    """`volumes.named.NamedVolumes`."""

    async def create(self, name: str, *, image: str, sub_path: str, pull: str) -> None:
        """Gives an image a name."""

    async def remove(self, name: str) -> None:
        """Forgets a name."""

    async def mount(self, name: str, user: str) -> str:
        """Mounts for a user; returns where."""

    async def unmount(self, name: str, user: str) -> None:
        """Ends one use."""

    async def get(self, name: str) -> NamedVolume:
        """One volume."""

    async def list(self) -> Sequence[NamedVolume]:
        """Every volume."""


def make_docker_dispatch(volumes: NamedVolumes) -> Dispatch:
    """What an ApiServer needs to be a volume plugin."""

    async def dispatch(request: Request) -> Response:
        try:
            if request.method != "POST":
                raise RequestError(405, "every call of a plugin is a POST")
            handler = _HANDLERS.get(request.path)
            if handler is None:
                raise RequestError(404, "no such call of a volume plugin")
            answer = await handler(volumes, _parse(request.body))
        except ImgvolError as error:
            return _response({"Err": _told(error)}, status=http_status(error))
        return _response(answer)

    return dispatch


def write_spec(path: str, socket: str) -> None:
    """Tells Docker where the plugin listens. Blocks.

    Raises:
        Conflict: The file tells of another plugin.
        OSError: It cannot be written.
    """
    content = f"unix://{socket}\n"
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            found = file.read(limits.PATH_LENGTH)
    except FileNotFoundError:
        temporary = f"{path}.{os.getpid()}"
        with open(temporary, "x", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(content)
        os.replace(temporary, path)
        return
    if found.strip() != content.strip():
        raise Conflict(
            "the plugin's spec file names another socket",
            hint=f"Remove it if nobody needs it, or choose another name: --docker-plugin {path}",
            path=path,
            found=found.strip(),
        )


def _parse(body: bytes) -> Node:
    try:
        # A call without arguments comes as nothing, as null, or as an empty object.
        data = b"{}" if body.strip() in {b"", b"null"} else body
        return Node.parse(data, what="request", max_size=limits.API_BODY_SIZE)
    except ContentError as error:  # too deep, or of too many values, too
        raise InvalidArgument(error.message) from error


def _response(answer: Answer, status: int = 200) -> Response:
    return Response(status=status, media_type=MEDIA_TYPE, body=json_bytes(answer))


def _told(error: ImgvolError) -> str:
    # All that a user of docker gets to see.
    return f"{error}. {error.hint}" if error.hint else str(error)


def _name(call: Node) -> str:
    name = _text(call, "Name")
    if not name:
        raise InvalidArgument("Name is missing")
    return name


def _text(call: Node, member: str) -> str:
    try:
        return call.get_string(member)
    except InvalidDocument as error:
        raise InvalidArgument(error.message, member=member) from error


def _options(call: Node) -> dict[str, str]:
    try:
        options = call.get_string_map("Opts")
    except InvalidDocument as error:
        raise InvalidArgument(error.message, member="Opts") from error
    for option in options:
        if option not in OPTIONS:
            raise InvalidArgument(
                "no such option of a volume",
                hint=f"There are: {', '.join(OPTIONS)}.",
                option=option[: limits.NAME_LENGTH],
            )
    if not options.get("image"):
        raise InvalidArgument(
            "which image is not said", hint="Say it: -o image=registry.example.com/data:v1"
        )
    return options


async def _activate(_volumes: NamedVolumes, _call: Node) -> Answer:
    return {"Implements": ["VolumeDriver"]}


async def _capabilities(_volumes: NamedVolumes, _call: Node) -> Answer:
    return {"Capabilities": {"Scope": "local"}}


async def _create(volumes: NamedVolumes, call: Node) -> Answer:
    options = _options(call)
    await volumes.create(
        _name(call),
        image=options["image"],
        sub_path=options.get("subpath", ""),
        pull=options.get("pull", "missing"),
    )
    return {"Err": ""}


async def _remove(volumes: NamedVolumes, call: Node) -> Answer:
    await volumes.remove(_name(call))
    return {"Err": ""}


async def _mount(volumes: NamedVolumes, call: Node) -> Answer:
    return {"Mountpoint": await volumes.mount(_name(call), _text(call, "ID")), "Err": ""}


async def _unmount(volumes: NamedVolumes, call: Node) -> Answer:
    await volumes.unmount(_name(call), _text(call, "ID"))
    return {"Err": ""}


async def _path(volumes: NamedVolumes, call: Node) -> Answer:
    volume = await volumes.get(_name(call))
    return {"Mountpoint": volume.path or "", "Err": ""}


async def _get(volumes: NamedVolumes, call: Node) -> Answer:
    volume = await volumes.get(_name(call))
    status = {"image": volume.image, "subpath": volume.sub_path}
    return {"Volume": {**_described(volume), "Status": status}, "Err": ""}


async def _list(volumes: NamedVolumes, _call: Node) -> Answer:
    return {"Volumes": [_described(volume) for volume in await volumes.list()], "Err": ""}


def _described(volume: NamedVolume) -> dict[str, object]:
    created = datetime.fromtimestamp(volume.created_at, UTC).isoformat(timespec="seconds")
    return {"Name": volume.name, "Mountpoint": volume.path or "", "CreatedAt": created}


_HANDLERS: Final[Mapping[str, Callable[[NamedVolumes, Node], Awaitable[Answer]]]] = {
    "/Plugin.Activate": _activate,
    "/VolumeDriver.Capabilities": _capabilities,
    "/VolumeDriver.Create": _create,
    "/VolumeDriver.Remove": _remove,
    "/VolumeDriver.Mount": _mount,
    "/VolumeDriver.Unmount": _unmount,
    "/VolumeDriver.Path": _path,
    "/VolumeDriver.Get": _get,
    "/VolumeDriver.List": _list,
}
