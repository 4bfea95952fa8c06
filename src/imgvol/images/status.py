"""What there is to say of the layers of an open view."""

from dataclasses import dataclass

from imgvol.content.in_place_layer import InPlaceLayer
from imgvol.content.layer import Layer
from imgvol.content.lazy_layer import LazyLayerStore
from imgvol.content.records import IN_PLACE, LayerRecord
from imgvol.content.streamed_layer import StreamedLayer
from imgvol.oci.digest import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerStatus:
    """How one layer of an open view is read.

    Attributes:
        format: How its files are known: "tar" (all of it was pulled), "in place", or a lazy format.
        state: "streaming" (it is being pulled, and shown unverified), "complete" (all at hand and
            verified), "here" (all at hand, each part by a digest of its table of contents, but the
            whole is not proven), "lazy" or "bad".
        size: Bytes of the blob.
        present: Bytes of it that are here, or whose content is.
        fetched: Bytes fetched since the view was opened, whatever for.
        needed: Bytes of them that readers were waiting for.
        reason: Why it is bad, why the rest does not come, or why the layer was pulled as a whole,
            although its image has a table of contents for it.
    """

    digest: Digest
    format: str
    state: str
    size: int
    present: int
    fetched: int = 0
    needed: int = 0
    reason: str = ""


def layer_status(layer: Layer, record: LayerRecord) -> LayerStatus:
    """What there is to say of a layer of an open view."""
    if isinstance(layer, StreamedLayer):
        return LayerStatus(
            digest=layer.digest,
            format=record.format,
            state="bad" if layer.failure else "streaming",
            size=record.size,
            present=0 if layer.failure else layer.received(),
            reason=str(layer.failure or ""),
        )
    if not isinstance(layer, LazyLayerStore):
        return LayerStatus(
            digest=layer.digest,
            # Whatever has become of the record: this view reads it there.
            format=IN_PLACE if isinstance(layer, InPlaceLayer) else record.format,
            state="bad" if layer.failure else "complete",
            size=record.size,
            present=record.size,
            reason=str(layer.failure or record.obstacle),
        )
    state = "complete" if layer.is_whole else "here" if layer.is_settled else "lazy"
    fetcher = layer.fetcher
    return LayerStatus(
        digest=layer.digest,
        format=record.format,
        state="bad" if layer.failure else state,
        size=record.size,
        present=record.size if layer.is_whole else layer.present_size,
        fetched=fetcher.statistics.fetched if fetcher else 0,
        needed=fetcher.statistics.needed if fetcher else 0,
        reason=str(layer.failure or (fetcher and fetcher.failure) or _why_lazy(layer)),
    )


def _why_lazy(layer: LazyLayerStore) -> str:
    if layer.is_proven and not layer.is_whole:
        return "parts of it were given back, for want of room: they are fetched when they are read"
    if layer.stays_lazy and not layer.is_complete:
        return "parts of it were given back, for want of room: it is not completed"
    return ""
