"""What a volume is: to those who ask, and to those who keep it."""

from dataclasses import dataclass

from imgvol.content.records import ImageRecord, VolumeRecord
from imgvol.images.open_view import OpenView
from imgvol.images.status import LayerStatus
from imgvol.images.traces.run import TraceUse
from imgvol.oci.digest import ChainID, Digest
from imgvol.volumes.mounts import Bound
from imgvol.volumes.options import WHOLE_VIEW, BindOptions
from imgvol.volumes.subpaths import WHOLE, SubPath


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """One volume, as it is told of.

    Attributes:
        image: As the caller named it, canonical.
        image_id: Digest of the image's config; None when the image is lost, or has not come.
        chain_id: Of the image's layers; None likewise.
        target: Where it is bound; None when only the view itself is used.
        view: Path of the view.
        path: Where the files are: the target, or what of the view is asked for.
        state: "mounted", or "lost": the target does not show the view.
        reason: Why it is lost.
        layers: How each layer is read, the bottom one first.
        created_at: Seconds since the epoch.
        patience: Seconds that readers wait for a registry that fails, before they are told.
        trace: What a trace has done for its view; None: nothing.
    """

    id: str
    sandbox: str
    image: str
    image_id: Digest | None
    chain_id: ChainID | None
    target: str | None
    view: str
    path: str
    state: str
    reason: str
    created_at: float
    options: BindOptions
    patience: float
    layers: tuple[LayerStatus, ...]
    trace: TraceUse | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldVolume:
    """A volume's record with what it keeps open.

    Attributes:
        image: What it shows; None when that is not in the store any more, or not yet.
        view: Kept open and shown in the filesystem's root; None when the volume is lost.
        options: What of it is bound, and how.
        part: What of the view is shown.
        bound: Its bind mount; None without a target, or when the volume is lost.
        loss: Why it is lost.
    """

    record: VolumeRecord
    image: ImageRecord | None
    view: OpenView | None
    options: BindOptions = WHOLE_VIEW
    part: SubPath = WHOLE
    bound: Bound | None = None
    loss: str = ""


def describe(held: HeldVolume, view_path: str, path: str, absence: str = "") -> Volume:
    """What there is to say of a volume.

    Args:
        held: Which.
        view_path: Of its view; empty when it has none.
        path: Where its files are; empty when they are nowhere.
        absence: Why its target does not show the view, if it does not.
    """
    record, image = held.record, held.image
    reason = held.loss or absence
    return Volume(
        id=record.id,
        sandbox=record.sandbox,
        image=record.image,
        image_id=image.id if image else None,
        chain_id=image.chain_id if image else None,
        target=record.target,
        view=view_path,
        path=path,
        state="lost" if reason else "mounted",
        reason=reason,
        created_at=record.created_at,
        options=held.options,
        patience=record.patience,
        layers=held.view.layer_statuses() if held.view else (),
        trace=held.view.trace if held.view else None,
    )
