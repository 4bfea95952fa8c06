"""The route table: the one declaration behind the dispatch and the OpenAPI document."""

from typing import Final

from imgvol import limits
from imgvol.api import handlers
from imgvol.api.bundle_routes import BUNDLE_ROUTES
from imgvol.api.convert_routes import CONVERT_ROUTES
from imgvol.api.event_routes import EVENT_ROUTES
from imgvol.api.fetching import FETCHING, LOGIN, PLATFORM
from imgvol.api.fields import Field, Values, parse_body, parse_query
from imgvol.api.http import (
    NDJSON,
    OCTETS,
    PLAIN,
    Dispatch,
    Request,
    Response,
    Stream,
    json_response,
)
from imgvol.api.index_routes import INDEX_ROUTES
from imgvol.api.pin_routes import PIN_ROUTES
from imgvol.api.problems import RequestError
from imgvol.api.route import PREFIX, Route
from imgvol.api.sandbox_routes import SANDBOX_ROUTES
from imgvol.api.services import Services
from imgvol.api.space_routes import SPACE_ROUTES
from imgvol.api.trace_routes import TRACE_ROUTES

_EXAMPLE: Final = "docker.io/library/alpine:3.20"

_IMAGE = Field(
    name="image",
    description="A reference, an image ID, or `oci:DIR[:TAG]`, `oci-archive:FILE`, "
    "`docker-archive:FILE[:REF]` with an absolute path.",
    required=True,
    example=_EXAMPLE,
)
_PATH = Field(
    name="path",
    description="A path inside the image, as percent-encoded bytes; links are followed.",
    default="/",
    example="/etc/os-release",
    is_path=True,
)
_MAPPING = "`container:host:length`, with commas in between: IDs of the image, and on the host."
_BINDING = (
    Field(name="noexec", kind="boolean", description="Programs in the volume cannot be run."),
    Field(name="nosymfollow", kind="boolean", description="Links in the volume are not followed."),
    Field(
        name="sub_path",
        description="Mount only this directory or file of the image."
        " For a file, the target is one, too.",
        default="",
        example="usr/share/zoneinfo",
        is_path=True,
    ),
    Field(
        name="escapes",
        description="A sub path that leaves the image, by `..`, or as or through an absolute path: "
        "`confine` takes the image's root for the root, `refuse` makes it an error.",
        default="confine",
        choices=("confine", "refuse"),
    ),
    Field(name="dirs_only", kind="boolean", description="The sub path must be a directory."),
    Field(name="uid_mappings", description=_MAPPING, default="", example="0:100000:65536"),
    Field(name="gid_mappings", description=_MAPPING, default="", example="0:100000:65536"),
    Field(
        name="propagation",
        description="Who sees what is mounted beneath the target later: `private`, nobody else; "
        "`rslave`, also those who bind it as a slave.",
        default="private",
        example="rslave",
    ),
    Field(
        name="selinux_relabel",
        kind="boolean",
        description="Label the files for a container: impossible where SELinux is on, and "
        "without meaning elsewhere.",
    ),
)
_MOUNTING = (
    Field(
        name="target",
        description="Absolute path of an existing directory; without it only the view is held.",
        example="/mnt/alpine",
        is_path=True,
    ),
    Field(name="sandbox", description="Whatever owns the volume.", default="cli"),
    Field(
        name="pull",
        description="Whether to ask the registry.",
        default="missing",
        choices=("missing", "never", "always"),
    ),
    *_BINDING,
    Field(
        name="patience",
        kind="number",
        description="Seconds that reads wait for a registry that has gone, unkillable, before they "
        "fail. 0: they fail after a few tries.",
        default=0,
        maximum=limits.PATIENCE,
    ),
    Field(
        name="lazy",
        description="`auto`: mount before everything is here, where layers allow it. "
        "`off`: everything is copied into the store first, and with that verified.",
        default="auto",
        choices=("auto", "off"),
    ),
    Field(
        name="wait",
        description="What the answer waits for. `index`: until every name and attribute is known, "
        "which takes all of a layer that has to be pulled whole. `manifest`: until the manifest is "
        "here; whoever looks for something waits until the layers that it depends on have been "
        "verified. By default `manifest` with `verify=stream`, and else `index`.",
        choices=("manifest", "index"),
    ),
    Field(
        name="verify",
        description="`lazy`: check what is read, and the whole in the background. `full`: mount "
        "only after every layer's digest and diff ID have been checked over every byte. `stream`: "
        "what has to be pulled is shown while it comes, on the strength of the registry and the "
        "line to it; if a digest then is not right, everybody gets errors.",
        default="lazy",
        choices=("lazy", "full", "stream"),
    ),
    Field(
        name="no_trace",
        kind="boolean",
        description="Do not bring first what a trace of the image names.",
    ),
)
_PULL_ERRORS = (403, 404, 422, 429, 502, 503, 507)


async def _no_document(_services: Services, _values: Values) -> Response:
    # The OpenAPI document is made from this very table: see make_dispatch.
    raise AssertionError


ROUTES: Final[tuple[Route, ...]] = (
    Route(
        method="GET",
        path="/version",
        operation="getVersion",
        summary="Say which daemon answers.",
        tag="daemon",
        handler=handlers.get_version,
        answers=("Version",),
    ),
    Route(
        method="GET",
        path="/openapi.json",
        operation="getOpenAPI",
        summary="Give this document.",
        tag="daemon",
        handler=_no_document,
        answers=("OpenAPI",),
    ),
    Route(
        method="GET",
        path="/metrics",
        prefix="",
        operation="getMetrics",
        summary="Give all metrics in Prometheus' text format; never waits for anything.",
        tag="daemon",
        handler=handlers.get_metrics,
        answers=(),
        media_type=PLAIN,
    ),
    Route(
        method="POST",
        path="/stop",
        operation="stopDaemon",
        summary="End the daemon, once this answer is out.",
        tag="daemon",
        handler=handlers.stop_daemon,
        answers=("Stopping",),
        body=(
            Field(
                name="force",
                kind="boolean",
                description="Also when volumes are mounted: they are unmounted, in use or not.",
            ),
        ),
        errors=(409,),
    ),
    Route(
        method="GET",
        path="/usage",
        operation="getUsage",
        summary="Say what the store holds.",
        tag="daemon",
        handler=handlers.get_usage,
        answers=("StoreUsage",),
    ),
    Route(
        method="GET",
        path="/gc",
        operation="planCollection",
        summary="Say why each thing in the store stays, or that it would be collected.",
        tag="daemon",
        handler=handlers.plan_collection,
        answers=("CollectionPlan",),
    ),
    Route(
        method="POST",
        path="/gc",
        operation="collectGarbage",
        summary="Remove from the store what nobody needs.",
        tag="daemon",
        handler=handlers.collect_garbage,
        answers=("Collection",),
        errors=(507,),
    ),
    Route(
        method="GET",
        path="/check",
        operation="checkStore",
        summary="Look for damage in the store and in the mounts, without reading all data.",
        tag="daemon",
        handler=handlers.check_store,
        answers=("CheckReport",),
    ),
    Route(
        method="GET",
        path="/preload",
        operation="getPreload",
        summary="Say what has become of the files of the preload directory.",
        tag="images",
        handler=handlers.get_preload,
        answers=("Preload",),
    ),
    Route(
        method="POST",
        path="/scrub",
        operation="scrubImages",
        summary="Read stored data again and compare it with its digests; progress meanwhile.",
        tag="daemon",
        handler=handlers.scrub_images,
        answers=("ScrubEvent", "ScrubbedEvent", "ErrorEvent"),
        media_type=NDJSON,
        body=(
            Field(
                name="image",
                description="As a reference or an image ID; without it, every image.",
                example=_EXAMPLE,
            ),
            Field(name="repair", kind="boolean", description="Pull again what is damaged."),
            *FETCHING[1:],
        ),
        errors=(404,),
    ),
    Route(
        method="GET",
        path="/images",
        operation="listImages",
        summary="List the local images.",
        tag="images",
        handler=handlers.list_images,
        answers=("ImageList",),
    ),
    Route(
        method="DELETE",
        path="/images",
        operation="removeImage",
        summary="Drop a name of an image, and the image with its last name.",
        tag="images",
        handler=handlers.remove_image,
        answers=("Removal",),
        query=(
            _IMAGE,
            Field(
                name="force",
                kind="boolean",
                description="All names and pins of the image at once, also when it is mounted or "
                "held by a lease: these keep its bytes until they end. Not here is fine.",
            ),
        ),
        errors=(404, 409),
    ),
    Route(
        method="POST",
        path="/images/pull",
        operation="pullImage",
        summary="Fetch, verify and index an image; progress while it lasts.",
        tag="images",
        handler=handlers.pull_image,
        answers=("ProgressEvent", "PulledEvent", "ErrorEvent"),
        media_type=NDJSON,
        body=(_IMAGE, *FETCHING, *LOGIN),
        errors=_PULL_ERRORS,
    ),
    Route(
        method="GET",
        path="/images/inspect",
        operation="inspectImage",
        summary="Show a local image with its manifest and config.",
        tag="images",
        handler=handlers.inspect_image,
        answers=("ImageDetails",),
        query=(_IMAGE, PLATFORM),
        errors=(404,),
    ),
    Route(
        method="GET",
        path="/files/list",
        operation="listFiles",
        summary="List a directory of a local image, or one file; the last line ends a full list.",
        tag="files",
        handler=handlers.list_files,
        answers=("EntryEvent", "EndEvent", "ErrorEvent"),
        media_type=NDJSON,
        query=(
            _IMAGE,
            PLATFORM,
            _PATH,
            Field(name="recursive", kind="boolean", description="Everything below the path."),
        ),
        errors=(404,),
    ),
    Route(
        method="GET",
        path="/files/content",
        operation="readFile",
        summary="Give a file's bytes; a body without its last chunk is not the whole file.",
        tag="files",
        handler=handlers.read_file,
        answers=(),
        media_type=OCTETS,
        query=(_IMAGE, PLATFORM, _PATH),
        errors=(404,),
    ),
    Route(
        method="GET",
        path="/files/usage",
        operation="sumFiles",
        summary="Sum up what is below a path of a local image.",
        tag="files",
        handler=handlers.sum_files,
        answers=("TreeUsage",),
        query=(_IMAGE, PLATFORM, _PATH),
        errors=(404,),
    ),
    Route(
        method="GET",
        path="/volumes",
        operation="listVolumes",
        summary="List the volumes.",
        tag="volumes",
        handler=handlers.list_volumes,
        answers=("VolumeList",),
    ),
    Route(
        method="POST",
        path="/volumes",
        operation="mountVolume",
        summary="Mount an image read-only; progress while it is pulled.",
        tag="volumes",
        handler=handlers.mount_volume,
        answers=("ProgressEvent", "MountedEvent", "ErrorEvent"),
        media_type=NDJSON,
        body=(_IMAGE, *_MOUNTING, *FETCHING, *LOGIN),
        errors=(*_PULL_ERRORS[:2], 409, *_PULL_ERRORS[2:], 501),
    ),
    Route(
        method="DELETE",
        path="/volumes",
        operation="unmountVolume",
        summary="Unmount a volume.",
        tag="volumes",
        handler=handlers.unmount_volume,
        answers=("Volume",),
        query=(
            Field(
                name="volume",
                description="Its ID, or the absolute path it is mounted at.",
                required=True,
                example="/mnt/alpine",
                is_path=True,
            ),
            Field(
                name="detach",
                kind="boolean",
                description="Take it out of the tree even when it is busy.",
            ),
        ),
        errors=(404, 409),
    ),
    *PIN_ROUTES,
    *TRACE_ROUTES,
    *INDEX_ROUTES,
    *BUNDLE_ROUTES,
    *CONVERT_ROUTES,
    *SANDBOX_ROUTES,
    *EVENT_ROUTES,
    *SPACE_ROUTES,
)


def make_dispatch(services: Services) -> Dispatch:
    """The function that answers requests, for `ApiServer`."""
    from imgvol.api.openapi import openapi_document

    table: dict[str, dict[str, Route]] = {}
    for route in ROUTES:
        table.setdefault(route.full_path, {})[route.method] = route
    document = json_response(openapi_document())

    async def dispatch(request: Request) -> Response | Stream:
        route = _find(table, request)
        query = parse_query(request.query, route.query)
        values = parse_body(request.body, route.body) if route.body else query
        values.file = request.file if route.takes_file else None
        if route.operation == "getOpenAPI":
            return document
        return await route.handler(services, values)

    return dispatch


def _find(table: dict[str, dict[str, Route]], request: Request) -> Route:
    methods = table.get(request.path)
    if methods is None:
        hint = f"GET {PREFIX}/openapi.json lists what there is."
        raise RequestError(404, "no such resource", hint=hint)
    route = methods.get(request.method)
    if route is None:
        allowed = ", ".join(sorted(methods))
        hint = f"Allowed: {allowed}."
        raise RequestError(405, "no such method here", hint=hint, headers=(("allow", allowed),))
    return route
