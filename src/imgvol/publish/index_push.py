"""Pushes SOCI indexes: as referrers of the image, or with the image as one that names them.

Version 1 adds a manifest beside the image, in its own repository; the image is not touched. Version
2 makes another image, of the same layers: its manifests name their indexes, and an image index
holds both. That is pushed under a name of its own, with everything that it needs; what the registry
has, it keeps or takes from the image's repository. Other platforms of the image come along as they
are, for nobody should lose them by the new name.
"""

import io
import os
import tempfile
from collections.abc import Sequence
from functools import partial
from typing import BinaryIO

from imgvol import limits
from imgvol.content.records import IndexedBlob, IndexRecord
from imgvol.content.store import Store
from imgvol.errors import Conflict, Unsupported
from imgvol.layers.lazy import soci_writer
from imgvol.layers.lazy.soci_index import INDEX_V2
from imgvol.layers.lazy.soci_writer import ConvertedImage, IndexedLayer, WrittenDocument
from imgvol.oci import media_types
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.manifest import Index, Manifest, parse_manifest
from imgvol.oci.platform import Platform
from imgvol.oci.reference import Reference
from imgvol.publish.index_job import TOOL
from imgvol.publish.pushing import Blob, Document, Pushed, PushProgress, push_tree
from imgvol.registry.push import Pusher
from imgvol.sources.base import ImageSource
from imgvol.sources.parse import RegistryImage, parse_image_argument


def referrer_target(indexes: Sequence[IndexRecord]) -> Reference:
    """Where indexes of version 1 go: to the image.

    Raises:
        Unsupported: The image is of no registry.
    """
    argument = parse_image_argument(indexes[0].name)
    if not isinstance(argument, RegistryImage):
        raise Unsupported(
            "an index of version 1 lies beside its image in a registry",
            hint="Push the image first, and index it there; or push an index of version 2.",
            image=indexes[0].name,
        )
    return Reference.parse(argument.reference.repository)


async def push_referrers(
    store: Store, indexes: Sequence[IndexRecord], pusher: Pusher, progress: PushProgress
) -> Pushed:
    """Pushes indexes of version 1, one for each platform that there is one of."""
    blobs = [*_index_blobs(store, indexes)]
    documents = []
    for index in indexes:
        manifest = await _read_manifest(store, index.manifest)
        written = soci_writer.write_soci_index(_layers_of(index), tool=TOOL, subject=manifest)
        documents.append(_document(written))
    return await push_tree(pusher, blobs, documents, None, progress)


async def push_image(
    store: Store,
    indexes: Sequence[IndexRecord],
    source: ImageSource,
    pusher: Pusher,
    tag: str,
    progress: PushProgress,
) -> Pushed:
    """Pushes an image that names its indexes, of version 2.

    Args:
        store: Has the indexes, and the documents of the image.
        indexes: Of one image, one for each platform.
        source: The image's: what the target lacks comes from there.
        pusher: Where to.
        tag: Under which name.
        progress: Told how far it is.

    Raises:
        Conflict: The indexes are of images that had the name one after the other.
    """
    if len({index.target for index in indexes}) > 1:
        raise Conflict(
            "the name meant another image when the index of another platform was made",
            hint=f"Make all of them again: imgvol index rm {indexes[0].name}",
            image=indexes[0].name,
        )
    tree = _Tree(store, source, pusher, indexes[0].name)
    tree.blobs += _index_blobs(store, indexes)
    converted = [await tree.convert(index) for index in indexes]
    target = indexes[0].target
    original: bytes | None = None
    if target not in {index.manifest for index in indexes}:
        original = await store.read_blob(target)
        top = parse_manifest(original, media_type=None, expected=target)
        assert isinstance(top, Index), "it lists the manifest"
        done = {image.manifest for image in converted}
        converted += await tree.bring_others(top, done)
    top_document = soci_writer.write_image_index(converted, original=original)
    documents = [*tree.documents, _document(top_document)]
    return await push_tree(pusher, tree.blobs, documents, tag, progress)


class _Tree:
    """What is to be pushed, as it comes together."""

    def __init__(self, store: Store, source: ImageSource, pusher: Pusher, name: str) -> None:
        self.store = store
        self.source = source
        self.blobs: list[Blob] = []
        self.documents: list[Document] = []
        argument = parse_image_argument(name)
        self.mount_from: str | None = None
        if isinstance(argument, RegistryImage):
            self.mount_from = pusher.mount_source(argument.reference)

    async def convert(self, index: IndexRecord) -> ConvertedImage:
        """A platform with an index."""
        manifest = await _read_manifest(self.store, index.manifest)
        soci = soci_writer.write_soci_index(_layers_of(index), tool=TOOL)
        annotated = soci_writer.annotate_manifest(manifest, soci.digest)
        self._need(manifest)
        self.documents += _document(annotated), _document(soci)
        return ConvertedImage(
            manifest=manifest.digest,
            annotated=annotated,
            index=soci,
            platform=Platform.parse(index.platform),
        )

    async def bring_others(self, top: Index, done: set[Digest]) -> list[ConvertedImage]:
        """Platforms without; those in docker's media types change to OCI's, as the index does."""
        changed: list[ConvertedImage] = []
        for entry in top.manifests:
            if entry.digest in done or entry.artifact_type == INDEX_V2:
                continue
            raw = await self.source.read_document(entry, max_size=limits.MANIFEST_SIZE)
            manifest = parse_manifest(raw, media_type=entry.media_type, expected=entry.digest)
            if not isinstance(manifest, Manifest):
                raise Unsupported("an image index inside of an image index", digest=entry.digest)
            self._need(manifest)
            if manifest.media_type != media_types.DOCKER_MANIFEST:
                self.documents.append(Document(manifest.descriptor, raw))
                continue
            annotated = soci_writer.annotate_manifest(manifest, None)
            self.documents.append(_document(annotated))
            platform = entry.platform or Platform(os="", architecture="")
            image = ConvertedImage(
                manifest=entry.digest, annotated=annotated, index=None, platform=platform
            )
            changed.append(image)
        return changed

    def _need(self, manifest: Manifest) -> None:
        """The blobs of a manifest, but those that may not be distributed."""
        for descriptor in (manifest.config, *manifest.layers):
            if not descriptor.urls:
                fetch = partial(_fetch, self.store, self.source, descriptor)
                self.blobs.append(Blob(descriptor, fetch, self.mount_from))


def _fetch(store: Store, source: ImageSource, descriptor: Descriptor) -> BinaryIO:
    """A blob of the source as a file, which has no name. Blocks."""
    file = tempfile.TemporaryFile(dir=store.spool_directory)  # noqa: SIM115 - whoever asked closes
    try:
        with source.open_blob(descriptor) as reader:
            for piece in reader.iter_pieces():
                file.write(piece)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def _index_blobs(store: Store, indexes: Sequence[IndexRecord]) -> list[Blob]:
    """What the indexes have for layers, and the config that all of them share."""
    config = soci_writer.CONFIG
    described = Descriptor(media_type=INDEX_V2, digest=Digest.of(config), size=len(config))
    blobs = [Blob(described, partial(io.BytesIO, config))]
    for index in indexes:
        for layer in index.layers:
            blobs += [_stored(store, blob) for blob in layer.blobs]
    return blobs


def _stored(store: Store, blob: IndexedBlob) -> Blob:
    descriptor = Descriptor(media_type="", digest=blob.digest, size=blob.size)
    path = store.layout.blob(blob.digest)
    return Blob(descriptor, partial(_open, path))


def _open(path: os.PathLike[str]) -> BinaryIO:
    return open(path, "rb")


def _layers_of(index: IndexRecord) -> list[IndexedLayer]:
    found: dict[Digest, IndexedLayer] = {}
    for layer in index.layers:
        if layer.is_indexed:
            found[layer.digest] = IndexedLayer(
                layer=layer.digest,
                media_type=layer.media_type,
                span_size=layer.span_size,
                ztoc=_pair(layer.ztoc),
                twin=_pair(layer.twin),
                frames=_pair(layer.frames),
            )
    return list(found.values())


def _pair(blob: IndexedBlob | None) -> tuple[Digest, int] | None:
    return None if blob is None else (blob.digest, blob.size)


async def _read_manifest(store: Store, digest: Digest) -> Manifest:
    manifest = parse_manifest(await store.read_blob(digest), media_type=None, expected=digest)
    assert isinstance(manifest, Manifest), "an image has been indexed"
    return manifest


def _document(written: WrittenDocument) -> Document:
    raw = written.raw
    described = Descriptor(media_type=written.media_type, digest=written.digest, size=len(raw))
    return Document(described, raw)
