"""Artifacts made of nothing, in the shapes that ORAS, Helm and podman push.

artifact = Artifact([Blob(b"hello", "greeting.txt"), Blob(b"no name")])
artifact.push(registry, "models/small", "v1")
MemorySource(artifact)      # it looks as an image does there
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from support.images import sha256
from support.registry import Registry

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
TITLE = "org.opencontainers.image.title"


@dataclass(frozen=True)
class Blob:
    """One file, perhaps without a title."""

    blob: bytes
    title: str | None = None
    # What ORAS says of every plain file.
    media_type: str = "application/vnd.oci.image.layer.v1.tar"
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        return sha256(self.blob)

    def descriptor(self) -> dict:
        annotations = dict(self.annotations)
        if self.title is not None:
            annotations[TITLE] = self.title
        return {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": len(self.blob),
            **({"annotations": annotations} if annotations else {}),
        }


@dataclass(frozen=True)
class Artifact:
    layers: Sequence[Blob]
    artifact_type: str = "application/vnd.example.thing"
    config_type: str = EMPTY
    config: bytes = b"{}"
    annotations: Mapping[str, str] = field(default_factory=dict)

    def config_bytes(self) -> bytes:
        return self.config

    def manifest_bytes(self) -> bytes:
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            **({"artifactType": self.artifact_type} if self.artifact_type else {}),
            "config": {
                "mediaType": self.config_type,
                "digest": sha256(self.config),
                "size": len(self.config),
            },
            "layers": [layer.descriptor() for layer in self.layers],
            **({"annotations": dict(self.annotations)} if self.annotations else {}),
        }
        return json.dumps(document).encode()

    def push(self, registry: Registry, repository: str, tag: str) -> str:
        """Uploads it, and returns its reference."""
        blobs = {self.config, *(layer.blob for layer in self.layers)}
        registry.put(repository, {tag: self.manifest_bytes()}, blobs)
        return registry.reference(f"{repository}:{tag}")
