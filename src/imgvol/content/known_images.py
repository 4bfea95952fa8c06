"""The records of images in memory: what the database says of them, at any moment.

`Records.watch_images` tells of every change, after its commit and before whoever has made it goes
on. So this is never ahead of what is durable, and nobody who has changed something finds it behind.
"""

from collections.abc import Callable, Iterator

from imgvol.content.records import ImageChanges, ImageRecord
from imgvol.oci.digest import Digest


class KnownImages:
    """Every image of the store whose layers are all here, by its manifest. On the event loop."""

    def __init__(self) -> None:
        self._images: dict[Digest, ImageRecord] = {}
        self._listeners: list[Callable[[ImageChanges], None]] = []

    def take(self, changes: ImageChanges) -> None:
        """Takes over what a transaction has changed, and passes it on."""
        if changes.manifests is None:
            self._images.clear()
        for manifest in changes.manifests or ():
            self._images.pop(manifest, None)
        self._images.update((image.manifest, image) for image in changes.images)
        for listener in self._listeners:
            listener(changes)

    def listen(self, listener: Callable[[ImageChanges], None]) -> None:
        """Tells of all images now, and from then on of changes."""
        self._listeners.append(listener)
        listener(ImageChanges(manifests=None, images=tuple(self)))

    def get(self, manifest: Digest) -> ImageRecord | None:
        """The image with this manifest."""
        return self._images.get(manifest)

    def latest(self) -> list[ImageRecord]:
        """Every image, the latest pulled first."""
        return sorted(self, key=lambda image: image.pulled_at, reverse=True)

    def __iter__(self) -> Iterator[ImageRecord]:
        return iter(self._images.values())

    def __len__(self) -> int:
        return len(self._images)
