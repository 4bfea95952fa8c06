"""JSON Schemas (2020-12, as OpenAPI 3.1 uses them) of everything the API answers with."""

from typing import Final

from imgvol.api.pushing import PUSH_PROGRESS, PUSHED
from imgvol.content.records.traces import FOUND, RECORDED
from imgvol.images.events import KINDS
from imgvol.images.traces.run import RunState

Schema = dict[str, object]

_TEXT: Final[Schema] = {"type": "string"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_FLAG: Final[Schema] = {"type": "boolean"}
_SECONDS: Final[Schema] = {"type": "number", "description": "Seconds since the epoch."}
_DIGEST: Final[Schema] = {"type": "string", "pattern": "^[a-z0-9]+:[0-9a-f]{32,}$"}
_DIGEST_OR_NULL: Final[Schema] = {**_DIGEST, "type": ["string", "null"]}
_OPEN_OBJECT: Final[Schema] = {"type": "object"}


def reference(name: str) -> Schema:
    """A reference to a component."""
    return {"$ref": f"#/components/schemas/{name}"}


def array_of(items: Schema) -> Schema:
    """An array."""
    return {"type": "array", "items": items}


def record(properties: dict[str, Schema], *, optional: tuple[str, ...] = ()) -> Schema:
    """A closed object, all of whose members are required unless named in `optional`."""
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


def _or_null(kind: str) -> Schema:
    return {"type": [kind, "null"]}


def _event(name: str, properties: dict[str, Schema]) -> Schema:
    return record({"event": {"const": name}, **properties})


def _numbers(properties: dict[str, Schema]) -> Schema:
    # Usage may gain members: clients must ignore what they do not know.
    return {"type": "object", "properties": properties, "required": list(properties)}


_ERROR = record(
    {
        "code": {"type": "string", "description": "Stable word for the kind: `not-found` …"},
        "message": _TEXT,
        "hint": {"type": "string", "description": "What to do next; may be empty."},
        "retryable": {"type": "boolean", "description": "The same request can succeed later."},
        "fields": {"type": "object", "description": "The data behind the message."},
    }
)

_LAYER_FAULT = record(
    {"kind": {"enum": ["blob", "diff-id", "format", "toc", "damaged"]}, "reason": _TEXT}
)

_LAYER = record(
    {
        "digest": _DIGEST,
        "media_type": _TEXT,
        "size": _COUNT,
        "diff_id": _DIGEST,
        "unpacked_size": _COUNT,
        "entries": _COUNT,
        "format": _TEXT,
        "is_complete": _FLAG,
        "fault": {
            "oneOf": [{"type": "null"}, reference("LayerFault")],
            "description": "What a lazy layer turned out to be, or a stored one has become. Unless"
            " it is complete all the same (its tar is right), it cannot be mounted until it is"
            " pulled again.",
        },
    }
)

_IMAGE = record(
    {
        "id": _DIGEST,
        "manifest": _DIGEST,
        "media_type": _TEXT,
        "names": array_of(_TEXT),
        "pinned": _FLAG,
        "pinned_by": {
            **array_of(_TEXT),
            "description": "Who: user, config, rebuild, preload:FILE.",
        },
        "platform": _TEXT,
        "chain_id": _DIGEST,
        "layers": array_of(reference("Layer")),
        "size": _COUNT,
        "created": _or_null("string"),
        "pulled_at": _SECONDS,
    }
)

_COUNT_OR_NULL: Final[Schema] = {**_COUNT, "type": ["integer", "null"]}

_SPACE: Final = record(
    {
        "used": {**_COUNT, "description": "Bytes that the store takes."},
        "quota": _COUNT_OR_NULL,
        "min_free": _COUNT_OR_NULL,
        "high_watermark": {**_COUNT, "description": "Percent of the quota."},
        "low_watermark": {**_COUNT, "description": "Percent of the quota."},
        "low": {**_COUNT_OR_NULL, "description": "Eviction ends here; null: no limit."},
        "high": {**_COUNT_OR_NULL, "description": "It begins above this."},
        "hard": {**_COUNT_OR_NULL, "description": "Nothing is written beyond this."},
        "seconds_above": {
            "type": "number",
            "description": "How long it was above `high` since the daemon started.",
        },
        "evictable_layers": {**_COUNT, "description": "Of images that nobody uses."},
        "evictable_spans": {**_COUNT, "description": "Of lazy layers that are mounted."},
        "kept": {
            "type": "object",
            "additionalProperties": _COUNT,
            "description": "Bytes of layers that cannot be evicted as a whole, by reason.",
        },
    }
)

_EVICTION: Final = record(
    {
        "used": {**_COUNT, "description": "Bytes that the store took before."},
        "collected": {**_COUNT, "description": "Bytes of what nobody needed."},
        "evicted": array_of(
            record({"manifest": _DIGEST, "layers": array_of(_DIGEST), "size": _COUNT})
        ),
        "spans": _COUNT,
        "windows": {**_COUNT, "description": "Parts of mounted layers."},
        "given_back": {**_COUNT, "description": "Bytes of those parts."},
        "freed": {**_COUNT, "description": "Bytes in all."},
    }
)

_THING: Final[dict[str, Schema]] = {
    "kind": {"enum": ["image", "layer", "document", "view", "file"]},
    "digest": _DIGEST,
}

_FATE = record(
    {
        **_THING,
        "size": {**_COUNT, "description": "Bytes on disk; what layers share counts in each."},
        "reasons": {
            **array_of(record({"kind": _TEXT, "name": _TEXT})),
            "description": "Everything that keeps it: a name, a pin, a lease, a volume, an open"
            " view, a mount or a pull under way, a layer that is copied from it. None: it would be"
            " collected.",
        },
    }
)

_VOLUME = record(
    {
        "id": _TEXT,
        "sandbox": _TEXT,
        "image": _TEXT,
        "image_id": _DIGEST_OR_NULL,
        "chain_id": _DIGEST_OR_NULL,
        "target": _or_null("string"),
        "view": _TEXT,
        "path": {
            "type": "string",
            "description": "Where the files are: the target, or what of the view is asked for.",
        },
        "state": {"enum": ["mounted", "lost"]},
        "reason": {"type": "string", "description": "Why it is lost; it is empty otherwise."},
        "created_at": _SECONDS,
        "options": reference("BindOptions"),
        "patience": {"type": "number", "description": "Seconds that reads wait for a registry."},
        "layers": array_of(reference("LayerStatus")),
        "trace": {
            "anyOf": [reference("TraceUse"), {"type": "null"}],
            "description": "What a trace has done for it; null: nothing.",
        },
    }
)

_BIND_OPTIONS = record(
    {
        "noexec": _FLAG,
        "nosymfollow": _FLAG,
        "uid_mappings": array_of(_TEXT),
        "gid_mappings": array_of(_TEXT),
        "propagation": {"enum": ["private", "rslave"]},
        "sub_path": _TEXT,
        "escapes": {"enum": ["confine", "refuse"]},
        "dirs_only": _FLAG,
    }
)

_LEASE = record(
    {
        "id": _TEXT,
        "labels": {"type": "object", "additionalProperties": _TEXT},
        "created_at": _SECONDS,
        "expires": {
            "type": ["number", "null"],
            "description": "Seconds that it lasts once made or renewed; null: until it is deleted.",
        },
        "remaining": {
            "type": ["number", "null"],
            "description": "Seconds left, of a daemon that runs.",
        },
        "digests": {
            **array_of(_DIGEST),
            "description": "What it keeps: manifests of images, and content of pulls.",
        },
    }
)

_ID_MAPPING = record({"host_id": _COUNT, "container_id": _COUNT, "length": _COUNT})

_SANDBOX_MOUNT = record(
    {
        "container_path": _TEXT,
        "image": _or_null("string"),
        "host_path": {"type": "string", "description": "What the runtime has to bind."},
        "readonly": _FLAG,
        "image_sub_path": _TEXT,
        "propagation": _TEXT,
        "selinux_relabel": _FLAG,
        "recursive_read_only": _FLAG,
        "uid_mappings": array_of(reference("IDMapping")),
        "gid_mappings": array_of(reference("IDMapping")),
        "mount_options": array_of(_TEXT),
    }
)

_LAYER_STATUS = record(
    {
        "digest": _DIGEST,
        "format": _TEXT,
        "state": {
            "enum": ["streaming", "complete", "here", "lazy", "bad"],
            "description": "`streaming`: it is being pulled, and shown unverified. `complete`: all"
            " at hand and verified. `here`: all at hand, each part by a digest of its table of"
            " contents, the whole not proven.",
        },
        "size": _COUNT,
        "present": _COUNT,
        "fetched": _COUNT,
        "needed": _COUNT,
        "reason": _TEXT,
    }
)

_VERSION = record(
    {
        "version": _TEXT,
        "api": {"const": "v1"},
        "pid": {"type": "integer", "minimum": 1},
        "uid": _COUNT,
        "root": _TEXT,
        "run": _TEXT,
        "views": _TEXT,
        "is_system": _FLAG,
        "can_mount": _FLAG,
        "started_at": _SECONDS,
    }
)

_LAYER_PROGRESS = record(
    {
        "digest": _TEXT,
        "size": _COUNT,
        "state": {"enum": ["waiting", "pulling", "exists", "lazy", "done"]},
        "received": _COUNT,
        "unpacked": _COUNT,
        "entries": _COUNT,
    }
)

_BUNDLED: Final[dict[str, Schema]] = {
    "names": array_of(_TEXT),
    "id": _DIGEST,
    "manifest": _DIGEST,
    "platform": _TEXT,
}

ENTRY_TYPES: Final = ("file", "directory", "symlink", "char", "block", "fifo")

_ENTRY = _event(
    "entry",
    {
        "path": {
            "type": "string",
            "description": "Bytes that are not UTF-8 are lone surrogates U+DC80 to U+DCFF.",
        },
        "type": {"enum": list(ENTRY_TYPES)},
        "mode": {"type": "integer", "minimum": 0, "maximum": 0o7777},
        "uid": _COUNT,
        "gid": _COUNT,
        "size": _COUNT,
        "mtime_ns": {"type": "integer"},
        "rdev": {"type": "integer", "minimum": 0, "description": "As makedev(3) packs it."},
        "target": _or_null("string"),
        "ino": _COUNT,
        "nlink": _COUNT,
        "layer": _TEXT,
    },
)

_HAPPENED: Final = record(
    {
        "event": {"enum": list(KINDS)},
        "at": _SECONDS,
        "image": {"type": "string", "description": "Its name, as it was asked for."},
        "id": _DIGEST_OR_NULL,
        "data": {
            "type": "object",
            "description": "Of `pull.progress`: `stage` and more. Of `pull.failed`: `code` and "
            "`reason`.",
        },
    }
)

_STATS: Final[Schema] = {
    "type": "object",
    "additionalProperties": {"type": "number"},
    "description": "`<stage>_seconds` and `<stage>_bytes` belong together; others are counts.",
}

_INDEX_LAYER = record(
    {
        "digest": _DIGEST,
        "media_type": _TEXT,
        "size": _COUNT,
        "span_size": {**_COUNT, "description": "Plain bytes of a span; 0: not indexed."},
        "spans": _COUNT,
        "ztoc": {"oneOf": [{"type": "null"}, reference("IndexBlob")]},
        "twin": {
            "oneOf": [{"type": "null"}, reference("IndexBlob")],
            "description": "The same, compressed.",
        },
        "frames": {
            "oneOf": [{"type": "null"}, reference("IndexBlob")],
            "description": "What a zstd layer of several frames has in place of both.",
        },
        "reason": {"type": "string", "description": "Why it is left out; else empty."},
    }
)

_INDEX = record(
    {
        "image": _TEXT,
        "manifest": _DIGEST,
        "platform": _TEXT,
        "created_at": _SECONDS,
        "layers": array_of(reference("IndexLayer")),
    }
)

COMPONENTS: Final[dict[str, Schema]] = {
    "Problem": record({"error": reference("Error")}),
    "Error": _ERROR,
    "Version": _VERSION,
    "Layer": _LAYER,
    "Image": _IMAGE,
    "ImageList": record(
        {
            "images": array_of(reference("Image")),
            "evicted": {
                **array_of(reference("EvictedImage")),
                "description": "Those that are not here for want of room; a mount fetches them.",
            },
        }
    ),
    "EvictedImage": record(
        {
            "id": _DIGEST,
            "manifest": _DIGEST,
            "platform": _TEXT,
            "names": array_of(_TEXT),
            "size": _COUNT,
        }
    ),
    "Space": _SPACE,
    "Eviction": _EVICTION,
    "ImageDetails": record(
        {
            "image": reference("Image"),
            "manifest": _OPEN_OBJECT,
            "config": {"type": ["object", "null"], "description": "Null for an artifact."},
        }
    ),
    "Removal": record({"untagged": array_of(_TEXT), "deleted": array_of(_TEXT), "freed": _COUNT}),
    "Preload": record(
        {
            "directory": {**_or_null("string"), "description": "Null: there is none."},
            "is_watched": {**_FLAG, "description": "Changes are noticed as they happen."},
            "is_ready": {**_FLAG, "description": "All of the start has been dealt with."},
            "is_busy": {**_FLAG, "description": "A file is waited for or worked on."},
            "imported": {**_COUNT, "description": "Since the start, each time counted."},
            "unchanged": {**_COUNT, "description": "Not imported, as .cache.json knows them."},
            "failed": {**_COUNT, "description": "As a whole or in part, each time counted."},
            "problems": array_of(_TEXT),
            "files": array_of(reference("PreloadedFile")),
        }
    ),
    "PreloadedFile": record(
        {
            "path": _TEXT,
            "kind": {"enum": ["archive", "list"]},
            "state": {"enum": ["waiting", "working", "imported", "unchanged", "partial", "failed"]},
            "size": _or_null("integer"),
            "images": {
                **array_of(_TEXT),
                "description": "Names, and digests of manifests without a name.",
            },
            "problems": {**array_of(_TEXT), "description": "The first of them."},
            "problem_count": _COUNT,
            "at": _SECONDS,
        }
    ),
    "Fate": _FATE,
    "CollectionPlan": record({"things": array_of(reference("Fate"))}),
    "Collection": record({"removed": array_of(record(_THING)), "freed": _COUNT}),
    "Finding": record({"subject": _TEXT, "problem": _TEXT, "remedy": _TEXT}),
    "CheckReport": record({"wrong": array_of(reference("Finding"))}),
    "Volume": _VOLUME,
    "LayerFault": _LAYER_FAULT,
    "LayerStatus": _LAYER_STATUS,
    "BindOptions": _BIND_OPTIONS,
    "Lease": _LEASE,
    "LeaseList": record({"leases": array_of(reference("Lease"))}),
    "LeaseDeletion": record(
        {
            "lease": _TEXT,
            "existed": _FLAG,
            "unmounted": array_of(_TEXT),
            "detached": {**array_of(_TEXT), "description": "Those of them that were busy."},
        }
    ),
    "IDMapping": _ID_MAPPING,
    "SandboxMount": _SANDBOX_MOUNT,
    "SandboxMounts": record({"sandbox": _TEXT, "mounts": array_of(reference("SandboxMount"))}),
    "VolumeList": record({"volumes": array_of(reference("Volume"))}),
    "TraceUse": record(
        {
            "image": {**_DIGEST, "description": "The manifest of the image that was traced."},
            "source": {"enum": [RECORDED, FOUND]},
            "traced": _COUNT,
            "matched": {**_COUNT, "description": "Files of the trace that the image has."},
            "planned": {**_COUNT, "description": "Bytes that were missing of them."},
            "launched": {**_COUNT, "description": "Bytes that were asked for, so far."},
            "state": {"enum": [str(state) for state in RunState]},
        }
    ),
    "Trace": _OPEN_OBJECT,
    "TraceSummary": record(
        {
            "manifest": _DIGEST,
            "document": _DIGEST,
            "platform": _TEXT,
            "repository": {"type": "string", "description": "Empty: of this image only."},
            "name": _TEXT,
            "source": {"enum": [RECORDED, FOUND]},
            "files": _COUNT,
            "read_bytes": _COUNT,
            "seconds": {"type": "number", "minimum": 0},
            "recorded_at": _SECONDS,
        }
    ),
    "TraceList": record({"traces": array_of(reference("TraceSummary"))}),
    "RecordingEvent": _event(
        "progress",
        {
            "recording": {"type": "string", "description": "What finishing takes."},
            "is_recording": {**_FLAG, "description": "Reads are noted from now on."},
            "files": _COUNT,
            "read_bytes": _COUNT,
            "seconds": {"type": "number", "minimum": 0},
            "dropped": {**_COUNT, "description": "Reads that were too many to note."},
        },
    ),
    "PushEvent": _event("progress", {**PUSH_PROGRESS}),
    "PushedEvent": _event("done", {**PUSHED}),
    "RecordedEvent": _event("done", {"trace": reference("TraceSummary")}),
    "Finishing": record({"finishing": {"const": True}}),
    "TreeUsage": _numbers(
        {
            "entries": _COUNT,
            "files": _COUNT,
            "directories": _COUNT,
            "bytes": _COUNT,
            "layers": array_of(reference("LayerUsage")),
        }
    ),
    "LayerUsage": _numbers({"layer": _DIGEST, "entries": _COUNT, "bytes": _COUNT}),
    "StoreUsage": _numbers(
        {
            "images": _COUNT,
            "layers": _COUNT,
            "layers_size": _COUNT,
            "linked_size": _COUNT,
            "copied_spans": _COUNT,
            "copied_bytes": _COUNT,
            "cloned_bytes": _COUNT,
            "shared_layers": _COUNT,
            "shared_bytes": _COUNT,
            "disk_free": _COUNT,
        }
    ),
    "Stopping": record({"stopping": {"const": True}}),
    "OpenAPI": _OPEN_OBJECT,
    "LayerProgress": _LAYER_PROGRESS,
    "ProgressEvent": _event(
        "progress",
        {
            "stage": {"enum": ["resolving", "pulling", "done"]},
            "layers": array_of(reference("LayerProgress")),
            "stats": _STATS,
        },
    ),
    "ScrubEvent": _event("progress", {"checked": _COUNT, "total": _COUNT}),
    "ScrubbedEvent": _event(
        "done",
        {"checked": _COUNT, "faults": array_of(reference("ScrubFault"))},
    ),
    "ScrubFault": record(
        {
            "subject": _TEXT,
            "problem": _TEXT,
            "is_repaired": _FLAG,
            "outcome": _TEXT,
            "places": array_of(reference("DamagedPlace")),
        }
    ),
    "DamagedPlace": record({"offset": _COUNT, "size": _COUNT, "files": array_of(_TEXT)}),
    "ImportedEvent": _event(
        "done",
        {
            "images": array_of(reference("ImportedImage")),
            "passed_over": array_of(reference("PassedOver")),
            "stats": _STATS,
        },
    ),
    "ImportedImage": record(_BUNDLED),
    "PassedOver": record(
        {
            "what": _TEXT,
            "reason": _TEXT,
            "is_whole": {**_FLAG, "description": "Nothing of that image was imported."},
        }
    ),
    "ExportEvent": _event("progress", {"written": _COUNT, "total": _COUNT}),
    "ExportedEvent": _event(
        "done", {"images": array_of(reference("ExportedImage")), "size": _COUNT}
    ),
    "ExportedImage": record(
        {
            **_BUNDLED,
            "is_changed": {**_FLAG, "description": "The ID is not the one that it has here."},
        }
    ),
    "ConvertEvent": _event(
        "progress",
        {
            "stage": {"enum": ["pull", "convert", "write"]},
            "layers": array_of(record({"digest": _DIGEST, "size": _COUNT, "done": _COUNT})),
        },
    ),
    "ConvertedEvent": _event(
        "done",
        {
            "name": _TEXT,
            "digest": _DIGEST,
            "images": array_of(reference("ConvertedImage")),
            "left_out": array_of(_TEXT),
        },
    ),
    "ConvertedImage": record(
        {
            "platform": _TEXT,
            "manifest": _DIGEST,
            "id": _DIGEST,
            "missing": {**_COUNT, "description": "Files of the trace that it does not have."},
            "layers": array_of(reference("ConvertedLayer")),
        }
    ),
    "ConvertedLayer": record(
        {
            "before": reference("LayerBlob"),
            "after": reference("LayerBlob"),
            "diff_id": _DIGEST,
            "reason": {
                "type": "string",
                "description": "Why it was taken over as it is; empty: it was not.",
            },
            "unpacked_size": _COUNT,
            "files": _COUNT,
            "prioritized": _COUNT,
            "seconds": {"type": "number", "minimum": 0},
        }
    ),
    "LayerBlob": record({"digest": _DIGEST, "size": _COUNT, "media_type": _TEXT}),
    "PulledEvent": _event("done", {"image": reference("Image"), "stats": _STATS}),
    "MountedEvent": _event("done", {"volume": reference("Volume"), "stats": _STATS}),
    "HappenedEvent": _HAPPENED,
    "AliveEvent": _event("alive", {}),
    "LostEvent": _event("lost", {"count": _COUNT}),
    "Index": _INDEX,
    "IndexLayer": _INDEX_LAYER,
    "IndexBlob": record({"digest": _DIGEST, "size": _COUNT}),
    "IndexList": record({"indexes": array_of(reference("Index"))}),
    "IndexEvent": _event("progress", {"layers": array_of(reference("IndexingLayer"))}),
    "IndexingLayer": record(
        {
            "digest": _DIGEST,
            "size": _COUNT,
            "state": {"enum": ["waiting", "indexing", "exists", "done", "left out"]},
            "done": {**_COUNT, "description": "Bytes of the blob."},
        }
    ),
    "IndexedEvent": _event("done", {"index": reference("Index"), "kept": _FLAG}),
    "FarewellEvent": _event("done", {}),
    "ErrorEvent": _event("error", {"error": reference("Error")}),
    "EntryEvent": _ENTRY,
    "EndEvent": _event("done", {"entries": _COUNT}),
}
