"""The layers of one conversion: which there are, which are converted, and what they have become."""

import io
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

import trio

from imgvol.content.durable import translate_os_errors
from imgvol.content.records import ImageRecord
from imgvol.content.store import Store
from imgvol.errors import ImgvolError, LimitExceeded, Unsupported
from imgvol.images.layer_tar import LayerTar, LayerTarReader, find_layer_tar
from imgvol.layers.lazy import estargz, zstd_chunked
from imgvol.layers.lazy.locate import Format
from imgvol.oci import media_types
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.manifest import Manifest
from imgvol.publish.conversion import (
    ConversionProgress,
    ConversionRequest,
    ConvertedImage,
    ConvertedLayer,
    LayerProgress,
)
from imgvol.publish.convert_job import BLOB_NAME, PRIORITIZED_NAME
from imgvol.publish.kept_blobs import KeptBlobs
from imgvol.publish.prioritizing import Priorities
from imgvol.publish.pushing import Blob, Document
from imgvol.publish.rewriting import rewrite_config, rewrite_layer, rewrite_manifest
from imgvol.publish.worker import run_worker
from imgvol.threads import run_cancellable

_MEDIA_TYPES: Final = {
    Format.ESTARGZ: media_types.OCI_LAYER_GZIP,
    Format.ZSTD_CHUNKED: media_types.OCI_LAYER_ZSTD,
}


@dataclass(frozen=True, slots=True)
class FinishedImage:
    """One image, as its target shall have it.

    Attributes:
        config: To be stored as a blob.
        documents: The manifest.
    """

    report: ConvertedImage
    config: Blob
    documents: tuple[Document, ...]


class ConversionWork:
    """Collects the layers of all images, and converts each once.

    Args:
        store: Where they are.
        request: How to convert them.
        format_: Into what.
        directory: For what is made.
        kept: Where blobs are that are taken over; None: there are none.
        workers: How many helper processes may run.
        progress: Told of every layer.
    """

    def __init__(
        self,
        store: Store,
        request: ConversionRequest,
        format_: Format,
        *,
        directory: Path,
        kept: KeptBlobs | None,
        workers: trio.CapacityLimiter,
        progress: ConversionProgress,
    ) -> None:
        self._store = store
        self._request = request
        self._format = format_
        self._directory = directory
        self._kept = kept
        self._workers = workers
        self._progress = progress
        self._limiter = trio.CapacityLimiter(1)
        self._jobs: dict[tuple[Digest, tuple[bytes, ...]], LayerJob] = {}
        self._taken: dict[Digest, Descriptor] = {}
        # Why layers were left as they are.
        self._obstacles: list[ImgvolError] = []

    @property
    def has_jobs(self) -> bool:
        """Whether any layer is to be converted."""
        return bool(self._jobs)

    async def add(
        self, image: ImageRecord, manifest: Manifest, config: bytes, priorities: Priorities
    ) -> "ImageWork":
        """Takes in an image, all of whose layers are here."""
        layers: list[LayerJob | ConvertedLayer] = []
        records = zip(manifest.layers, image.layers, strict=True)
        for position, (descriptor, record) in enumerate(records):
            first = priorities.by_layer.get(position, ())
            reason = self._reason_to_keep(descriptor, has_priorities=bool(first))
            if reason:
                if not descriptor.urls:
                    self._taken[descriptor.digest] = descriptor
                layers.append(
                    ConvertedLayer(
                        before=descriptor,
                        after=descriptor,
                        diff_id=record.diff_id,
                        reason=reason,
                        unpacked_size=record.unpacked_size,
                    )
                )
                continue
            key = (descriptor.digest, first)
            if key not in self._jobs:
                tar = await find_layer_tar(self._store, record, self._limiter)
                directory = self._directory / f"layer-{len(self._jobs)}"
                told = LayerProgress(descriptor.digest, tar.size)
                self._progress.layers.append(told)
                self._jobs[key] = LayerJob(descriptor, record.diff_id, tar, first, directory, told)
            layers.append(self._jobs[key])
        return ImageWork(image, manifest, config, tuple(layers), priorities.missing)

    def _reason_to_keep(self, layer: Descriptor, *, has_priorities: bool) -> str:
        if layer.urls or ".foreign." in layer.media_type or "nondistributable" in layer.media_type:
            return "not to be distributed"
        if has_priorities or self._kept is None:
            return ""
        marks = (estargz.TOC_DIGEST,)
        if self._format is Format.ZSTD_CHUNKED:
            marks = (zstd_chunked.CONTAINERS.position,)
        is_zstd = layer.media_type.endswith("zstd")
        if is_zstd is (self._format is Format.ZSTD_CHUNKED) and all(
            mark in layer.annotations for mark in marks
        ):
            return f"{self._format.value} already"
        return ""

    async def run(self) -> None:
        """Converts all layers; the first that fails ends the others.

        Raises:
            Unsupported, LimitExceeded: The format can have none of them.
            ImgvolError: What the first failed with.
        """
        failure: Exception | None = None

        async def convert(job: LayerJob) -> None:
            nonlocal failure
            try:
                await self._convert(job)
            except Exception as error:  # noqa: BLE001 - raised below, outside the nursery
                failure = failure or error
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for job in self._jobs.values():
                nursery.start_soon(convert, job)
        if failure is not None:
            raise failure
        if self._obstacles and not any(job.outcome.reason == "" for job in self._jobs.values()):
            raise self._obstacles[0]

    async def _convert(self, job: "LayerJob") -> None:
        await trio.to_thread.run_sync(job.prepare, limiter=self._limiter)
        async with self._workers:
            started = time.perf_counter()
            try:
                result = await run_worker(
                    "convert",
                    {
                        "format": self._format.value,
                        "digest": str(job.tar.digest),
                        "chunk_size": self._request.chunk_size,
                        "level": self._request.level,
                    },
                    source=partial(LayerTarReader, job.tar),
                    output_directory=job.directory,
                    progress=job.note,
                    limiter=trio.CapacityLimiter(1),
                )
            except (Unsupported, LimitExceeded) as obstacle:
                await self._leave(job, obstacle)
            else:
                job.finish(result, self._format, time.perf_counter() - started)

    async def _leave(self, job: "LayerJob", obstacle: ImgvolError) -> None:
        """Lets a layer that the format cannot tell be what it was, or at least its tar."""
        self._obstacles.append(obstacle)
        if self._kept is not None:
            self._taken[job.before.digest] = job.before
            job.take_over(str(obstacle))
        else:
            reader = LayerTarReader(job.tar)
            write = partial(job.write_tar, reader, str(obstacle))
            await run_cancellable(write, reader.cancel, limiter=self._limiter)

    def blobs(self) -> list[Blob]:
        """All layers that the target needs."""
        jobs = [job for job in self._jobs.values() if job.outcome.after.digest not in self._taken]
        made = [Blob(job.outcome.after, job.open) for job in jobs]
        kept = self._kept
        if kept is None:
            return made
        taken = [Blob(layer, partial(kept.open, layer)) for layer in self._taken.values()]
        return [*made, *taken]


class LayerJob:
    """One layer that is converted."""

    def __init__(
        self,
        before: Descriptor,
        diff_id: Digest,
        tar: LayerTar,
        prioritized: tuple[bytes, ...],
        directory: Path,
        progress: LayerProgress,
    ) -> None:
        self.before = before
        self._diff_id = diff_id
        self.tar = tar
        self.directory = directory
        self._prioritized = prioritized
        self._progress = progress
        self._outcome: ConvertedLayer | None = None

    @property
    def outcome(self) -> ConvertedLayer:
        """What it has become."""
        assert self._outcome is not None, "run first"
        return self._outcome

    def prepare(self) -> None:
        """Makes the helper's directory. Blocks."""
        self.directory.mkdir(0o700)
        if self._prioritized:
            listed = b"".join(path + b"\0" for path in self._prioritized)
            (self.directory / PRIORITIZED_NAME).write_bytes(listed)

    def note(self, done: int) -> None:
        """The helper has come so far."""
        self._progress.done = done

    def open(self) -> BinaryIO:
        """The blob. Blocks."""
        return (self.directory / BLOB_NAME).open("rb")

    def take_over(self, reason: str) -> None:
        """It stays as it is."""
        self._outcome = ConvertedLayer(
            before=self.before,
            after=self.before,
            diff_id=self._diff_id,
            reason=reason,
            unpacked_size=self.tar.size,
        )

    def write_tar(self, reader: LayerTarReader, reason: str) -> None:
        """It becomes a plain tar, for nobody has its blob. Blocks.

        Raises:
            StoreDamaged: It has changed.
            StoreFull, LocalError: It cannot be written.
        """
        hasher = self.tar.digest.hasher()
        with translate_os_errors("convert an image"), (self.directory / BLOB_NAME).open("wb") as to:
            for piece in reader.iter_pieces():
                hasher.update(piece)
                to.write(piece)
        if Digest.from_hasher(hasher) != self.tar.digest:
            raise self.tar.changed()
        after = rewrite_layer(
            self.before,
            media_type=media_types.OCI_LAYER,
            digest=self.tar.digest,
            size=self.tar.size,
            more={},
        )
        self._outcome = ConvertedLayer(
            before=self.before,
            after=after,
            diff_id=self.tar.digest,
            reason=reason,
            unpacked_size=self.tar.size,
        )

    def finish(self, result: dict[str, Any], format_: Format, seconds: float) -> None:
        """The helper is done."""
        self._progress.done = self._progress.size
        after = rewrite_layer(
            self.before,
            media_type=_MEDIA_TYPES[format_],
            digest=Digest.parse(result["digest"]),
            size=result["size"],
            more=result["annotations"],
        )
        self._outcome = ConvertedLayer(
            before=self.before,
            after=after,
            diff_id=Digest.parse(result["diff_id"]),
            unpacked_size=result["unpacked_size"],
            files=result["files"],
            prioritized=result["prioritized"],
            seconds=seconds,
        )


@dataclass(frozen=True, slots=True)
class ImageWork:
    """One image under conversion."""

    record: ImageRecord
    manifest: Manifest
    config: bytes
    layers: tuple[LayerJob | ConvertedLayer, ...]
    missing: int

    def finish(self) -> FinishedImage:
        """Its documents, once all layers are there."""
        layers = [one.outcome if isinstance(one, LayerJob) else one for one in self.layers]
        config = rewrite_config(self.config, [layer.diff_id for layer in layers])
        raw = rewrite_manifest(self.manifest.raw, config, [layer.after for layer in layers])
        described = Descriptor(
            media_type=media_types.OCI_CONFIG, digest=Digest.of(config), size=len(config)
        )
        document = Document(
            Descriptor(media_type=media_types.OCI_MANIFEST, digest=Digest.of(raw), size=len(raw)),
            raw,
        )
        report = ConvertedImage(
            platform=self.record.platform,
            manifest=document.descriptor.digest,
            id=described.digest,
            layers=tuple(layers),
            missing=self.missing,
        )
        return FinishedImage(report, Blob(described, partial(io.BytesIO, config)), (document,))
