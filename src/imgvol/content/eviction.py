"""What goes first when the store is too full: pure functions over one picture of it.

Whole layers of images go before parts of layers that are mounted, and what was used longest ago
before what was used since. A layer is used whenever one of its images is: it goes with the last of
those, or earlier only if they all have gone. Nothing goes for nothing: what frees no space stays,
and the choice ends as soon as it is enough.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from imgvol.oci.digest import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """An image, as far as its place in the order matters.

    Attributes:
        used_at: When it was mounted, looked into or pulled last: seconds since the epoch.
        layers: Digests of its blobs.
    """

    manifest: Digest
    used_at: float
    layers: frozenset[Digest]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPicture:
    """All layers that could go or stay.

    Attributes:
        images: Every image of the store.
        sizes: Bytes of disk that go with each layer.
        keepers: Why a layer cannot go; only those that cannot.
    """

    images: Collection[StoredImage]
    sizes: Mapping[Digest, int]
    keepers: Mapping[Digest, str]

    @property
    def evictable(self) -> int:
        """Bytes that could go, all in all."""
        owned = {layer for image in self.images for layer in image.layers}
        return sum(
            size
            for layer, size in self.sizes.items()
            if layer in owned and layer not in self.keepers
        )

    @property
    def kept(self) -> dict[str, int]:
        """Bytes that cannot go, by reason."""
        sizes: dict[str, int] = {}
        for layer, reason in self.keepers.items():
            sizes[reason] = sizes.get(reason, 0) + self.sizes.get(layer, 0)
        return {reason: size for reason, size in sorted(sizes.items()) if size}


@dataclass(frozen=True, slots=True, kw_only=True)
class Eviction:
    """An image that loses layers, and which, and how much that frees."""

    manifest: Digest
    layers: frozenset[Digest]
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanWindow:
    """A part of an open lazy layer.

    Attributes:
        slot: The layer's number.
        window: The part's, in the layer.
        used_at: When it was read last, by any clock that all have in common.
        size: About how many bytes it takes.
    """

    slot: int
    window: int
    used_at: float
    size: int


def choose_layers(picture: LayerPicture, wanted: int) -> list[Eviction]:
    """Which layers go, image by image, so that `wanted` bytes are free, or all that can."""
    users: dict[Digest, int] = {}
    for image in picture.images:
        for layer in image.layers:
            users[layer] = users.get(layer, 0) + 1
    chosen: list[Eviction] = []
    for image in sorted(picture.images, key=lambda image: (image.used_at, image.manifest)):
        if wanted <= 0:
            break
        for layer in image.layers:
            users[layer] -= 1
        layers = frozenset(
            layer
            for layer in image.layers
            if not users[layer] and layer not in picture.keepers and picture.sizes.get(layer, 0) > 0
        )
        if layers:
            size = sum(picture.sizes[layer] for layer in layers)
            chosen.append(Eviction(manifest=image.manifest, layers=layers, size=size))
            wanted -= size
    return chosen


def choose_windows(windows: Iterable[SpanWindow], wanted: int) -> list[SpanWindow]:
    """Which parts of open layers go, so that at least `wanted` bytes are free; or all."""
    chosen = []
    for each in sorted(windows, key=lambda each: (each.used_at, each.slot, each.window)):
        if wanted <= 0:
            break
        if each.size > 0:
            chosen.append(each)
            wanted -= each.size
    return chosen
