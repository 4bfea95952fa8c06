"""Records of the other rooms as JSON. The shapes are those of `schemas`; a test compares them."""

import dataclasses
from collections.abc import Mapping

from imgvol.api.services import DaemonInfo
from imgvol.content.check import Finding
from imgvol.content.reachability import Thing
from imgvol.content.records import EvictedImage, ImageRecord, LayerFault, LayerRecord, LeaseRecord
from imgvol.images.collection import CollectionReport, Fate
from imgvol.images.events import Event
from imgvol.images.ingest import LayerProgress
from imgvol.images.inspection import EntryInfo
from imgvol.images.local import RemovalReport
from imgvol.images.preload.status import PreloadedFile, PreloadStatus
from imgvol.images.pull import PullProgress
from imgvol.images.space import EvictionReport, SpaceStatus
from imgvol.images.status import LayerStatus
from imgvol.oci.digest import Digest
from imgvol.volumes.options import BindOptions
from imgvol.volumes.plan import MountRequest
from imgvol.volumes.sandboxes import LeaseDeletion
from imgvol.volumes.volume import Volume

Document = dict[str, object]


def path_text(path: bytes) -> str:
    """A path for JSON: surrogate escapes where it is not UTF-8."""
    return path.decode("utf-8", "surrogateescape")


def encode_info(info: DaemonInfo) -> Document:
    """`Version`."""
    return {"api": "v1", **dataclasses.asdict(info)}


def encode_layer(layer: LayerRecord) -> Document:
    """`Layer`."""
    return {
        "digest": str(layer.digest),
        "media_type": layer.media_type,
        "size": layer.size,
        "diff_id": str(layer.diff_id),
        "unpacked_size": layer.unpacked_size,
        "entries": layer.entries,
        "format": layer.format,
        "is_complete": layer.is_complete,
        "fault": None if layer.fault is None else encode_fault(layer.fault),
    }


def encode_fault(fault: LayerFault) -> Document:
    """`LayerFault`."""
    return {"kind": str(fault.kind), "reason": fault.reason}


def encode_image(image: ImageRecord) -> Document:
    """`Image`."""
    return {
        "id": str(image.id),
        "manifest": str(image.manifest),
        "media_type": image.media_type,
        "names": list(image.names),
        "pinned": image.is_pinned,
        "pinned_by": list(image.pinned_by),
        "platform": str(image.platform),
        "chain_id": str(image.chain_id),
        "layers": [encode_layer(layer) for layer in image.layers],
        "size": image.size,
        "created": image.created,
        "pulled_at": image.pulled_at,
    }


def encode_evicted(image: EvictedImage) -> Document:
    """`EvictedImage`."""
    return {
        "id": str(image.id),
        "manifest": str(image.manifest),
        "platform": image.platform,
        "names": list(image.names),
        "size": image.size,
    }


def encode_space(status: SpaceStatus) -> Document:
    """`Space`."""
    level, wanted = status.level, status.limits
    return {
        "used": level.used,
        "quota": wanted.quota,
        "min_free": wanted.min_free,
        "high_watermark": wanted.high,
        "low_watermark": wanted.low,
        "low": level.low,
        "high": level.high,
        "hard": level.hard,
        "seconds_above": level.seconds_above,
        "evictable_layers": status.layers,
        "evictable_spans": status.spans,
        "kept": dict(status.kept),
    }


def encode_eviction(report: EvictionReport) -> Document:
    """`Eviction`."""
    return {
        "used": report.used,
        "collected": report.collected,
        "evicted": [
            {
                "manifest": str(eviction.manifest),
                "layers": [str(layer) for layer in sorted(eviction.layers)],
                "size": eviction.size,
            }
            for eviction in report.evictions
        ],
        "spans": report.spans,
        "windows": report.windows,
        "given_back": report.given_back,
        "freed": report.freed,
    }


def encode_event(event: Event) -> Document:
    """`HappenedEvent`."""
    return {
        "event": event.kind,
        "at": event.at,
        "image": event.image,
        "id": None if event.id is None else str(event.id),
        "data": dict(event.data),
    }


def encode_preload(status: PreloadStatus | None) -> Document:
    """The preload directory; without one, all of it empty."""
    return {
        "directory": status and status.directory,
        "is_watched": status is not None and status.is_watched,
        "is_ready": status is None or status.is_ready,
        "is_busy": status is not None and status.is_busy,
        "imported": status.imported if status else 0,
        "unchanged": status.unchanged if status else 0,
        "failed": status.failed if status else 0,
        "problems": list(status.problems) if status else [],
        "files": [_encode_preloaded(each) for each in status.files] if status else [],
    }


def _encode_preloaded(preloaded: PreloadedFile) -> Document:
    return {
        "path": preloaded.path,
        "kind": preloaded.kind.value,
        "state": preloaded.state.value,
        "size": preloaded.size,
        "images": list(preloaded.images),
        "problems": list(preloaded.problems),
        "problem_count": preloaded.problem_count,
        "at": preloaded.at,
    }


def encode_removal(report: RemovalReport) -> Document:
    """`Removal`."""
    return {
        "untagged": [str(name) for name in report.untagged],
        "deleted": [str(digest) for digest in report.deleted],
        "freed": report.freed,
    }


def encode_fate(fate: Fate) -> Document:
    """`Fate`."""
    return {
        **_encode_thing(fate.thing),
        "size": fate.size,
        "reasons": [{"kind": str(root.kind), "name": root.name} for root in fate.reasons],
    }


def encode_collection(report: CollectionReport) -> Document:
    """`Collection`."""
    return {"removed": [_encode_thing(thing) for thing in report.removed], "freed": report.freed}


def encode_finding(finding: Finding) -> Document:
    """`Finding`."""
    return {
        "subject": finding.subject,
        "problem": finding.problem,
        "remedy": finding.remedy.value,
    }


def _encode_thing(thing: Thing) -> Document:
    return {"kind": str(thing.kind), "digest": str(thing.digest)}


def encode_volume(volume: Volume) -> Document:
    """`Volume`."""
    return {
        "id": volume.id,
        "sandbox": volume.sandbox,
        "image": volume.image,
        "image_id": str(volume.image_id) if volume.image_id else None,
        "chain_id": str(volume.chain_id) if volume.chain_id else None,
        "target": volume.target,
        "view": str(volume.view),
        "path": volume.path,
        "state": volume.state,
        "reason": volume.reason,
        "created_at": volume.created_at,
        "options": encode_bind_options(volume.options),
        "patience": volume.patience,
        "layers": [encode_layer_status(layer) for layer in volume.layers],
        "trace": None if volume.trace is None else encode_numbers(volume.trace),
    }


def encode_bind_options(options: BindOptions) -> Document:
    """`BindOptions`."""
    return {
        "noexec": options.noexec,
        "nosymfollow": options.nosymfollow,
        "uid_mappings": [str(mapping) for mapping in options.uid_mappings],
        "gid_mappings": [str(mapping) for mapping in options.gid_mappings],
        "propagation": options.propagation.value,
        "sub_path": path_text(options.sub_path),
        "escapes": options.escapes.value,
        "dirs_only": options.dirs_only,
    }


def encode_layer_status(layer: LayerStatus) -> Document:
    """`LayerStatus`."""
    return {**dataclasses.asdict(layer), "digest": str(layer.digest)}


def encode_mount(mount: MountRequest) -> Document:
    """`SandboxMount`."""
    return dataclasses.asdict(mount)


def encode_lease(lease: LeaseRecord) -> Document:
    """`Lease`."""
    return {
        "id": lease.id,
        "labels": dict(lease.labels),
        "created_at": lease.created_at,
        "expires": lease.duration,
        "remaining": lease.remaining,
        "digests": sorted(map(str, lease.digests)),
    }


def encode_deletion(deletion: LeaseDeletion) -> Document:
    """`LeaseDeletion`."""
    return dataclasses.asdict(deletion)


def encode_entry(entry: EntryInfo) -> Document:
    """`EntryEvent`."""
    return {
        "event": "entry",
        "path": path_text(entry.path),
        "type": entry.type.name.lower(),
        "mode": entry.mode & 0o7777,
        "uid": entry.uid,
        "gid": entry.gid,
        "size": entry.size,
        "mtime_ns": entry.mtime_ns,
        "rdev": entry.rdev,
        "target": path_text(entry.target) if entry.target else None,
        "ino": entry.ino,
        "nlink": entry.nlink,
        "layer": str(entry.layer) if entry.layer else None,
    }


def encode_layer_progress(layer: LayerProgress) -> Document:
    """`LayerProgress`."""
    return {
        "digest": str(layer.digest),
        "size": layer.size,
        "state": layer.state,
        "received": layer.received,
        "unpacked": layer.unpacked,
        "entries": layer.entries,
    }


def encode_progress(progress: PullProgress) -> Document:
    """`ProgressEvent`."""
    return {
        "event": "progress",
        "stage": progress.stage,
        "layers": [encode_layer_progress(layer) for layer in progress.layers],
        "stats": encode_stats(progress.stats),
    }


def encode_stats(stats: Mapping[str, float | int]) -> Document:
    """Rounded to microseconds: more digits are noise."""
    return {
        key: round(value, 6) if isinstance(value, float) else value for key, value in stats.items()
    }


def encode_numbers(record: object) -> Document:
    """A dataclass of numbers, possibly nested; keys of its mappings become text."""
    assert dataclasses.is_dataclass(record)
    return {f.name: _plain(getattr(record, f.name)) for f in dataclasses.fields(record)}


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Digest):
        return str(value)
    if dataclasses.is_dataclass(value):
        return encode_numbers(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return path_text(value)
    return str(value)
