"""Images whose layers can be read lazily, made by other people's tools, in a real registry."""

import hashlib
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from imgvol.layers.lazy import estargz, zstd_chunked
from support import soci
from support.daemon import Imgvol
from support.images import (
    TIME,
    Entry,
    Image,
    Layer,
    directory,
    file,
    hardlink,
    push,
    sha256,
    symlink,
    tar_bytes,
    write_layout,
)
from support.lazy import decompress
from support.peers import PeerLayer, external_stargz_layer, podman_layer, stargz_layer
from support.registry import Registry
from support.toc_blobs import legacy_footer, skippable

FORMATS = ("estargz", "zstd:chunked", "podman")
# And what is a matter of the finding more than of the reading.
EVERY_FORMAT = (*FORMATS, "estargz-legacy", "containers", "soci-1MiB", "soci-4MiB")
CHUNK = 256 * 1024
# More than the first window of the background: what comes later is asked for by readers alone.
FILLER = 5_000_000
LARGE = 6_000_000
MODULES = 150


@dataclass(frozen=True)
class LazyImage:
    """One image of one layer.

    Attributes:
        name: In the registry.
        files: What every regular file holds, by path.
    """

    name: str
    layer: Layer
    files: dict[str, bytes]

    @property
    def hex(self) -> str:
        """The layer's directory in a store."""
        return self.layer.digest.partition(":")[2]

    def is_complete(self, imgvol: Imgvol) -> bool:
        """Whether a daemon has the layer whole, and nothing else of it."""
        has_whole = (imgvol.root / "layers" / self.hex / "index").exists()
        return has_whole and not (imgvol.root / "lazy" / self.hex).exists()

    def random_reads(
        self, target: str, seed: int, count: int, *, below: str = ""
    ) -> Iterator[tuple[tuple[str, int, int], str]]:
        """Path, offset and size of ranges at random, each with the digest of what is there."""
        chosen = random.Random(seed)
        names = sorted(name for name in self.files if name.startswith(below))
        large = [name for name in names if len(self.files[name]) > CHUNK]
        for _ in range(count):
            name = chosen.choice(chosen.choice([names, large]))
            data = self.files[name]
            offset = chosen.randrange(len(data) + 1)
            size = chosen.choice([1, 511, 4096, 70_000, 400_000])
            wanted = hashlib.sha256(data[offset : offset + size]).hexdigest()
            yield (f"{target}/{name}", offset, size), wanted


@dataclass
class LazyImages:
    """Makes each image when it is first asked for."""

    registry: Registry
    base: Path
    _made: dict[str, LazyImage] = field(default_factory=dict)

    def get(self, format_: str) -> LazyImage:
        """The image of a format; skips when its tool is not here."""
        if format_ not in self._made:
            self._made[format_] = self._make(format_)
        return self._made[format_]

    def _make(self, format_: str) -> LazyImage:
        where = self.base / format_.replace(":", "-")
        where.mkdir(exist_ok=True)
        entries = content()
        name = f"lazy/{format_.replace(':', '-').lower()}"
        if format_.startswith("soci"):
            layer = Layer(entries, "gzip")
            span = int(format_.removeprefix("soci-").removesuffix("MiB")) << 20
            put_soci_image(self.registry, name, layer, span)
        else:
            layer = self._push(where, tar_bytes(entries), format_, name)
        files = {entry.name: entry.content for entry in entries if entry.type == b"0"}
        files["usr/lib/link"] = files["usr/lib/large"]
        return LazyImage(f"{name}:1", layer, files)

    def _push(self, where: Path, archive: bytes, format_: str, name: str) -> Layer:
        if format_ == "external":
            layer, beside = external_layers(where, archive)
            layout = write_layout(where / "beside", {"x": Image([beside])})
            push(layout, "x", self.registry.reference(f"{name}:1-esgztoc"))
        else:
            layer = lazy_layer(where, archive, format_)
        layout = write_layout(where / "image", {"x": Image([layer])})
        push(layout, "x", self.registry.reference(f"{name}:1"))
        return layer


def lazy_layer(where: Path, archive: bytes, format_: str) -> Layer:
    if format_ == "podman":
        return as_layer(podman_layer(where, archive), "zstd")
    gzip_or_zstd = "gzip" if format_.startswith("estargz") else "zstd"
    flags = (f"-format={gzip_or_zstd}", f"-chunk-size={CHUNK}")
    made = stargz_layer(where, archive, *flags)
    if format_ == "estargz-legacy":
        made = _with_legacy_footer(made)
    elif format_ == "containers":
        made = _as_containers_has_it(made)
    return as_layer(made, gzip_or_zstd)


def _with_legacy_footer(made: PeerLayer) -> PeerLayer:
    """What stargz's first tools wrote; nobody's tool does today."""
    footer = estargz.parse_footer(made.blob)
    blob = made.blob[: -footer.size] + legacy_footer(footer.toc_offset)
    return PeerLayer(blob, made.annotations)


def _as_containers_has_it(made: PeerLayer) -> PeerLayer:
    """The same frames under the other family's names, and with its footer, which is longer."""
    position = made.annotations[zstd_chunked.STARGZ.position]
    numbers = map(int, position.split(":"))
    footer = skippable(struct.pack("<7Q8s", *numbers, 0, 0, 0, b"GNUlInUx"))
    blob = made.blob[: -len(skippable(bytes(zstd_chunked.FOOTER_SIZE)))] + footer
    checksum = made.annotations[zstd_chunked.STARGZ.checksum]
    family = zstd_chunked.CONTAINERS
    return PeerLayer(blob, {family.position: position, family.checksum: checksum})


def put_soci_image(
    registry: Registry,
    name: str,
    layer: Layer,
    span: int,
    *,
    change: Callable[[soci.Draft], soci.Draft] = lambda draft: draft,
) -> None:
    """Pushes an image with tag 1 that pins its SOCI index, whose zTOC may be changed before."""
    ztoc = change(soci.draft_of(layer.tar, layer.blob, span)).to_bytes()
    index = soci.write_index({layer.digest: ztoc})
    image = Image([layer], annotations={soci.INDEX_DIGEST: sha256(index)})
    blobs = (ztoc, b"{}", layer.blob, image.config_bytes())
    registry.put(name, {"soci": index, "1": image.manifest_bytes()}, blobs)


def external_layers(where: Path, archive: bytes) -> tuple[Layer, Layer]:
    """An eStargz layer, and the layer of another image with its table of contents."""
    made = external_stargz_layer(where, archive, f"-chunk-size={CHUNK}")
    assert made.toc is not None
    layer = as_layer(made, "gzip")
    owner = {"containerd.io/snapshot/stargz/layer.digest": layer.digest}
    return layer, as_layer(PeerLayer(made.toc, owner), "gzip")


def as_layer(made: PeerLayer, compression: str) -> Layer:
    layer = Layer(b"", compression)
    layer.tar, layer.blob = decompress(made.blob), made.blob
    layer.diff_id, layer.digest = sha256(layer.tar), sha256(layer.blob)
    layer.size, layer.annotations = len(layer.blob), made.annotations
    return layer


def content() -> list[Entry]:
    """Some 14 MB that hardly compress: a filler, small files as of a language, a large file."""
    noise = random.Random(3)
    when = TIME // 10**9 * 10**9
    entries = [
        directory("first", mtime_ns=when),
        file("first/filler", noise.randbytes(FILLER), mtime_ns=when),
        directory("usr", mtime_ns=when),
        directory("usr/lib", mtime_ns=when, mode=0o750, uid=3, gid=4),
    ]
    for number in range(MODULES):
        size = noise.randrange(200, 12_000)
        entries.append(file(f"usr/lib/m{number}.py", noise.randbytes(size), mtime_ns=when))
    entries += [
        file("usr/lib/empty", mtime_ns=when),
        file("usr/lib/large", noise.randbytes(LARGE), mode=0o755, mtime_ns=when),
        hardlink("usr/lib/link", "usr/lib/large", mtime_ns=when),
        symlink("usr/lib/latest", "m1.py", mtime_ns=when),
        file("usr/last", noise.randbytes(700_000), mtime_ns=when),
    ]
    for number in range(10):
        entries.append(file(f"usr/data{number}", noise.randbytes(150_000), mtime_ns=when))
    return entries
