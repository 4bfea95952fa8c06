"""Lists of images: one reference a line, with blank lines and comments between.

    # what the nodes need
    docker.io/library/busybox:1.36
    registry.example/team/app@sha256:…

Nothing in a list ends it: a line that is no reference is told of with its number, and passed over.
"""

from dataclasses import dataclass
from typing import Final

from imgvol import limits
from imgvol.errors import InvalidReference
from imgvol.oci.reference import parse_docker_reference

_COMMENT: Final = b"#"
# What editors on other systems put before the first line.
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedImage:
    """An image that a list names.

    Attributes:
        line: Where, from 1.
        name: Canonical: with its registry, and with a tag or a digest.
    """

    line: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BadLine:
    """A line that names nothing.

    Attributes:
        line: Where, from 1.
        reason: What is wrong.
    """

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageList:
    """What a list says.

    Attributes:
        images: In the list's order, each once.
        bad: What was passed over, in order.
    """

    images: tuple[ListedImage, ...]
    bad: tuple[BadLine, ...]


def parse_list(data: bytes, *, is_cut: bool = False) -> ImageList:
    """Reads a list.

    Args:
        data: All of it, or as much as may be read.
        is_cut: Whether there is more: the last line is then only a part of one.
    """
    lines = data.removeprefix(_BYTE_ORDER_MARK).split(b"\n")
    rest = len(lines) if is_cut else None
    images: dict[str, ListedImage] = {}
    bad: list[BadLine] = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if number == rest:
            reason = (
                f"the list has more than {limits.PRELOAD_LIST_SIZE} bytes: it is read up to here"
            )
            bad.append(BadLine(line=number, reason=reason))
        elif text and not text.startswith(_COMMENT):
            try:
                name = _canonical(text)
            except InvalidReference as exc:
                bad.append(BadLine(line=number, reason=str(exc)))
            else:
                images.setdefault(name, ListedImage(line=number, name=name))
    return ImageList(images=tuple(images.values()), bad=tuple(bad))


def _canonical(line: bytes) -> str:
    if len(line) > limits.PRELOAD_LINE_SIZE:
        raise InvalidReference("longer than any reference", allowed=limits.PRELOAD_LINE_SIZE)
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise InvalidReference("not UTF-8", offset=exc.start) from exc
    return str(parse_docker_reference(text))
