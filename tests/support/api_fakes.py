"""Fakes of the rooms behind the control API, and a daemon made of them.

`python -m support.api_fakes DIRECTORY` (with tests/ on the path) serves them at
DIRECTORY/imgvol.sock: for looking at the commands by hand.
"""

import contextlib
import os
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import sentinel

import trio

from fuzz import seeds
from imgvol import __version__, limits
from imgvol.api.cri.tallies import CallCounts, CallTallies
from imgvol.api.routes import make_dispatch
from imgvol.api.server import ApiServer
from imgvol.api.services import DaemonInfo, Services, Statistics
from imgvol.config import SpaceLimits
from imgvol.content.check import Finding, Remedy
from imgvol.content.eviction import Eviction
from imgvol.content.reachability import Root, RootKind, Thing, ThingKind
from imgvol.content.records import (
    EvictedImage,
    IndexedBlob,
    IndexRecord,
    LayerIndexRecord,
    LeaseRecord,
    Origin,
    TraceRecord,
)
from imgvol.content.space import SpaceLevel
from imgvol.content.store import StoreUsage
from imgvol.errors import Conflict, DigestMismatch, InvalidArgument, NotFound
from imgvol.images.collection import CollectionReport, Fate
from imgvol.images.events import IMAGE_REMOVED, PULL_FAILED, Event, Subscription
from imgvol.images.exporting import ExportedImage
from imgvol.images.fetch.engine import EngineStatistics
from imgvol.images.fetch.flight import Landing, Purpose
from imgvol.images.importing import ImportedImage, ImportReport, PassedOver
from imgvol.images.inspection import LayerUsage, TreeUsage
from imgvol.images.lazy import LazyStatistics
from imgvol.images.scrubbing import ScrubFault
from imgvol.images.service import PullStatistics
from imgvol.images.space import EvictionReport, SpaceStatistics, SpaceStatus
from imgvol.images.status import LayerStatus
from imgvol.images.views import ViewStatistics
from imgvol.layers.index import NodeType
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.publish.conversion import (
    ConversionReport,
    ConvertedImage,
    ConvertedLayer,
    LayerProgress,
)
from imgvol.publish.indexes import IndexingLayer
from imgvol.publish.pushing import Pushed
from imgvol.tallies import (
    LOOP_BOUNDS,
    PULL_BOUNDS,
    WAIT_BOUNDS,
    Histogram,
    QueueLength,
    RequestTallies,
    Result,
    WaitCounts,
)
from imgvol.volumes.plan import answer
from imgvol.volumes.sandboxes import LeaseDeletion

INDEX = IndexRecord(
    manifest=Digest.of(b"manifest"),
    target=Digest.of(b"manifest"),
    name="registry.example.com/app:1",
    platform="linux/amd64",
    origin=Origin(
        argument="registry.example.com/app:1", plain_http=False, insecure=False, ca_file=None
    ),
    layers=(
        LayerIndexRecord(
            digest=Digest.of(b"layer"),
            diff_id=Digest.of(b"diff"),
            media_type="application/vnd.oci.image.layer.v1.tar+gzip",
            size=60_000_000,
            span_size=4 << 20,
            spans=41,
            ztoc=IndexedBlob(digest=Digest.of(b"ztoc"), size=2_300_000),
            twin=IndexedBlob(digest=Digest.of(b"twin"), size=370_000),
        ),
        LayerIndexRecord(
            digest=Digest.of(b"small"),
            diff_id=Digest.of(b"diff"),
            media_type="application/vnd.oci.image.layer.v1.tar",
            size=1000,
            reason="small: sooner fetched than looked up",
        ),
    ),
    documents=frozenset(),
    created_at=1_700_000_000.0,
)


class FakeIndexes:
    """One index; the image `empty` has no layer worth one."""

    registries = None

    def __init__(self):
        self.requests = []

    async def create(self, request, progress):
        self.requests.append(request)
        progress.layers = [
            IndexingLayer(layer.digest, layer.size, "done", layer.size) for layer in INDEX.layers
        ]
        if "empty" in request.image:
            return replace(INDEX, layers=INDEX.layers[1:])
        return INDEX

    async def kept(self, image=None):
        if image is not None and "app" not in image:
            raise NotFound("there is no index of this image here", image=image)
        return [INDEX]

    async def remove(self, image):
        return await self.kept(image)

    async def push_referrers(self, image, pusher, progress):
        return Pushed(digest=INDEX.manifest, name=f"{image}@{INDEX.manifest}", uploaded=3)

    async def push_image(self, image, pusher, tag, progress):
        await self.kept(image)
        return Pushed(digest=INDEX.manifest, name=f"{pusher.repository}:{tag}", existing=4)


def cri_calls() -> CallCounts:
    tallies = CallTallies()
    tallies.end("ListImages", tallies.begin("ListImages"), "OK")
    tallies.begin("PullImage")
    return tallies.snapshot()


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def make_layer(number: int, size: int = 1_000_000) -> SimpleNamespace:
    return SimpleNamespace(
        digest=digest(0xABC000 + number),
        media_type="application/vnd.oci.image.layer.v1.tar+gzip",
        size=size,
        diff_id=digest(0xDEF000 + number),
        unpacked_size=size * 3,
        entries=100 + number,
        format="tar",
        is_complete=True,
        fault=None,
    )


def make_image(name: str = "docker.io/library/alpine:3.20", *, layers: int = 2) -> SimpleNamespace:
    return SimpleNamespace(
        id=digest(0x111 << 240),
        manifest=digest(0x222 << 240),
        media_type="application/vnd.oci.image.manifest.v1+json",
        names=(name,),
        is_pinned=False,
        pinned_by=(),
        platform="linux/amd64",
        chain_id=digest(0x333 << 240),
        layers=tuple(make_layer(n, size=20_000_000 * (n + 1)) for n in range(layers)),
        size=sum(20_000_000 * (n + 1) for n in range(layers)),
        created="2024-05-01T12:00:00Z",
        pulled_at=1_714_000_000.0,
    )


def make_entry(path: bytes, kind: str = "FILE", **changes: object) -> SimpleNamespace:
    values = {
        "path": path,
        "type": NodeType[kind],
        "mode": 0o755 if kind == "DIRECTORY" else 0o644,
        "uid": 0,
        "gid": 0,
        "size": 0 if kind == "DIRECTORY" else 1234,
        "mtime_ns": 1_714_000_000_000_000_000,
        "rdev": 0,
        "target": b"",
        "ino": 4_294_967_297,
        "nlink": 1,
        "layer": digest(0xABC000),
    }
    return SimpleNamespace(**{**values, **changes})


GONE = Thing(ThingKind.LAYER, Digest.parse(digest(0xABC001)))

TREE = {
    b"/": make_entry(b"/", "DIRECTORY"),
    b"/bin": make_entry(b"/bin", "SYMLINK", target=b"usr/bin", mode=0o777),
    b"/etc": make_entry(b"/etc", "DIRECTORY"),
    b"/etc/os-release": make_entry(b"/etc/os-release"),
    b"/etc/evil\x1b]0;owned\x07": make_entry(b"/etc/evil\x1b]0;owned\x07", size=3),
    b"/etc/latin\xe9.conf": make_entry(b"/etc/latin\xe9.conf", size=3),
    b"/etc/two words": make_entry(b"/etc/two words", size=3),
    b"/null": make_entry(b"/null", "CHAR", rdev=os.makedev(1, 3), size=0),
}


def store_usage() -> StoreUsage:
    return StoreUsage(
        images=2,
        layers=5,
        blobs_size=12_345,
        layers_size=123_456_789,
        linked_size=1_000_000,
        copied_spans=300,
        copied_bytes=8_000_000,
        cloned_bytes=6_000_000,
        shared_layers=2,
        shared_bytes=50_000_000,
        disk_size=100_000_000_000,
        disk_free=40_000_000_000,
    )


def tree_usage() -> TreeUsage:
    layer = LayerUsage(layer=Digest.parse(digest(0xABC000)), entries=1234, bytes=7_900_000)
    return TreeUsage(
        entries=1234, files=1000, directories=200, symlinks=34, bytes=7_900_000, layers=[layer]
    )


def observed(bounds: tuple[float, ...], *seconds: float):
    histogram = Histogram(bounds)
    for one in seconds:
        histogram.observe(one)
    return histogram.snapshot()


def requests_of(**results: Result):
    """One answered request of each of these kinds."""
    tallies = RequestTallies()
    tallies.bytes_read = 4096
    tallies.passed_opens, tallies.backing_files = 6, 2
    for operation, result in results.items():
        tally = tallies.of(operation)
        tally.end(tally.begin(), result)
    return tallies.snapshot()


def statistics(**changes: object) -> Statistics:
    values = {
        "requests": requests_of(lookup=Result.OK, read=Result.FAILED),
        "views": ViewStatistics(
            published=2,
            looked_into=1,
            lingering=0,
            complete=3,
            settled=1,
            lazy=2,
            bad=0,
            missing=1_000_000,
            waiting=0,
            unsafe=0,
        ),
        "fetching": EngineStatistics(
            flights={(Purpose.READ, Landing.OK): 7, (Purpose.BACKGROUND, Landing.FAILED): 1},
            fetched={Purpose.READ: 700_000},
            needed=500_000,
            seconds=observed(WAIT_BOUNDS, 0.03, 0.3),
            queue=QueueLength(8, 3),
            demand=WaitCounts(
                seconds=observed(WAIT_BOUNDS, 0.001, 0.02, 100.0), waiting=2, oldest=1.5
            ),
            demand_bytes=8192,
            sources=1,
        ),
        "lazy": LazyStatistics(verified=4, bad=0, completing=QueueLength(1, 0)),
        "pulls": PullStatistics(
            succeeded=5,
            failed=2,
            cancelled=1,
            seconds=observed(PULL_BOUNDS, 1.0, 2.0),
            received=10_000,
            unpacked=30_000,
            under_way=1,
            layers=QueueLength(2, 6),
        ),
        "disk": QueueLength(0, 0),
        "volumes": 3,
        "is_serving": True,
        "space": SpaceStatistics(
            level=SpaceLevel(used=70, low=80, high=90, hard=100, seconds_above=1.5),
            rounds=2,
            images=1,
            evicted=4_000,
            spans=5,
            given_back=6_000,
        ),
        "cri": cri_calls(),
        "loop_blocked": observed(LOOP_BOUNDS, 7.0),
        "worker_restarts": 3,
    }
    return Statistics(**{**values, **changes})


class FakeImages:
    """Holds what was asked; `pull_steps` and `pull_error` say how a pull goes."""

    def __init__(self) -> None:
        self.images = {"docker.io/library/alpine:3.20": make_image()}
        self.calls: list[tuple] = []
        self.pull_steps = 1
        self.pull_pause = 0.0
        self.pull_error: Exception | None = None
        self.pull_started = threading.Event()
        self.pull_cancelled = threading.Event()

    async def pull(self, image, *, platform, options, progress):
        self.calls.append(("pull", image, platform, options))
        self.pull_started.set()
        found = make_image(canonical(image), layers=3)
        try:
            await self._go_through(found, progress)
        except trio.Cancelled:
            self.pull_cancelled.set()
            raise
        if self.pull_error is not None:
            raise self.pull_error
        self.images[found.names[0]] = found
        return found

    @property
    def importer(self):
        return self

    exporter = importer

    async def import_archive(self, path, *, stream, link, platforms, base_name, digests, progress):
        options = (link, tuple(platforms), base_name, digests)
        self.calls.append(("import", path, stream, options))
        found = make_image(canonical("imported:1"), layers=2)
        await self._go_through(found, progress)
        image = ImportedImage(
            names=found.names, manifest=found.manifest, id=found.id, platform=found.platform
        )
        left = PassedOver(what="v2", reason="it has no name", is_whole=True)
        return ImportReport(images=(image,), passed_over=(left,))

    async def export(self, images, output, *, platform, progress):
        self.calls.append(("export", tuple(images), output, platform))
        found = [await self.find(image, platform=platform) for image in images]
        progress.total = 2_000
        await trio.sleep(0.05)
        progress.written = 2_000
        return [
            ExportedImage(
                names=image.names,
                manifest=image.manifest,
                id=image.id,
                platform=image.platform,
                is_changed=False,
            )
            for image in found
        ]

    async def _go_through(self, found, progress):
        progress.layers = [
            SimpleNamespace(
                digest=layer.digest,
                size=layer.size,
                state="exists" if number == 0 else "waiting",
                received=0,
                unpacked=0,
                entries=0,
            )
            for number, layer in enumerate(found.layers)
        ]
        progress.stage = "pulling"
        for step in range(1, self.pull_steps + 1):
            await trio.sleep(self.pull_pause)
            for number, layer in enumerate(progress.layers[1:], start=1):
                # Later layers lag behind.
                done = max(0.0, min(1.0, step / self.pull_steps * 1.5 - 0.1 * number))
                layer.received = int(layer.size * done)
                layer.unpacked = layer.received * 3
                layer.state = (
                    "done" if step == self.pull_steps else "pulling" if done else "waiting"
                )
        progress.stage = "done"
        progress.stats.update(
            resolve_seconds=0.12,
            total_seconds=3.4,
            received_bytes=120_000_000,
            unpacked_bytes=360_000_000,
            entries=306,
            receive_seconds=2.2,
            decompress_seconds=1.1,
        )

    async def find(self, image, *, platform=None):
        self.calls.append(("find", image, platform))
        try:
            return self.images[canonical(image)]
        except KeyError:
            hint = f"Pull it first: imgvol pull {image}"
            raise NotFound("image is not in the store", hint=hint, image=image) from None

    async def list(self):
        return list(self.images.values())

    async def evicted(self):
        return [
            EvictedImage(
                id=Digest.of(b"gone"),
                manifest=Digest.of(b"gone manifest"),
                platform="linux/amd64",
                names=("docker.io/library/gone:1",),
                size=5_000_000,
            )
        ]

    async def remove(self, image):
        self.calls.append(("remove", image))
        found = await self.find(image)
        del self.images[found.names[0]]
        return SimpleNamespace(untagged=found.names, deleted=(found.manifest,), freed=found.size)

    async def remove_image(self, text):
        self.calls.append(("remove_image", text))
        return SimpleNamespace(untagged=(text,), deleted=(), freed=0)

    async def pin(self, image):
        self.calls.append(("pin", image))
        found = await self.find(image)
        found.is_pinned, found.pinned_by = True, ("user",)
        return found

    async def unpin(self, image):
        self.calls.append(("unpin", image))
        found = await self.find(image)
        found.is_pinned, found.pinned_by = image.endswith("config"), ("config",)
        return found

    async def documents(self, image):
        config = {"Env": ["PATH=/bin", "EVIL=\x1b[2J"], "Cmd": ["/bin/sh", "-c", "echo hi"]}
        return {"schemaVersion": 2}, {"os": "linux", "config": config}

    async def descriptor(self, record):
        return Descriptor(
            media_type=record.media_type, digest=Digest.parse(record.manifest), size=700
        )

    def open_view(self, record):
        @contextlib.asynccontextmanager
        async def hold():
            yield sentinel.view

        return hold()

    async def usage(self):
        return store_usage()

    async def explain_collection(self):
        image = Thing(ThingKind.IMAGE, Digest.parse(digest(0x222 << 240)))
        root = Root(RootKind.NAME, "docker.io/library/alpine:3.20")
        return (Fate(thing=image, size=0, reasons=(root,)), Fate(thing=GONE, size=4096, reasons=()))

    async def collect(self):
        self.calls.append(("collect",))
        return CollectionReport(removed=(GONE,), freed=4096)


def canonical(image: str) -> str:
    return image if "/" in image or ":" not in image else f"docker.io/library/{image}"


class FakeInspection:
    """A small tree; `content_error` breaks a file after its first piece."""

    def __init__(self) -> None:
        self.content = {b"/etc/os-release": [b"NAME=alpine\n", b"ID=alpine\n"], b"/empty": []}
        self.content_error: Exception | None = None
        self.extra: list[SimpleNamespace] = []

    def list_entries(self, view, path, recursive):
        if path.rstrip(b"/") not in {p.rstrip(b"/") for p in TREE}:
            raise NotFound("no such path in the image", path=path)
        prefix = path.rstrip(b"/") + b"/"
        if recursive:
            yield TREE[path.rstrip(b"/") or b"/"]
        for name, entry in sorted(TREE.items()):
            rest = name.removeprefix(prefix)
            if rest and rest != name and (recursive or b"/" not in rest):
                yield entry
        yield from self.extra

    async def usage(self, view, path):
        return tree_usage()

    async def iter_content(self, view, path):
        if path not in self.content:
            raise NotFound("no such path in the image", path=path)
        for number, piece in enumerate(self.content[path]):
            if number and self.content_error is not None:
                raise self.content_error
            yield piece


class FakeVolumes:
    def __init__(self, images: FakeImages) -> None:
        self.images = images
        self.volumes: dict[str, SimpleNamespace] = {}
        self.calls: list[dict] = []

    async def mount(self, image, target, *, options, progress, **habits):
        self.calls.append({"image": image, "target": target, "options": options, **habits})
        if any(v.target == target for v in self.volumes.values() if target):
            raise Conflict("the target is mounted already", target=target)
        found = await self.images.pull(
            image, platform=habits["platform"], options=options, progress=progress
        )
        volume = SimpleNamespace(
            id=f"{len(self.volumes):08x}",
            sandbox=habits["sandbox"],
            image=found.names[0],
            image_id=found.id,
            chain_id=found.chain_id,
            target=target,
            view="/run/imgvol/views/333",
            state="mounted",
            reason="",
            created_at=1_714_000_000.0,
            path=target or "/run/imgvol/views/333",
            options=habits["bind"],
            patience=habits["patience"],
            trace=None,
            layers=(
                LayerStatus(
                    digest=Digest.parse(digest(0xABC000)),
                    format="eStargz",
                    state="lazy",
                    size=20_000_000,
                    present=5_000_000,
                    fetched=6_000_000,
                    needed=4_000_000,
                ),
            ),
        )
        self.volumes[volume.id] = volume
        return volume

    async def unmount(self, target_or_id, *, detach=False):
        self.calls.append({"unmount": target_or_id, "detach": detach})
        for volume in self.volumes.values():
            if target_or_id in {volume.id, volume.target}:
                return self.volumes.pop(volume.id)
        raise NotFound("no such volume", hint="imgvol ps lists the volumes.", volume=target_or_id)

    async def list(self):
        return list(self.volumes.values())

    def find(self, target_or_id):
        for volume in self.volumes.values():
            if target_or_id in {volume.id, volume.target}:
                return SimpleNamespace(record=volume, image=make_image(), view=object())
        raise NotFound("no such volume", volume=target_or_id)


class FakeSandboxes:
    """Leases in memory; mounts get a path each."""

    def __init__(self) -> None:
        self.leases: dict[str, LeaseRecord] = {}
        self.calls: list[tuple] = []
        self.mount_error: Exception | None = None

    async def create_lease(self, lease_id, *, labels, duration, images=()):
        self.calls.append(("create", lease_id, labels, duration, images))
        lease = LeaseRecord(
            id=lease_id,
            created_at=1_714_000_000.0,
            labels=labels,
            duration=duration,
            remaining=duration,
            digests=frozenset({Digest.parse(digest(0x222 << 240))} if images else ()),
        )
        return self.leases.setdefault(lease_id, lease)

    async def renew_lease(self, lease_id, duration):
        self.calls.append(("renew", lease_id, duration))
        if lease_id not in self.leases:
            raise NotFound("no such lease", lease=lease_id)
        return self.leases[lease_id]

    async def list_leases(self, label=None):
        self.calls.append(("list", label))
        return list(self.leases.values())

    async def delete_lease(self, lease_id, *, drain, detach=False):
        self.calls.append(("delete", lease_id, drain, detach))
        existed = self.leases.pop(lease_id, None) is not None
        unmounted = ("/run/imgvol/volumes/pod/333",) if existed else ()
        return LeaseDeletion(lease=lease_id, existed=existed, unmounted=unmounted)

    async def mount(self, sandbox, requests, *, platform=None, dirs_only=False):
        self.calls.append(("mount", sandbox, requests, platform))
        if self.mount_error is not None:
            raise self.mount_error
        return [
            request if request.image is None else answer(request, f"/volumes/{sandbox}/{number}")
            for number, request in enumerate(requests)
        ]


class FakeTraces:
    def __init__(self) -> None:
        self.traces = [make_trace()]
        self.document_bytes = seeds.traces()[0]
        self.ended = trio.Event()

    async def record(self, image, view, *, progress, seconds):
        progress.recording, progress.is_recording, progress.files = "0123456789ab", True, 2
        with trio.move_on_after(seconds):
            await self.ended.wait()
        return make_trace()

    def finish(self, recording):
        if recording != "0123456789ab":
            raise NotFound("no such recording", recording=recording)
        self.ended.set()

    async def list(self):
        return self.traces

    async def find(self, image):
        if not self.traces:
            raise NotFound("the image has no trace", image=image.names[0])
        return self.traces[0]

    async def document(self, record):
        return self.document_bytes

    async def remove(self, image):
        return await self.find(image)

    async def push(self, pusher, subject, document, progress):
        self.pushed = (str(pusher.repository), subject, document)
        progress.stage = "done"
        return Pushed(
            digest=Digest.parse(digest(7)),
            name="example.com/x@sha256:7",
            uploaded=2,
            uploaded_bytes=len(document),
        )


def make_trace() -> TraceRecord:
    return TraceRecord(
        manifest=Digest.parse(digest(5)),
        document=Digest.parse(digest(6)),
        platform="linux/amd64",
        repository="docker.io/library/alpine",
        name="docker.io/library/alpine:3.20",
        source="recorded",
        files=2,
        read_bytes=4104,
        seconds=1.5,
        recorded_at=1_700_000_000.0,
    )


class FakeEvents:
    """Everything has happened already, and more than anybody could take; then the daemon ends."""

    @contextlib.asynccontextmanager
    async def subscribe(self, kinds=()):
        subscription = Subscription(frozenset(kinds))
        about = {"at": 1_714_000_000.0, "image": "docker.io/library/alpine:3.20"}
        failure = {"code": "not-found", "reason": "no such tag"}
        some_id = Digest.parse(digest(1))
        subscription.put(Event(kind=PULL_FAILED, id=None, data=failure, **about))
        for _ in range(limits.EVENT_QUEUE):
            subscription.put(Event(kind=IMAGE_REMOVED, id=some_id, data={}, **about))
        subscription.end()
        yield subscription


class FakeConverter:
    """Converts nothing, and says that it has."""

    def __init__(self):
        self.requests = []

    async def convert(self, request, progress):
        self.requests.append(request)
        before = blob("before")
        progress.layers.append(LayerProgress(before.digest, 2000))
        for stage in ("pull", "convert", "write"):
            progress.stage = stage
            progress.layers[0].done += 500
            await trio.sleep(0.03)
        converted = ConvertedLayer(
            before=before,
            after=blob("after"),
            diff_id=before.digest,
            unpacked_size=2000,
            files=3,
            prioritized=1,
            seconds=1.25,
        )
        kept = ConvertedLayer(
            before=before, after=before, diff_id=before.digest, reason="eStargz already"
        )
        image = ConvertedImage(
            platform="linux/amd64",
            manifest=Digest.of(b"m"),
            id=Digest.of(b"i"),
            layers=(converted, kept),
            missing=2,
        )
        return ConversionReport(
            name=request.target,
            digest=Digest.of(b"top"),
            images=(image,),
            left_out=("linux/s390x: an artifact",),
        )


def blob(name: str) -> Descriptor:
    data = name.encode()
    return Descriptor(
        media_type="application/vnd.oci.image.layer.v1.tar+gzip",
        digest=Digest.of(data),
        size=1000 * len(data),
    )


class FakeSpace:
    """A store of 70 bytes that may have 100."""

    async def status(self):
        return SpaceStatus(
            level=SpaceLevel(used=70, low=80, high=90, hard=100, seconds_above=1.5),
            limits=SpaceLimits(quota=100),
            layers=20,
            spans=30,
            kept={"mounted": 15, "pinned": 5},
        )

    async def plan(self, size):
        return EvictionReport(used=70, evictions=self._evictions(), windows=2, given_back=size)

    async def evict_to(self, size):
        return EvictionReport(
            used=70, collected=1, evictions=self._evictions(), windows=2, spans=3, given_back=size
        )

    def _evictions(self):
        layers = frozenset({Digest.of(b"one"), Digest.of(b"two")})
        return (Eviction(manifest=Digest.of(b"gone manifest"), layers=layers, size=20),)


class FakeDaemon:
    """All fakes, the services made of them, and whether somebody asked to stop."""

    def __init__(self, run: str = "/run/imgvol") -> None:
        self.images = FakeImages()
        self.inspection = FakeInspection()
        self.volumes = FakeVolumes(self.images)
        self.sandboxes = FakeSandboxes()
        self.events = FakeEvents()
        self.traces = FakeTraces()
        self.stopped = False
        self.preload = None
        self.statistics = statistics()
        self.on_stop = lambda: None
        self.indexes = FakeIndexes()
        self.converter = FakeConverter()
        self.services = Services(
            images=self.images,
            converter=self.converter,
            inspection=self.inspection,
            volumes=self.volumes,
            sandboxes=self.sandboxes,
            check=self.check,
            scrub=self.scrub,
            events=self.events,
            traces=self.traces,
            push_trace=self.traces.push,
            indexes=self.indexes,
            info=lambda: DaemonInfo(
                version=__version__,
                pid=os.getpid(),
                uid=os.getuid(),
                root="/var/lib/imgvol",
                run=run,
                views=f"{run}/views",
                is_system=os.getuid() == 0,
                can_mount=True,
                started_at=1_714_000_000.0,
            ),
            statistics=lambda: self.statistics,
            stop=self.stop,
            space=FakeSpace(),
            preload=lambda: self.preload,
        )

    async def check(self):
        return [Finding(subject="layers/0", problem="it is odd", remedy=Remedy.REMOVE)]

    async def scrub(self, images, *, repair, options, progress):
        self.images.calls.append(("scrub", tuple(images), repair, options))
        progress.total = 2_000
        await trio.sleep(0.15)
        progress.checked = 2_000
        fault = ScrubFault(
            subject=f"layer {digest(1)}", problem="odd", is_repaired=repair, outcome="pulled again"
        )
        return (fault,)

    def stop(self) -> None:
        self.stopped = True
        self.on_stop()


@contextlib.contextmanager
def served_in_thread(path, daemon: FakeDaemon, *, dispatch=None):
    """Serve a fake daemon from a thread of its own: the commands block."""
    ready = threading.Event()
    token: list = []
    scope = trio.CancelScope()

    async def serve() -> None:
        token.append(trio.lowlevel.current_trio_token())
        server = ApiServer(path, dispatch or make_dispatch(daemon.services))
        daemon.on_stop = scope.cancel
        with scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(server.run)
                ready.set()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    try:
        assert ready.wait(10)
        yield daemon
    finally:
        with contextlib.suppress(trio.RunFinishedError):
            token[0].run_sync_soon(scope.cancel)
        thread.join(10)
        assert not thread.is_alive()


def broken_content() -> DigestMismatch:
    return DigestMismatch("bytes do not match their digest", expected=digest(1), actual=digest(2))


def invalid_reference() -> InvalidArgument:
    return InvalidArgument("not an image reference", reference="UPPER\x1b[31m")


def main() -> None:
    directory = sys.argv[1]
    daemon = FakeDaemon(directory)
    daemon.images.pull_steps = int(os.environ.get("FAKE_STEPS", "60"))
    daemon.images.pull_pause = 0.1

    async def serve() -> None:
        with trio.CancelScope() as scope:
            daemon.on_stop = scope.cancel
            await ApiServer(f"{directory}/imgvol.sock", make_dispatch(daemon.services)).run()

    trio.run(serve)


if __name__ == "__main__":
    main()
