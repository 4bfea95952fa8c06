"""What is asked of a conversion, how far it is, and what came of it."""

from dataclasses import dataclass, field
from typing import Final

from imgvol.images.pull import PullProgress
from imgvol.images.pulls import PullOptions
from imgvol.layers.lazy.locate import Format
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.publish.pushing import PushProgress

FORMATS: Final = {"estargz": Format.ESTARGZ, "zstd:chunked": Format.ZSTD_CHUNKED}
"""What users call the formats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionRequest:
    """What is to be converted, and into what.

    Attributes:
        image: A name or an ID.
        target: A reference of a registry, or `oci:DIR[:TAG]`.
        format: One of FORMATS.
        platform: For which; None: for all that there are.
        chunk_size: Bytes; 0: the format's default.
        level: Of the compression; 0: the format's default.
        prefetch_from: What tells which files are to come first: the absolute path of a trace, or
            an image of which one is kept; empty: none are.
        options: How the target's registry is reached, and whom to be there; the image's own
            registry too, if it is the same one.
    """

    image: str
    target: str
    format: str
    platform: str | None = None
    chunk_size: int = 0
    level: int = 0
    prefetch_from: str = ""
    options: PullOptions = field(default_factory=PullOptions)


@dataclass(slots=True)
class LayerProgress:
    """How far one layer is; `done` of `size` bytes of its tar."""

    digest: Digest
    size: int
    done: int = 0


@dataclass(slots=True)
class ConversionProgress:
    """How far a conversion is; a plain object that it changes and others read."""

    stage: str = "pull"
    pull: PullProgress = field(default_factory=PullProgress)
    layers: list[LayerProgress] = field(default_factory=list)
    push: PushProgress = field(default_factory=PushProgress)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertedLayer:
    """What has become of one layer.

    Attributes:
        before: Its descriptor as it was.
        after: As it is now; the same, if it was taken over, or its tar, if its blob is nowhere.
        reason: Why it was not converted; empty: it was.
        unpacked_size: Bytes of its tar as it is now; 0 where nobody has looked.
        files: How many regular files it has.
        prioritized: How many of them come first.
        seconds: That it took.
    """

    before: Descriptor
    after: Descriptor
    diff_id: Digest
    reason: str = ""
    unpacked_size: int = 0
    files: int = 0
    prioritized: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertedImage:
    """What has become of the image of one platform.

    Attributes:
        missing: Files of the trace that it does not have.
    """

    platform: str
    manifest: Digest
    id: Digest
    layers: tuple[ConvertedLayer, ...]
    missing: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionReport:
    """What came of a conversion.

    Attributes:
        name: What the result is called.
        digest: Of its top document.
        left_out: What of the index was not taken over, and why.
    """

    name: str
    digest: Digest
    images: tuple[ConvertedImage, ...]
    left_out: tuple[str, ...]
