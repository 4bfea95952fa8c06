"""Makes a database anew when it is damaged, from its copy and from what the store's files say.

The damaged one is kept beside it. The copy is from at most a minute before the end (`Store`), and
has everything: names, volumes, where lazy layers come from. What is younger is recognised by its
files: a stored layer by its card, an image by its manifest when all of its layers are here. The
names of these are lost: such images are pinned, and are found by their IDs. So is everything else
that only the database knew: volumes, pins, and lazy layers and places, whose files then belong to
nobody.

A card is believed as far as its checksum goes: that the layer's bytes are what it says, `scrub`
proves.
"""

import os
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path

import trio

from imgvol.content.blobs import BlobStore
from imgvol.content.card import LayerCard
from imgvol.content.database import examine, open_database
from imgvol.content.durable import sync_directory, translate_os_errors
from imgvol.content.layout import StoreLayout
from imgvol.content.records import ANY_PLATFORM, ImageRecord, LayerRecord, Records
from imgvol.errors import ImgvolError, StoreDamaged
from imgvol.layers.artifact import parse_artifact
from imgvol.oci.chain import chain_id
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import DiffID, Digest
from imgvol.oci.image_config import parse_image_config
from imgvol.oci.manifest import Manifest, parse_manifest


async def rebuild_database(layout: StoreLayout) -> Path | None:
    """Puts a sound database in the place of a damaged one. Nobody else may use the store.

    Returns:
        Where the damaged one is now; None: there was none.

    Raises:
        StoreFull: No room.
    """
    aside = await trio.to_thread.run_sync(_set_aside, layout)
    async with open_database(layout.database) as database:
        records = Records(database)
        known = {record.digest for record in await records.layers()}
        for record in await trio.to_thread.run_sync(_stored_layers, layout):
            if record.digest not in known:
                await records.add_layer(record)
        documents = await records.documents()
        layers = {record.digest: record for record in await records.layers()}
        for image in await trio.to_thread.run_sync(_stored_images, layout, layers):
            if image.manifest not in documents:
                await records.adopt_image(image)
    return aside


def _set_aside(layout: StoreLayout) -> Path | None:
    """Moves the database away, and its copy, if that is sound, to its place."""
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    aside = layout.database.with_name(f"{layout.database.name}.damaged-{moment}")
    has_old = layout.database.exists()
    with translate_os_errors("set the damaged database aside"):
        # The log first: with another database it must never meet.
        for suffix in ("-wal", "-shm", ""):
            part = Path(f"{layout.database}{suffix}")
            if part.exists():
                os.rename(part, f"{aside}{suffix}")
        if _is_sound(layout.database_copy):
            new = layout.ingest / "database"
            shutil.copyfile(layout.database_copy, new)
            new.chmod(0o600)
            with open(new, "rb") as file:
                os.fsync(file.fileno())
            os.rename(new, layout.database)
        sync_directory(layout.root)
    return aside if has_old else None


def _is_sound(copy: Path) -> bool:
    try:
        return not examine(copy)
    except StoreDamaged:  # of another version
        return False


def _stored_layers(layout: StoreLayout) -> list[LayerRecord]:
    """What complete layers say of themselves."""
    found = []
    for entry in os.scandir(layout.layers):
        try:
            found.append(LayerCard.load(Path(entry.path)).record)
        except StoreDamaged:
            continue  # found as a stray, and removed
    return found


def _stored_images(layout: StoreLayout, layers: dict[Digest, LayerRecord]) -> list[ImageRecord]:
    """Images whose documents and layers are all here."""
    blobs = BlobStore(layout)
    found = []
    for digest in blobs.sizes():
        try:
            image = _image_of(blobs, digest, layers)
        except ImgvolError:
            continue  # a config, or damaged
        if image is not None:
            found.append(image)
    return found


def _image_of(
    blobs: BlobStore, digest: Digest, layers: dict[Digest, LayerRecord]
) -> ImageRecord | None:
    manifest = parse_manifest(blobs.read(digest), media_type=None, expected=digest)
    if not isinstance(manifest, Manifest):
        return None
    if manifest.is_artifact:
        artifact = parse_artifact(manifest)
        return _record_of(
            manifest,
            layers,
            image_id=manifest.digest,
            wanted=(artifact.layer,),
            platform=ANY_PLATFORM,
            created=artifact.created,
            user="",
        )
    raw = blobs.read(manifest.config.digest)
    config = parse_image_config(raw, expected=manifest.config.digest)
    return _record_of(
        manifest,
        layers,
        image_id=config.digest,
        wanted=manifest.layers,
        platform=str(config.platform),
        created=config.created,
        user=config.user,
        diff_ids=config.diff_ids,
    )


def _record_of(
    manifest: Manifest,
    layers: dict[Digest, LayerRecord],
    *,
    image_id: Digest,
    wanted: tuple[Descriptor, ...],
    platform: str,
    created: str,
    user: str,
    diff_ids: tuple[DiffID, ...] = (),
) -> ImageRecord | None:
    """What was recorded when it was pulled; None if a layer is missing."""
    by_diff_id = {layer.diff_id: layer for layer in layers.values() if layer.is_complete}
    promised = diff_ids or (None,) * len(wanted)
    found = tuple(
        layer
        for descriptor, diff_id in zip(wanted, promised, strict=True)
        if (layer := layers.get(descriptor.digest) or (diff_id and by_diff_id.get(diff_id)))
    )
    if len(found) < len(wanted):
        return None
    return ImageRecord(
        id=image_id,
        manifest=manifest.digest,
        media_type=manifest.media_type,
        platform=platform,
        # Nobody has said them of artifacts, and of images that ORAS has made.
        chain_id=chain_id(diff_ids or [layer.diff_id for layer in found]),
        layers=found,
        size=len(manifest.raw) + manifest.config.size + sum(layer.size for layer in wanted),
        created=created or None,
        user=user,
        pulled_at=time.time(),
    )
