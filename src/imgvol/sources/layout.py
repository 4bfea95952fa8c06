"""OCI layouts (image-spec `image-layout.md`), in a directory or in a tar.

`index.json` lists images. One is chosen by tag, the annotation `org.opencontainers.image.ref.name`,
or by containerd's full name beside it; or by digest; or because there is no other. Several entries
that differ by platform only are one image: they get an index of their own, made up from theirs.
"""

import json
import threading
from typing import Final

from imgvol import limits
from imgvol.errors import Conflict, InvalidDocument, InvalidReference, NotFound, Unsupported
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.json import Node
from imgvol.oci.manifest import Index, parse_manifest
from imgvol.oci.media_types import OCI_INDEX
from imgvol.oci.reference import TAG, parse_docker_reference
from imgvol.sources.files import ImageFiles, read_whole
from imgvol.sources.local import ListedImage, LocalSource, names_hint

REF_NAME: Final = "org.opencontainers.image.ref.name"
CONTAINERD_NAME: Final = "io.containerd.image.name"
LAYOUT_VERSION: Final = "1.0.0"


def blob_path(digest: Digest) -> str:
    """Where a layout keeps a blob."""
    return f"blobs/{digest.algorithm}/{digest.encoded}"


class LayoutSource(LocalSource):
    """One image of an OCI layout.

    Args:
        files: The layout.
        name: What the user calls the image.
        tag: Which image, by name;
        digest: or by digest. Neither: the only one.
    """

    def __init__(
        self, files: ImageFiles, *, name: str, tag: str | None = None, digest: Digest | None = None
    ) -> None:
        super().__init__(files, name=name)
        self._tag = tag
        self._digest = digest

    def _path_of(self, digest: Digest) -> str:
        return blob_path(digest)

    def _resolve(self, stop: threading.Event) -> Descriptor:  # noqa: ARG002 - it is always short
        entries = read_index(self._files).manifests
        if self._digest is not None:
            return self._find_digest(self._digest, entries)
        chosen = {d.digest: d for d in entries if self._tag is None or has_name(d, self._tag)}
        match list(chosen.values()):
            case []:
                raise NotFound(
                    "the layout has no image of this name" if self._tag else "the layout is empty",
                    hint=names_hint("tags", _names(entries)),
                    tag=self._tag,
                    layout=self._files.path,
                )
            case [descriptor]:
                return descriptor
            case several:
                return self._combine(several)

    def _list_images(
        self,
        stop: threading.Event,  # noqa: ARG002 - one small document is read
    ) -> tuple[ListedImage, ...]:
        return tuple(_listed(entry) for entry in read_index(self._files).manifests)

    def _find_digest(self, digest: Digest, entries: tuple[Descriptor, ...]) -> Descriptor:
        for entry in entries:
            if entry.digest == digest:
                return entry
        # A manifest that only another index of the layout lists.
        raw = self._read_file(blob_path(digest), what="manifest", max_size=limits.MANIFEST_SIZE)
        if raw is None:
            raise NotFound(
                "the layout has no manifest of this digest",
                hint=names_hint("manifests", [str(entry.digest) for entry in entries]),
                digest=digest,
                layout=self._files.path,
            )
        return parse_manifest(raw, media_type=None, expected=digest).descriptor

    def _combine(self, entries: list[Descriptor]) -> Descriptor:
        platforms = {entry.platform for entry in entries}
        if None in platforms or len(platforms) < len(entries):
            raise Conflict(
                "the layout has several images that fit",
                hint=f"Choose one by tag or by @digest. {names_hint('tags', _names(entries))}",
                layout=self._files.path,
            )
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [entry.to_json() for entry in entries],
        }
        raw = json.dumps(document, separators=(",", ":")).encode()
        digest = Digest.of(raw)
        self._documents[digest] = raw
        return Descriptor(media_type=OCI_INDEX, digest=digest, size=len(raw))


def _listed(entry: Descriptor) -> ListedImage:
    full = entry.annotations.get(CONTAINERD_NAME, "")
    name = entry.annotations.get(REF_NAME, "")
    # The specification wants a tag there; some tools write a full name all the same.
    if not full and not TAG.fullmatch(name):
        full, name = name, ""
    return ListedImage(name=full, tag=name, top=entry)


def read_index(files: ImageFiles) -> Index:
    """A layout's top index.

    Raises:
        NotFound: This is no layout.
        Unsupported: It is one of another version.
        InvalidDocument: It is malformed.
    """
    version = _read(files, "oci-layout", limits.LAYOUT_FILE_SIZE)
    document = Node.parse(version, what="oci-layout", max_size=limits.LAYOUT_FILE_SIZE)
    number = document.require("imageLayoutVersion").string()
    if number != LAYOUT_VERSION:
        raise Unsupported("OCI layout of an unknown version", version=number, layout=files.path)
    raw = _read(files, "index.json", limits.MANIFEST_SIZE)
    index = parse_manifest(raw, media_type=OCI_INDEX)
    if not isinstance(index, Index):
        raise InvalidDocument("index.json is not an index", layout=files.path)
    return index


def has_name(entry: Descriptor, name: str) -> bool:
    """Whether an entry of a layout's index has this tag or full name."""
    known = {entry.annotations.get(REF_NAME), entry.annotations.get(CONTAINERD_NAME)}
    if name in known:
        return True
    try:
        return str(parse_docker_reference(name)) in known
    except InvalidReference:
        return False


def _names(entries: tuple[Descriptor, ...] | list[Descriptor]) -> list[str]:
    tags = (
        entry.annotations.get(REF_NAME) or entry.annotations.get(CONTAINERD_NAME)
        for entry in entries
    )
    return sorted({tag for tag in tags if tag})


def _read(files: ImageFiles, path: str, max_size: int) -> bytes:
    opened = files.open(path)
    if opened is None:
        raise NotFound(
            f"not an OCI layout: it has no {path}",
            hint="What docker save writes is read as docker-archive:FILE.",
            layout=files.path,
        )
    with opened:
        return read_whole(opened, what=path, max_size=max_size)
