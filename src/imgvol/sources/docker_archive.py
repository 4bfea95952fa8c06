"""docker-archives: what `docker save` and `podman save` write.

`manifest.json` lists images: a config, names, and layers, which are plain tars or compressed ones,
and may be links to one another. There is no manifest and no descriptor, so one is made up, the same
for the same archive whenever it is read. The layers' digests come from the cheapest witness:

1. a layer stored as `blobs/<algorithm>/<hex>` is named by its digest;
2. an uncompressed layer's digest is its diff ID, which the config has;
3. any other layer is hashed.

The first two are claims of the archive, like all that a registry says: whoever pulls verifies them.

Since version 25, Docker writes archives that are OCI layouts too. When the layout has the manifest
with the chosen image's config, then that is the image's manifest.
"""

import json
import re
import threading
from dataclasses import dataclass
from typing import Final

from imgvol import limits
from imgvol.errors import (
    Conflict,
    ContentError,
    InvalidDigest,
    InvalidDocument,
    InvalidReference,
    LimitExceeded,
    NotFound,
    RegistryUnavailable,
)
from imgvol.layers.compression import Compression, sniff
from imgvol.oci import media_types
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import DiffID, Digest
from imgvol.oci.image_config import parse_image_config
from imgvol.oci.json import Node, parse_json
from imgvol.oci.manifest import Manifest, parse_manifest
from imgvol.oci.reference import Reference, parse_docker_reference
from imgvol.sources.files import ImageFiles, RangeReader
from imgvol.sources.layout import blob_path, read_index
from imgvol.sources.local import ListedImage, LocalSource, names_hint

_BLOB_PATH: Final = re.compile(r"blobs/([a-z0-9]+)/([0-9a-f]+)", re.ASCII)
_LAYER_TYPES: Final = {
    Compression.NONE: media_types.DOCKER_LAYER,
    Compression.GZIP: media_types.DOCKER_LAYER_GZIP,
    Compression.ZSTD: media_types.DOCKER_LAYER_ZSTD,
}
_SNIFFED: Final = 10


@dataclass(frozen=True, slots=True)
class _Item:
    """One image of manifest.json."""

    config: str
    names: tuple[str, ...]
    layers: tuple[str, ...]


class DockerArchiveSource(LocalSource):
    """One image of a docker-archive.

    Args:
        files: The archive.
        name: What the user calls the image.
        reference: Which image, by name;
        position: or by its place in manifest.json. Neither: the only one.
    """

    def __init__(
        self,
        files: ImageFiles,
        *,
        name: str,
        reference: Reference | None = None,
        position: int | None = None,
    ) -> None:
        super().__init__(files, name=name)
        self._reference = reference
        self._position = position
        self._paths: dict[Digest, str] = {}
        # What compressed layers hashed to, by path: images share them.
        self._hashed: dict[str, Digest] = {}

    def _path_of(self, digest: Digest) -> str:
        return self._paths.get(digest, blob_path(digest))

    def _resolve(self, stop: threading.Event) -> Descriptor:
        return self._describe(self._choose(self._read_items()), stop)

    def _list_images(self, stop: threading.Event) -> tuple[ListedImage, ...]:
        listed = []
        for item in self._read_items():
            if stop.is_set():
                raise RegistryUnavailable("reading was cancelled")
            top = self._describe(item, stop)
            listed += [ListedImage(name=name, tag="", top=top) for name in item.names or ("",)]
        return tuple(listed)

    def _describe(self, item: _Item, stop: threading.Event) -> Descriptor:
        raw = self._read_member(item.config, what="image config", max_size=limits.CONFIG_SIZE)
        config = parse_image_config(raw)
        self._paths[config.digest] = item.config
        original = self._find_original(config.digest, stop)
        if original is not None:
            return original
        if len(config.diff_ids) != len(item.layers):
            raise InvalidDocument(
                "config and archive do not agree on the number of layers",
                expected=len(config.diff_ids),
                actual=len(item.layers),
            )
        layers = [
            self._describe_layer(path, diff_id, stop)
            for path, diff_id in zip(item.layers, config.diff_ids, strict=True)
        ]
        return self._make_manifest(
            Descriptor(media_type=media_types.DOCKER_CONFIG, digest=config.digest, size=len(raw)),
            layers,
        )

    def _read_items(self) -> list[_Item]:
        what = "manifest.json"
        raw = self._read_file(what, what=what, max_size=limits.MANIFEST_SIZE)
        if raw is None:
            raise NotFound(
                "not a docker-archive: it has no manifest.json",
                hint="A tar of an OCI layout is read as oci-archive:FILE.",
                archive=self._files.path,
            )
        document = Node(parse_json(raw, what=what, max_size=limits.MANIFEST_SIZE), what)
        nodes = document.array()
        if len(nodes) > limits.ARCHIVE_IMAGES:
            raise LimitExceeded(
                "the archive has too many images",
                limit="ARCHIVE_IMAGES",
                allowed=limits.ARCHIVE_IMAGES,
            )
        return [_parse_item(node) for node in nodes]

    def _choose(self, items: list[_Item]) -> _Item:
        names = [name for item in items for name in item.names]
        if self._position is not None:
            fitting = items[self._position : self._position + 1]
        elif self._reference is not None:
            fitting = [item for item in items if self._has_name(item, self._reference)]
        else:
            fitting = items
        if len(fitting) > 1 and self._reference is None:
            raise Conflict(
                "the archive has several images",
                hint=f"Choose one: docker-archive:FILE:NAME. {names_hint('images', names)}",
                archive=self._files.path,
            )
        if not fitting:
            raise NotFound(
                "the archive has no such image" if items else "the archive is empty",
                hint=names_hint("images", names),
                image=self._reference,
                archive=self._files.path,
            )
        return fitting[-1]

    def _has_name(self, item: _Item, reference: Reference) -> bool:
        for name in item.names:
            try:
                if parse_docker_reference(name) == reference:
                    return True
            except InvalidReference:
                continue
        return False

    def _find_original(self, config: Digest, stop: threading.Event) -> Descriptor | None:
        try:
            entries = {entry.digest: entry for entry in read_index(self._files).manifests}
            for entry in entries.values():
                if stop.is_set():
                    raise RegistryUnavailable("reading was cancelled")
                if media_types.is_manifest(entry.media_type) and self._has_config(entry, config):
                    return entry
        except (ContentError, NotFound):
            # No layout, or a damaged one: it is there for other readers, and what manifest.json
            # says is enough for us.
            return None
        return None

    def _has_config(self, entry: Descriptor, config: Digest) -> bool:
        if entry.size > limits.MANIFEST_SIZE:
            return False
        raw = self._read_document(entry)
        manifest = parse_manifest(raw, media_type=entry.media_type, expected=entry.digest)
        return isinstance(manifest, Manifest) and manifest.config.digest == config

    def _describe_layer(self, path: str, diff_id: DiffID, stop: threading.Event) -> Descriptor:
        opened = self._files.open(path)
        if opened is None:
            raise InvalidDocument("the archive lacks a layer", layer=path, archive=self._files.path)
        with RangeReader(opened, stop=stop) as reader:
            compression = sniff(opened.read(0, _SNIFFED))
            if compression is Compression.NONE:
                digest: Digest = diff_id
            else:
                digest = self._hashed.get(path) or _digest_in_path(path) or _hash(reader)
                self._hashed[path] = digest
            self._paths[digest] = path
            return Descriptor(media_type=_LAYER_TYPES[compression], digest=digest, size=opened.size)

    def _make_manifest(self, config: Descriptor, layers: list[Descriptor]) -> Descriptor:
        document = {
            "schemaVersion": 2,
            "mediaType": media_types.DOCKER_MANIFEST,
            "config": config.to_json(),
            "layers": [layer.to_json() for layer in layers],
        }
        raw = json.dumps(document, separators=(",", ":")).encode()
        digest = Digest.of(raw)
        self._documents[digest] = raw
        return Descriptor(media_type=media_types.DOCKER_MANIFEST, digest=digest, size=len(raw))

    def _read_member(self, path: str, *, what: str, max_size: int) -> bytes:
        raw = self._read_file(path, what=what, max_size=max_size)
        if raw is None:
            raise InvalidDocument(
                f"the archive lacks its {what}", member=path, archive=self._files.path
            )
        return raw


def _parse_item(node: Node) -> _Item:
    layers = node.get_array("Layers")
    if len(layers) > limits.LAYERS:
        raise LimitExceeded("the image has too many layers", limit="LAYERS", allowed=limits.LAYERS)
    return _Item(
        config=node.require("Config").string(),
        names=tuple(name.string() for name in node.get_array("RepoTags")),
        layers=tuple(layer.string() for layer in layers),
    )


def _digest_in_path(path: str) -> Digest | None:
    match = _BLOB_PATH.fullmatch(path)
    if match is None:
        return None
    try:
        return Digest(match[1], match[2])
    except InvalidDigest:
        return None


def _hash(reader: RangeReader) -> Digest:
    hasher = Digest.of(b"").hasher()
    for piece in reader.iter_pieces():
        hasher.update(piece)
    return Digest.from_hasher(hasher)
