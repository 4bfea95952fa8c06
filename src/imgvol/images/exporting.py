"""Writes images into one tar that is both an OCI layout and a docker-archive.

The store has no compressed blobs, and needs none for this: of a layer it keeps every byte of the
uncompressed tar, headers included (`content.card`). So the layers are written plain, under their
diff IDs, which the config names: the config is the same, and with it the image ID. The manifest is
another one, for it names other blobs.

There is one exception. A large file that the same layer replaces later is not kept; such a layer is
written with zeros in its place, which nobody can see in the image. But its diff ID is another one,
hence the config's, hence the image ID: the report says so.

Everything is hashed as it is written. The lists of images come last: what was cut off is none.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import trio

from imgvol.content.reachability import Root, RootKind, Thing, ThingKind
from imgvol.content.records import ImageRecord
from imgvol.content.store import Store
from imgvol.errors import InvalidArgument, NotFound, Unsupported
from imgvol.images.layer_tar import LayerTar, find_layer_tar
from imgvol.images.tar_output import TarOutput
from imgvol.oci import media_types
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.image_config import parse_image_config
from imgvol.oci.json import JSONValue
from imgvol.oci.manifest import Manifest, parse_manifest
from imgvol.oci.reference import Reference
from imgvol.sources.layout import CONTAINERD_NAME, LAYOUT_VERSION, REF_NAME, blob_path
from imgvol.sources.parse import RegistryImage, parse_image_argument
from imgvol.threads import run_cancellable


class Finder(Protocol):
    """What finds local images: the image service."""

    async def find(self, image: str, *, platform: str | None = None) -> ImageRecord:
        """The image of a name or an ID; raises NotFound."""

    async def find_by_id(self, image: str) -> ImageRecord | None:
        """The image of an ID; None if that is no ID of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedImage:
    """One image of the archive.

    Attributes:
        names: That it has there.
        manifest: Digest of its manifest there.
        id: Its image ID there.
        is_changed: Whether that is not the ID that it has here.
    """

    names: tuple[str, ...]
    manifest: Digest
    id: Digest
    platform: str
    is_changed: bool


@dataclass(slots=True)
class ExportProgress:
    """How far an export is; a plain object that it changes and others read.

    Attributes:
        written: Bytes of layers so far.
        total: Of all layers.
    """

    written: int = 0
    total: int = 0


class Exporter:
    """Exports images of a store. One per daemon."""

    def __init__(self, store: Store, finder: Finder) -> None:
        self._store = store
        self._finder = finder
        self._limiter = trio.CapacityLimiter(2)

    async def export(
        self,
        images: Sequence[str],
        output: int,
        *,
        platform: str | None = None,
        progress: ExportProgress,
    ) -> tuple[ExportedImage, ...]:
        """Writes images into one archive. An image named by its ID has no name there.

        Args:
            images: Names or IDs.
            output: An open file or pipe; it stays the caller's.
            platform: Which variant; None: this machine's.
            progress: Told how far it is.

        Raises:
            NotFound: An image is not here.
            Conflict: Not all of an image is here.
            Unsupported: It is an artifact.
            StoreDamaged: Its bytes have changed.
            LocalError: The output cannot be written.
        """
        if not images:
            raise InvalidArgument("name at least one image")
        chosen: dict[Digest, tuple[ImageRecord, dict[str, None]]] = {}
        for text in images:
            image, name = await self._find(text, platform)
            names = chosen.setdefault(image.manifest, (image, {}))[1]
            if name:
                names[name] = None
        things = [thing for image, _ in chosen.values() for thing in _things(image)]
        with self._store.pins.holding(Root(RootKind.EXPORT, ", ".join(images)), things):
            plans = [await self._plan(image, tuple(names)) for image, names in chosen.values()]
            blobs = {layer.digest: layer for plan in plans for layer in plan.layers}
            progress.total = sum(layer.size for layer in blobs.values())
            writing = _Writing(output, plans, list(blobs.values()), progress)
            await run_cancellable(writing.run, writing.cancel, limiter=self._limiter)
        return tuple(plan.outcome() for plan in plans)

    async def _find(self, text: str, platform: str | None) -> tuple[ImageRecord, str]:
        """An image, and the name by which it was asked for, if a registry could have it."""
        by_id = await self._finder.find_by_id(text)
        if by_id is not None:
            return by_id, ""
        argument = parse_image_argument(text)
        name = str(argument) if isinstance(argument, RegistryImage) else ""
        return await self._finder.find(text, platform=platform), name

    async def _plan(self, image: ImageRecord, names: tuple[str, ...]) -> "_Plan":
        if await self._store.records.image(image.manifest) is None:
            raise NotFound("the image was removed in this moment", image=image.manifest)
        if image.is_artifact:
            raise Unsupported("artifacts cannot be exported", image=image.manifest)
        raw = await self._store.read_blob(image.manifest)
        manifest = parse_manifest(raw, media_type=image.media_type, expected=image.manifest)
        assert isinstance(manifest, Manifest), "as it was when it was pulled"
        config = await self._store.read_blob(image.id)
        layers = [await find_layer_tar(self._store, layer, self._limiter) for layer in image.layers]
        return _Plan(image, names, manifest, config, layers)


class _Plan:
    """What one image becomes."""

    def __init__(
        self,
        image: ImageRecord,
        names: tuple[str, ...],
        manifest: Manifest,
        config: bytes,
        layers: Sequence[LayerTar],
    ) -> None:
        self.layers = layers
        self._image = image
        self._names = names
        self.config = _with_diff_ids(config, image.id, [layer.digest for layer in layers])
        described = [
            Descriptor(media_type=media_types.OCI_LAYER, digest=layer.digest, size=layer.size)
            for layer in layers
        ]
        self._config_digest = Digest.of(self.config)
        document = {
            "schemaVersion": 2,
            "mediaType": media_types.OCI_MANIFEST,
            "config": Descriptor(
                media_type=media_types.OCI_CONFIG,
                digest=self._config_digest,
                size=len(self.config),
            ).to_json(),
            "layers": [layer.to_json() for layer in described],
        }
        if manifest.annotations:
            document["annotations"] = dict(manifest.annotations)
        self.manifest = _json(document)

    def outcome(self) -> ExportedImage:
        """What to tell of it."""
        return ExportedImage(
            names=self._names,
            manifest=Digest.of(self.manifest),
            id=self._config_digest,
            platform=self._image.platform,
            is_changed=self._config_digest != self._image.id,
        )

    def entries(self) -> list[dict[str, JSONValue]]:
        """For index.json: one for each name."""
        entries = []
        platform = parse_image_config(self.config).platform
        for name in self._names or ("",):
            annotations = {}
            if name:
                annotations[CONTAINERD_NAME] = name
                if tag := Reference.parse(name).tag:
                    annotations[REF_NAME] = tag
            descriptor = Descriptor(
                media_type=media_types.OCI_MANIFEST,
                digest=Digest.of(self.manifest),
                size=len(self.manifest),
                annotations=annotations,
                platform=platform,
            )
            entries.append(descriptor.to_json())
        return entries

    def item(self) -> dict[str, object]:
        """For manifest.json, which knows no names with digests."""
        references = [Reference.parse(name) for name in self._names]
        return {
            "Config": blob_path(self._config_digest),
            "RepoTags": [one.familiar() for one in references if one.tag] or None,
            "Layers": [blob_path(layer.digest) for layer in self.layers],
        }


class _Writing:
    """Writes the archive. Use once: `run` blocks, `cancel` ends it."""

    def __init__(
        self,
        output: int,
        plans: Sequence[_Plan],
        layers: Sequence[LayerTar],
        progress: ExportProgress,
    ) -> None:
        self._tar = TarOutput(output)
        self._plans = plans
        self._layers = layers
        self._progress = progress

    def cancel(self) -> None:
        """Ends `run` soon, from any thread."""
        self._tar.cancel()

    def run(self) -> None:
        """Does it all; blocks."""
        tar = self._tar
        tar.file("oci-layout", _json({"imageLayoutVersion": LAYOUT_VERSION}))
        algorithms = {layer.digest.algorithm for layer in self._layers} | {"sha256"}
        for directory in ("blobs", *(f"blobs/{name}" for name in sorted(algorithms))):
            tar.directory(directory)
        documents = {Digest.of(raw): raw for p in self._plans for raw in (p.config, p.manifest)}
        for digest, raw in documents.items():
            tar.file(blob_path(digest), raw)
        for layer in self._layers:
            tar.stream(blob_path(layer.digest), layer.size, self._iter_verified(layer))
        entries = [entry for plan in self._plans for entry in plan.entries()]
        index = {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": entries}
        tar.file("index.json", _json(index))
        tar.file("manifest.json", _json([plan.item() for plan in self._plans]))
        tar.end()

    def _iter_verified(self, layer: LayerTar) -> Iterator[bytes]:
        hasher = layer.digest.hasher()
        for piece in layer.iter_pieces():
            hasher.update(piece)
            yield piece
            self._progress.written += len(piece)
        if Digest.from_hasher(hasher) != layer.digest:
            raise layer.changed()


def _things(image: ImageRecord) -> list[Thing]:
    layers = [Thing(ThingKind.LAYER, layer.digest) for layer in image.layers]
    return [*layers, Thing(ThingKind.IMAGE, image.manifest)]


def _with_diff_ids(config: bytes, image_id: Digest, diff_ids: Sequence[Digest]) -> bytes:
    """A config that names these layers: the very same one, if it does already."""
    known = parse_image_config(config, expected=image_id).diff_ids
    if list(known) == list(diff_ids):
        return config
    document = json.loads(config)
    document["rootfs"] = {"type": "layers", "diff_ids": [str(digest) for digest in diff_ids]}
    return _json(document)


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
