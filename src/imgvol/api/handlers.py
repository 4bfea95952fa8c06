"""What each route does: checked values in, an answer out. No HTTP here, and no decisions either."""

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any, Final, cast

import trio

from imgvol.api import encoding
from imgvol.api.fields import Values
from imgvol.api.http import (
    NDJSON,
    OCTETS,
    Response,
    Send,
    Stream,
    json_bytes,
    json_response,
)
from imgvol.api.services import DaemonInfo, Services, Statistics
from imgvol.errors import Conflict, InvalidArgument
from imgvol.images.pull import PullProgress
from imgvol.images.readiness import Readiness
from imgvol.images.scrubbing import ScrubProgress
from imgvol.images.service import PullOptions
from imgvol.images.streams import Showing
from imgvol.registry.auth_config import parse_auth_config
from imgvol.volumes.obtaining import PullPolicy
from imgvol.volumes.options import BindOptions, Escapes, Propagation, parse_mappings

# A person sees no difference below this; a snapshot costs a few 10 us.
PROGRESS_INTERVAL: Final = 0.1
# An unchanged snapshot is repeated, so that a silent daemon can be told from a slow registry.
HEARTBEAT: Final = 5.0
# Entries per piece: a few ms of work, then other tasks get their turn.
_ENTRIES_PER_PIECE: Final = 256


async def get_version(services: Services, _values: Values) -> Response:
    """Who answers."""
    return json_response(encoding.encode_info(services.info()))


async def get_metrics(services: Services, _values: Values) -> Response:
    """Everything that is counted."""
    # Counted here, in one moment; written in a thread, as the loop has requests to answer. A limit
    # of its own: threads that wait for the filesystem must not be in the way.
    return await trio.to_thread.run_sync(
        _render_metrics, services.info(), services.statistics(), limiter=trio.CapacityLimiter(1)
    )


def _render_metrics(info: DaemonInfo, statistics: Statistics) -> Response:
    # The library takes 15 to 90 ms to import: a daemon that nobody scrapes does without.
    from imgvol.api import metrics

    return Response(media_type=metrics.MEDIA_TYPE, body=metrics.render(info, statistics))


async def get_preload(services: Services, _values: Values) -> Response:
    """What has become of the preload directory."""
    status = services.preload()
    # A directory may have thousands of files, each with many images.
    return await trio.to_thread.run_sync(
        lambda: json_response(encoding.encode_preload(status)), limiter=trio.CapacityLimiter(1)
    )


async def list_images(services: Services, _values: Values) -> Response:
    """All images."""
    images = await services.images.list()
    evicted = await services.images.evicted()
    return json_response(
        {
            "images": [encoding.encode_image(image) for image in images],
            "evicted": [encoding.encode_evicted(image) for image in evicted],
        }
    )


async def inspect_image(services: Services, values: Values) -> Response:
    """One image with its documents."""
    image = await services.images.find(values.text("image"), platform=values.optional("platform"))
    manifest, config = await services.images.documents(image)
    document = {"image": encoding.encode_image(image), "manifest": manifest, "config": config}
    # The documents may have megabytes.
    return await trio.to_thread.run_sync(json_response, document)


async def remove_image(services: Services, values: Values) -> Response:
    """Drop a name of an image, or, by force, the image with all of them."""
    images = services.images
    remove = images.remove_image if values.flag("force") else images.remove
    report = await remove(values.text("image"))
    return json_response(encoding.encode_removal(report))


async def pull_image(services: Services, values: Values) -> Stream:
    """Pull, telling how far it is."""

    async def work(progress: PullProgress) -> encoding.Document:
        image = await services.images.pull(
            values.text("image"),
            platform=values.optional("platform"),
            options=options_with_login(values),
            progress=progress,
        )
        return {"image": encoding.encode_image(image)}

    return with_progress(work)


async def mount_volume(services: Services, values: Values) -> Stream:
    """Pull if needed and mount, telling how far it is."""
    target = values.optional("target")
    if target is not None and not target.startswith("/"):
        raise InvalidArgument("target is not an absolute path", target=target)
    bind = _bind_options(values)
    showing = _showing(values)

    async def work(progress: PullProgress) -> encoding.Document:
        volume = await services.volumes.mount(
            values.text("image"),
            target,
            sandbox=values.text("sandbox"),
            platform=values.optional("platform"),
            pull=cast("PullPolicy", values.text("pull")),  # one of the field's choices
            options=options_with_login(values),
            bind=bind,
            patience=values.number("patience"),
            readiness=Readiness.of(
                lazy=values.text("lazy") == "auto", verify=values.text("verify") == "full"
            ),
            follows_trace=not values.flag("no_trace"),
            showing=showing,
            progress=progress,
        )
        return {"volume": encoding.encode_volume(volume)}

    return with_progress(work)


def _showing(values: Values) -> Showing | None:
    """What is shown of an image while it is pulled; None: nothing is mounted before."""
    is_trusted = values.text("verify") == "stream"
    wait = values.optional("wait") or ("manifest" if is_trusted else "index")
    if wait == "index":
        return None
    if values.text("lazy") != "auto":
        raise InvalidArgument(
            "what is shown while it is pulled is not in the store first",
            hint="Wait for everything, or mount at once.",
        )
    if values.text("verify") == "full":
        raise InvalidArgument(
            "what is shown while it is pulled is not verified first",
            hint="Leave out --wait=manifest, or --verify=full.",
        )
    return Showing.ARRIVING if is_trusted else Showing.VERIFIED


async def list_volumes(services: Services, _values: Values) -> Response:
    """All volumes."""
    volumes = await services.volumes.list()
    return json_response({"volumes": [encoding.encode_volume(volume) for volume in volumes]})


async def unmount_volume(services: Services, values: Values) -> Response:
    """Undo a mount."""
    volume = await services.volumes.unmount(values.text("volume"), detach=values.flag("detach"))
    return json_response(encoding.encode_volume(volume))


async def list_files(services: Services, values: Values) -> Stream:
    """Entries of an image, one line each."""
    return Stream(media_type=NDJSON, produce=partial(_send_entries, services, values))


async def read_file(services: Services, values: Values) -> Stream:
    """The bytes of one file."""
    return Stream(media_type=OCTETS, produce=partial(_send_content, services, values))


async def sum_files(services: Services, values: Values) -> Response:
    """How much is below a path."""
    image = await services.images.find(values.text("image"), platform=values.optional("platform"))
    async with services.images.open_view(image) as view:
        usage = await services.inspection.usage(view, values.path("path"))
    return json_response(encoding.encode_numbers(usage))


async def get_usage(services: Services, _values: Values) -> Response:
    """What the store holds."""
    return json_response(encoding.encode_numbers(await services.images.usage()))


async def plan_collection(services: Services, _values: Values) -> Response:
    """Why each thing that is stored stays, or that it would go."""
    fates = await services.images.explain_collection()
    return json_response({"things": [encoding.encode_fate(fate) for fate in fates]})


async def collect_garbage(services: Services, _values: Values) -> Response:
    """Remove what nobody needs."""
    return json_response(encoding.encode_collection(await services.images.collect()))


async def check_store(services: Services, _values: Values) -> Response:
    """What is wrong with the store and the mounts."""
    findings = await services.check()
    return json_response({"wrong": [encoding.encode_finding(finding) for finding in findings]})


async def scrub_images(services: Services, values: Values) -> Stream:
    """Read data again, telling how far it is."""
    image = values.optional("image")
    progress = ScrubProgress()

    async def work() -> encoding.Document:
        faults = await services.scrub(
            [] if image is None else [image],
            repair=values.flag("repair"),
            options=_options(values),
            progress=progress,
        )
        found = [encoding.encode_numbers(fault) for fault in faults]
        return {"checked": progress.checked, "faults": found}

    def snapshot() -> encoding.Document:
        return {"event": "progress", **encoding.encode_numbers(progress)}

    return Stream(media_type=NDJSON, produce=partial(report_work, work, snapshot))


async def stop_daemon(services: Services, values: Values) -> Response:
    """End the daemon, once this answer is out."""
    volumes = await services.volumes.list()
    if volumes and not values.flag("force"):
        raise Conflict(
            "volumes are mounted, and would be gone",
            hint="Unmount them first, or: imgvol stop --force",
            volumes=len(volumes),
        )
    return Response(body=json_bytes({"stopping": True}), after=services.stop)


def _options(values: Values) -> PullOptions:
    return PullOptions(
        plain_http=values.flag("plain_http"),
        insecure=values.flag("insecure"),
        ca_file=values.optional("ca_file"),
    )


def options_with_login(values: Values) -> PullOptions:
    """How a registry is reached, and whom to be there."""
    login = parse_auth_config(
        username=values.optional("username") or "",
        password=values.optional("password") or "",
        auth=values.optional("auth") or "",
        identity_token=values.optional("identity_token") or "",
        registry_token=values.optional("registry_token") or "",
    )
    return replace(_options(values), credential=login)


def _bind_options(values: Values) -> BindOptions:
    return BindOptions(
        noexec=values.flag("noexec"),
        nosymfollow=values.flag("nosymfollow"),
        uid_mappings=parse_mappings(values.text("uid_mappings")),
        gid_mappings=parse_mappings(values.text("gid_mappings")),
        propagation=Propagation.parse(values.text("propagation")),
        selinux_relabel=values.flag("selinux_relabel"),
        sub_path=values.path("sub_path"),
        escapes=Escapes(values.text("escapes")),
        dirs_only=values.flag("dirs_only"),
    )


def with_progress(work: Callable[[PullProgress], Awaitable[encoding.Document]]) -> Stream:
    """The answer that tells how far a pull is, then what came of it and what it took."""
    progress = PullProgress()

    async def pull() -> encoding.Document:
        result = await work(progress)
        return {**result, "stats": encoding.encode_stats(progress.stats)}

    snapshot = partial(encoding.encode_progress, progress)
    return Stream(media_type=NDJSON, produce=partial(report_work, pull, snapshot))


async def report_work(
    work: Callable[[], Awaitable[encoding.Document]],
    snapshot: Callable[[], encoding.Document],
    send: Send,
) -> None:
    """Run `work` and send snapshots; then its result, or raise what it raised."""
    finished = trio.Event()
    failure: Exception | None = None
    result: encoding.Document = {}
    async with trio.open_nursery() as nursery:
        # The reporter is asked to end, not cancelled: half a chunk would spoil the stream.
        nursery.start_soon(_report_progress, snapshot, finished, send)
        try:
            result = await work()
        except Exception as error:  # noqa: BLE001 - raised below, outside the nursery
            failure = error
        finally:
            finished.set()
    if failure is not None:
        raise failure
    await send(json_bytes({"event": "done", **result}))


async def _report_progress(
    snapshot: Callable[[], encoding.Document], finished: trio.Event, send: Send
) -> None:
    sent, sent_at = b"", trio.current_time()
    while True:
        with trio.move_on_after(PROGRESS_INTERVAL):
            await finished.wait()
            return
        line = json_bytes(snapshot())
        if line != sent or trio.current_time() - sent_at >= HEARTBEAT:
            sent, sent_at = line, trio.current_time()
            await send(line)


async def _send_entries(services: Services, values: Values, send: Send) -> None:
    image = await services.images.find(values.text("image"), platform=values.optional("platform"))
    async with services.images.open_view(image) as view:
        lines: list[bytes] = []
        count = 0
        entries = services.inspection.list_entries(
            view, values.path("path"), values.flag("recursive")
        )
        for entry in entries:
            count += 1
            lines.append(json_bytes(encoding.encode_entry(entry)))
            if len(lines) == _ENTRIES_PER_PIECE:
                await send(b"".join(lines))
                lines.clear()
        lines.append(json_bytes({"event": "done", "entries": count}))
        await send(b"".join(lines))


async def _send_content(services: Services, values: Values, send: Send) -> None:
    image = await services.images.find(values.text("image"), platform=values.optional("platform"))
    async with services.images.open_view(image) as view:
        pieces: Any = services.inspection.iter_content(view, values.path("path"))
        async with aclosing(pieces):
            async for piece in pieces:
                await send(piece)
