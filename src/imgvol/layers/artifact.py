"""Artifacts: manifests that are no images, seen as a directory of named files.

Each blob is one file, named by its title (image-spec `annotations.md`), or after its digest as
CRI-O and podman do it. Blobs are shown as they are, even where an annotation asks to unpack them.

Titles are data of whoever pushed the artifact. One that is not a plain relative path, or that
contradicts another, refuses the whole artifact: nothing is renamed, left out or made safe.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from imgvol import limits
from imgvol.errors import InvalidDocument, LimitExceeded
from imgvol.layers.builder import WHITEOUT_PREFIX
from imgvol.layers.reserved import RESERVED_NAMES
from imgvol.oci import media_types
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.manifest import Manifest

TITLE: Final = "org.opencontainers.image.title"
CREATED: Final = "org.opencontainers.image.created"
# Of the layer that stands for an artifact's files; nothing of this type is ever fetched.
LAYER_TYPE: Final = "application/vnd.imgvol.artifact.files.v1.tar"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactFile:
    """One file of an artifact.

    Attributes:
        name: A relative path, clean.
        blob: Its content.
    """

    name: str
    blob: Descriptor


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """The files of one artifact, in the manifest's order.

    Attributes:
        created: The manifest's own word for when it was made, RFC 3339; empty when it says nothing.
    """

    files: tuple[ArtifactFile, ...]
    created: str = ""
    key: Digest = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", _key(self.files, self.created))

    @property
    def size(self) -> int:
        """Bytes of all files; what has two names counts once."""
        return sum({file.blob.digest: file.blob.size for file in self.files}.values())

    @property
    def layer(self) -> Descriptor:
        """What stands for the files where layers are kept.

        Its digest is of the list of names and blobs, which is known before anything is fetched, not
        of any blob. It cannot be mistaken for one: a blob that had it would be this list, which is
        no tar, and so could never have been stored as a layer.
        """
        return Descriptor(media_type=LAYER_TYPE, digest=self.key, size=self.size)


def parse_artifact(manifest: Manifest) -> Artifact:
    """The files of an artifact.

    Raises:
        InvalidDocument: A title is no name of a file, or two blobs contradict each other about one.
        LimitExceeded: A name or all content together is too large.
    """
    files = tuple(
        ArtifactFile(name=_name(blob, position), blob=blob)
        for position, blob in enumerate(manifest.layers)
        if not _stands_for_nothing(blob)
    )
    _refuse_contradictions(files)
    artifact = Artifact(files=files, created=manifest.annotations.get(CREATED, ""))
    if artifact.size > limits.TAR_SIZE:
        raise LimitExceeded("artifact is too large", limit="TAR_SIZE", allowed=limits.TAR_SIZE)
    return artifact


def _stands_for_nothing(blob: Descriptor) -> bool:
    """Whether a layer is only there because manifests should have one (`manifest.md`, `layers`)."""
    return blob.media_type == media_types.OCI_EMPTY and TITLE not in blob.annotations


def _name(blob: Descriptor, position: int) -> str:
    title = blob.annotations.get(TITLE)
    if not title:
        # As CRI-O and podman name it; a colon is special to too many programs.
        return str(blob.digest).replace(":", "-")
    reason = _fault_of(title)
    if reason:
        raise InvalidDocument(
            f"an artifact's file cannot have this name: {reason}",
            hint="Whoever made the artifact has to push it with other file names.",
            path=f"layers[{position}].annotations",
            title=title[: limits.NAME_LENGTH],
        )
    return title


def _fault_of(title: str) -> str:
    """What is wrong with a title as a relative path; empty when nothing is."""
    if title.startswith("/"):
        return "it is an absolute path"
    encoded = title.encode()  # documents with lone surrogates are refused
    if len(encoded) >= limits.PATH_LENGTH:
        return f"it is longer than {limits.PATH_LENGTH - 1} bytes"
    if any(byte < 0x20 or byte == 0x7F for byte in encoded):
        return "it has control characters"
    if encoded in RESERVED_NAMES:
        return "layers keep this one for tables of contents, and do not show it"
    for component in encoded.split(b"/"):
        if component in {b"", b".", b".."}:
            return "it is not a plain path"
        if len(component) > limits.NAME_LENGTH:
            return f"a component is longer than {limits.NAME_LENGTH} bytes"
        if component.startswith(WHITEOUT_PREFIX):
            return "a component is a whiteout of image layers"
    return ""


def _refuse_contradictions(files: Iterable[ArtifactFile]) -> None:
    """No name twice, whatever the content, and none that is a file and a directory."""
    names = [file.name for file in files]
    taken: set[str] = set()
    for name in names:
        if name in taken:
            raise InvalidDocument("two files of an artifact have one name", path=TITLE, title=name)
        taken.add(name)
    for name in names:
        for end, character in enumerate(name):
            if character == "/" and name[:end] in taken:
                raise InvalidDocument(
                    "a name in an artifact is a file and a directory", path=TITLE, title=name[:end]
                )


def _key(files: Iterable[ArtifactFile], created: str) -> Digest:
    listed = {
        "artifact": 1,
        "created": created,
        "files": [[file.name, str(file.blob.digest), file.blob.size] for file in files],
    }
    text = json.dumps(listed, sort_keys=True, separators=(",", ":"))
    return Digest.of(text.encode("ascii"))
