"""Images made of nothing: entries -> layers -> OCI layouts and docker-archives, the same bytes
every time.

    image = Image([Layer([directory("etc"), file("etc/motd", b"hello")], "gzip")])
    write_layout(path, {"v1": image})
    push(path, "v1", registry.reference("hello:v1"))

The standard library's tar writer is good enough for well-formed archives; `Entry.raw` puts in any
others byte by byte.
"""

import gzip
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import zstandard

from support.programs import run

TIME = 1_700_000_000_123_456_789  # ns
BLOCK = 512
OCI = "application/vnd.oci.image"
SUFFIX = {"none": "", "gzip": "+gzip", "zstd": "+zstd"}

# --- entries ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One tar member. Names are text with surrogate escapes."""

    name: str
    type: bytes = tarfile.REGTYPE
    content: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime_ns: int = TIME
    target: str = ""
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    pax: Mapping[str, str] = field(default_factory=dict)
    format: int = tarfile.PAX_FORMAT
    raw: bytes | None = None

    def member(self) -> bytes:
        """The header blocks, the content and its padding."""
        if self.raw is not None:
            return self.raw
        info = tarfile.TarInfo(self.name)
        info.type, info.linkname, info.size = self.type, self.target, len(self.content)
        info.mode, info.uid, info.gid = self.mode, self.uid, self.gid
        info.devmajor, info.devminor = self.device
        info.mtime, nanoseconds = divmod(self.mtime_ns, 10**9)
        if self.format == tarfile.PAX_FORMAT:
            info.pax_headers = {
                f"SCHILY.xattr.{k}": v.decode("utf-8", "surrogateescape")
                for k, v in self.xattrs.items()
            }
            if nanoseconds:
                info.pax_headers["mtime"] = f"{info.mtime}.{nanoseconds:09}"
            info.pax_headers |= self.pax
        return info.tobuf(self.format, "utf-8", "surrogateescape") + padded(self.content)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def file(name: str, content: bytes = b"", **attributes) -> Entry:
    return Entry(name=name, content=content, **attributes)


def directory(name: str, **attributes) -> Entry:
    return Entry(name=name, type=tarfile.DIRTYPE, **{"mode": 0o755, **attributes})


def symlink(name: str, target: str, **attributes) -> Entry:
    return Entry(name=name, type=tarfile.SYMTYPE, target=target, **{"mode": 0o777, **attributes})


def hardlink(name: str, target: str, **attributes) -> Entry:
    return Entry(name=name, type=tarfile.LNKTYPE, target=target, **attributes)


def fifo(name: str, **attributes) -> Entry:
    return Entry(name=name, type=tarfile.FIFOTYPE, **attributes)


def character_device(name: str, major: int, minor: int, **attributes) -> Entry:
    return Entry(name=name, type=tarfile.CHRTYPE, device=(major, minor), **attributes)


def block_device(name: str, major: int, minor: int, **attributes) -> Entry:
    return Entry(name=name, type=tarfile.BLKTYPE, device=(major, minor), **attributes)


def whiteout(path: str) -> Entry:
    parent, _, name = path.rpartition("/")
    return Entry(name=f"{parent}/.wh.{name}" if parent else f".wh.{name}")


def opaque(path: str) -> Entry:
    return Entry(name=f"{path}/.wh..wh..opq" if path else ".wh..wh..opq")


def sparse(
    name: str, size: int, pieces: Sequence[tuple[int, bytes]], *, form: str = "1.0", **attributes
) -> Entry:
    """A sparse file as GNU tar writes it: "1.0" and "0.1" in PAX records, "old" with type `S`."""
    stored = b"".join(data for _, data in pieces)
    numbers = [n for offset, data in pieces for n in (offset, len(data))]
    if form == "old":
        return Entry(
            name=name,
            raw=_old_sparse(
                file(name, stored, format=tarfile.GNU_FORMAT, **attributes), size, numbers
            ),
        )
    if form == "0.1":
        pax = {
            "GNU.sparse.map": ",".join(map(str, numbers)),
            "GNU.sparse.numblocks": str(len(pieces)),
        }
        pax |= {"GNU.sparse.size": str(size), "GNU.sparse.name": name}
    else:
        pax = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": name}
        pax["GNU.sparse.realsize"] = str(size)
        stored = padded("".join(f"{n}\n" for n in (len(pieces), *numbers)).encode()) + stored
    return file(f"GNUSparseFile.0/{name}", stored, pax=pax, **attributes)


def _old_sparse(entry: Entry, size: int, numbers: Sequence[int]) -> bytes:
    assert len(numbers) <= 8, "the header itself holds four pieces"
    member = bytearray(entry.member())
    member[156:157] = b"S"
    for position, number in enumerate(numbers):
        member[386 + 12 * position : 398 + 12 * position] = b"%011o\0" % number
    member[483:495] = b"%011o\0" % size
    return with_checksum(member)


def with_checksum(member: bytes | bytearray) -> bytes:
    """The member with its first header block's checksum made right."""
    member = bytearray(member)
    member[148:156] = b" " * 8
    member[148:156] = b"%06o\0 " % sum(member[:BLOCK])
    return bytes(member)


def tar_bytes(entries: Sequence[Entry]) -> bytes:
    return b"".join(entry.member() for entry in entries) + bytes(2 * BLOCK)


# --- layers and images
# -------------------------------------------------------------------------------


def compressed(data: bytes, compression: str) -> bytes:
    if compression == "gzip":
        return gzip.compress(data, 6, mtime=0)
    if compression == "zstd":
        return zstandard.ZstdCompressor(level=3).compress(data)
    assert compression == "none"
    return data


def compressible(noise: random.Random, size: int) -> bytes:
    """Bytes of which compression leaves about an eighth, quickly: a page each of noise and text."""
    pages = (noise.randbytes(512) + b"imgvol. " * 448 for _ in range(size // 4096 + 1))
    return b"".join(pages)[:size]


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Layer:
    """A layer of given entries, or of a given tar. Any property can be overwritten, to make a wrong
    one."""

    def __init__(self, content: Sequence[Entry] | bytes, compression: str = "gzip"):
        self.tar = content if isinstance(content, bytes) else tar_bytes(content)
        self.compression = compression
        self.blob = compressed(self.tar, compression)
        self.digest = sha256(self.blob)
        self.diff_id = sha256(self.tar)
        self.size = len(self.blob)
        self.media_type = f"{OCI}.layer.v1.tar{SUFFIX[compression]}"
        self.annotations: dict[str, str] = {}
        self.urls: tuple[str, ...] = ()

    def recompressed(self, compression: str) -> "Layer":
        return Layer(self.tar, compression)


@dataclass(frozen=True)
class Image:
    layers: Sequence[Layer]
    architecture: str = "amd64"
    config: Mapping = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)

    def config_bytes(self) -> bytes:
        return to_json(
            {
                "architecture": self.architecture,
                "os": "linux",
                "config": dict(self.config),
                "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in self.layers]},
            }
        )

    def manifest_bytes(self) -> bytes:
        config = self.config_bytes()
        return to_json(
            {
                "schemaVersion": 2,
                "mediaType": f"{OCI}.manifest.v1+json",
                "config": {
                    "mediaType": f"{OCI}.config.v1+json",
                    "digest": sha256(config),
                    "size": len(config),
                },
                "layers": [
                    {
                        "mediaType": layer.media_type,
                        "digest": layer.digest,
                        "size": layer.size,
                        **({"urls": layer.urls} if layer.urls else {}),
                        **({"annotations": layer.annotations} if layer.annotations else {}),
                    }
                    for layer in self.layers
                ],
                **({"annotations": dict(self.annotations)} if self.annotations else {}),
            }
        )

    def recompressed(self, compression: str) -> "Image":
        """The same contents in other blobs: for programs that do not read every compression."""
        return replace(self, layers=[layer.recompressed(compression) for layer in self.layers])


def to_json(value) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def write_layout(path: Path, images: Mapping[str, Image | Sequence[Image]]) -> Path:
    """Writes an OCI layout directory; several images of one tag are its variants per platform."""
    blobs = path / "blobs/sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    (path / "oci-layout").write_bytes(to_json({"imageLayoutVersion": "1.0.0"}))
    manifests = []
    variants = [(t, v) for t, vs in images.items() for v in ([vs] if isinstance(vs, Image) else vs)]
    for tag, image in variants:
        manifest = image.manifest_bytes()
        named = {layer.digest: layer.blob for layer in image.layers}
        named |= {sha256(data): data for data in (image.config_bytes(), manifest)}
        for digest, data in named.items():
            (blobs / digest.partition(":")[2]).write_bytes(data)
        manifests.append(
            {
                "mediaType": f"{OCI}.manifest.v1+json",
                "digest": sha256(manifest),
                "size": len(manifest),
                "annotations": {"org.opencontainers.image.ref.name": tag},
                "platform": {"os": "linux", "architecture": image.architecture},
            }
        )
    index = {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": manifests}
    (path / "index.json").write_bytes(to_json(index))
    return path


def write_oci_archive(path: Path, images: Mapping[str, Image]) -> Path:
    layout = write_layout(path.with_name(path.name + ".d"), images)
    with tarfile.open(path, "w") as archive:
        for item in sorted(layout.rglob("*")):
            archive.add(item, str(item.relative_to(layout)), recursive=False)
    return path


def write_docker_archive(path: Path, image: Image, *names: str) -> Path:
    """Writes what `docker save` does: uncompressed layers, and a manifest.json that names them."""
    config = image.config_bytes()
    config_name = f"{sha256(config).partition(':')[2]}.json"
    layers = [f"{layer.diff_id.partition(':')[2]}/layer.tar" for layer in image.layers]
    documents = {name: layer.tar for name, layer in zip(layers, image.layers, strict=True)}
    documents |= {config_name: config}
    documents["manifest.json"] = to_json(
        [{"Config": config_name, "RepoTags": list(names), "Layers": layers}]
    )
    with tarfile.open(path, "w") as archive:
        for name, data in documents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


# --- by other programs --------------------------------------------------------------------------


def push(layout: Path, tag: str, reference: str, *, login: str = "") -> None:
    """Copies an image of a layout to a registry that speaks plain HTTP, its blobs as they are."""
    run(
        "skopeo",
        "--insecure-policy",
        "copy",
        "--quiet",
        "--preserve-digests",
        "--dest-tls-verify=false",
        *([f"--dest-creds={login}"] if login else []),
        f"oci:{layout}:{tag}",
        f"docker://{reference}",
        timeout=300,
    )


def umoci_unpack(image: Image, directory: Path) -> Path:
    """Unpacks with umoci, which reads gzip and plain layers; returns the root."""
    layout = write_layout(directory / "umoci-layout", {"x": image.recompressed("none")})
    run("umoci", "raw", "unpack", "--image", f"{layout}:x", directory / "umoci-rootfs", timeout=300)
    return directory / "umoci-rootfs"
