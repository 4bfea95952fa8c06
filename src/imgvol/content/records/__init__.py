"""What the database holds, as values, and the operations on them: records in, records out.

One module per kind of record: the value, its table's operations, its SQL. `database` has the
schema. `Records` is all tables together.
"""

from imgvol.content.records.chains import ChainTable
from imgvol.content.records.collection import CollectionTable
from imgvol.content.records.evictions import EvictedImage, EvictionTable
from imgvol.content.records.images import (
    ANY_PLATFORM,
    ImageChanges,
    ImageRecord,
    ImageTable,
    NamedImage,
)
from imgvol.content.records.indexes import (
    IndexedBlob,
    IndexRecord,
    LayerIndexRecord,
    SociIndexTable,
)
from imgvol.content.records.layers import IN_PLACE, FaultKind, LayerFault, LayerRecord, LayerTable
from imgvol.content.records.leases import LeaseRecord, LeaseTable
from imgvol.content.records.named import NamedVolumeRecord, NamedVolumeTable
from imgvol.content.records.origins import Origin, OriginTable
from imgvol.content.records.pins import PinTable
from imgvol.content.records.places import PlaceTable
from imgvol.content.records.savings import Saved, Saving, SavingTable
from imgvol.content.records.traces import TraceRecord, TraceTable
from imgvol.content.records.volumes import VolumeRecord, VolumeTable

__all__ = [
    "ANY_PLATFORM",
    "IN_PLACE",
    "EvictedImage",
    "FaultKind",
    "ImageChanges",
    "ImageRecord",
    "IndexRecord",
    "IndexedBlob",
    "LayerFault",
    "LayerIndexRecord",
    "LayerRecord",
    "LeaseRecord",
    "NamedImage",
    "NamedVolumeRecord",
    "Origin",
    "Records",
    "Saved",
    "Saving",
    "TraceRecord",
    "VolumeRecord",
]


class Records(
    LayerTable,
    OriginTable,
    PlaceTable,
    ImageTable,
    PinTable,
    ChainTable,
    LeaseTable,
    VolumeTable,
    NamedVolumeTable,
    SavingTable,
    SociIndexTable,
    TraceTable,
    CollectionTable,
    EvictionTable,
):
    """Typed operations over the database; each method is one transaction."""
