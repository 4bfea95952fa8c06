"""Archives of many images, good and hostile, made of members that a test may change."""

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from support.images import OCI, Image, sha256, to_json

NAME = "io.containerd.image.name"
TAG = "org.opencontainers.image.ref.name"


@dataclass
class Bundle:
    """The members of an archive in the making.

    Attributes:
        members: Files by name; text is the target of a symbolic link, or after `=` of a hard one.
        entries: Of index.json.
        items: Of manifest.json.
    """

    members: dict[str, bytes | str] = field(default_factory=dict)
    entries: list[dict] = field(default_factory=list)
    items: list[dict] = field(default_factory=list)
    version: str = "1.0.0"

    def blob(self, data: bytes, media_type: str, **more) -> dict:
        digest = sha256(data)
        self.members[f"blobs/sha256/{digest.partition(':')[2]}"] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data), **more}

    def manifest(self, image: Image, *, without: Sequence[int] = (), **more) -> dict:
        """Puts an image in; returns its descriptor. `without`: layers that stay out."""
        for number, layer in enumerate(image.layers):
            if number not in without:
                self.blob(layer.blob, layer.media_type)
        self.blob(image.config_bytes(), f"{OCI}.config.v1+json")
        platform = {"os": "linux", "architecture": image.architecture}
        return self.blob(
            image.manifest_bytes(), f"{OCI}.manifest.v1+json", platform=platform, **more
        )

    def index(self, manifests: Sequence[dict], **more) -> dict:
        document = {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.index.v1+json",
            "manifests": list(manifests),
        }
        return self.blob(to_json(document), f"{OCI}.index.v1+json", **more)

    def list(self, descriptor: dict, name: str = "", tag: str = "") -> None:
        """Adds an entry to index.json."""
        named = {key: value for key, value in ((NAME, name), (TAG, tag)) if value}
        self.entries.append({**descriptor, **({"annotations": named} if named else {})})

    def save(self, image: Image, *names: str, layers: Sequence[str] | None = None) -> None:
        """Adds what `docker save` did before it wrote layouts."""
        config = f"{sha256(image.config_bytes()).partition(':')[2]}.json"
        self.members[config] = image.config_bytes()
        paths = [f"{layer.diff_id.partition(':')[2]}/layer.tar" for layer in image.layers]
        if layers is None:
            layers = paths
            self.members |= {
                path: layer.tar for path, layer in zip(paths, image.layers, strict=True)
            }
        self.items.append(
            {"Config": config, "RepoTags": list(names) or None, "Layers": list(layers)}
        )

    def documents(self) -> dict[str, bytes]:
        documents = {}
        if self.entries:
            documents["oci-layout"] = to_json({"imageLayoutVersion": self.version})
            index = {"schemaVersion": 2, "manifests": self.entries}
            documents["index.json"] = to_json(index)
        if self.items:
            documents["manifest.json"] = to_json(self.items)
        return documents

    def tar(self) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, content in {**self.documents(), **self.members}.items():
                info = tarfile.TarInfo(name)
                if isinstance(content, bytes):
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
                    continue
                info.type = tarfile.LNKTYPE if content.startswith("=") else tarfile.SYMTYPE
                info.linkname = content.removeprefix("=")
                archive.addfile(info)
        return buffer.getvalue()

    def write(self, path: Path) -> Path:
        path.write_bytes(self.tar())
        return path
