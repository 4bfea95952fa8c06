"""What a volume is: to those who ask, and to those who keep it."""

from dataclasses import dataclass

from imgvol.content.records import ImageRecord, VolumeRecord
from imgvol.images.views import LayerStatus, OpenView
from imgvol.oci.digest import ChainID, Digest
from imgvol.volumes.mounts import Bound
from imgvol.volumes.options import WHOLE_VIEW, BindOptions
from imgvol.volumes.subpaths import WHOLE, SubPath


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """One volume, as it is told of.

    Attributes:
        image: As the caller named it, canonical.
        image_id: Digest of the image's config; None when the image is lost.
        chain_id: Of the image's layers; None when the image is lost.
        target: Where it is bound; None when only the view itself is used.
        view: Path of the view.
        path: Where the files are: the target, or what of the view is asked for.
        state: "mounted", or "lost": the target does not show the view.
        reason: Why it is lost.
        layers: How each layer is read, the bottom one first.
        created_at: Seconds since the epoch.
        patience: Seconds that readers wait for a registry that fails, before they are told.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldVolume:
    """A volume's record with what it keeps open.

    Attributes:
        image: What it shows; None when that is not in the store any more.
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
