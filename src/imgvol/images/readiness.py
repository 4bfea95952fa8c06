"""How much of an image has to be here before somebody uses it."""

from enum import Enum

from imgvol.content.records import ImageRecord


class Readiness(Enum):
    """What a caller waits for; each level includes those before it."""

    LAZY = "lazy"
    """Tables of contents are enough where the manifest pins them: each span is checked when it is
    read, the whole in the background."""

    VERIFIED = "verified"
    """Every layer's blob digest and diff ID have been checked over every byte. Layers of this
    machine's files may stay where they lie."""

    STORED = "stored"
    """And all of it is in the store: nothing else is needed any more."""

    @classmethod
    def of(cls, *, lazy: bool, verify: bool) -> "Readiness":
        """What two questions of users come to.

        Args:
            lazy: Whether content may be missing, or lie elsewhere.
            verify: Whether all of it has to be checked first.
        """
        if not lazy:
            return cls.STORED
        return cls.VERIFIED if verify else cls.LAZY

    def is_met_by(self, image: ImageRecord) -> bool:
        """Whether an image is here as far as this asks for."""
        match self:
            case Readiness.LAZY:
                return True
            case Readiness.VERIFIED:
                return image.is_complete
            case Readiness.STORED:
                return image.is_stored
