"""A trace: which files of an image a program has read, in which order, and when. Pure.

A trace is advice. What it says decides what is fetched first, never what is shown: whoever writes a
wrong one wastes time and bytes, up to what its readers allow.

Paths are bytes. In the document they are text: every byte that is no part of a printable character
is written as `%XX`, and so is the per cent sign itself.
"""

import json
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Final
from urllib.parse import quote_from_bytes

from imgvol import limits
from imgvol.errors import InvalidPlatform, LimitExceeded
from imgvol.oci.descriptor import parse_digest
from imgvol.oci.digest import Digest
from imgvol.oci.json import Node, field_names
from imgvol.oci.platform import Platform

# The media type of the document, and the type of the artifact that carries it.
TRACE_TYPE: Final = "application/vnd.imgvol.trace.v1+json"
VERSION: Final = 1

_FIELDS: Final = field_names("version", "image", "platform", "name", "seconds", "files")
_FILE_FIELDS: Final = field_names("path", "size", "first", "ranges")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ESCAPE: Final = re.compile(rb"%([0-9A-Fa-f]{2})")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# Three bytes of text may stand for one of the path.
_ENCODED_LENGTH: Final = 3 * limits.PATH_LENGTH


@dataclass(frozen=True, slots=True)
class TracedRange:
    """Bytes of a file that were read.

    Attributes:
        offset: The first of them.
        size: How many; at least one.
        milliseconds: Since the trace began, until the first of them was asked for.
    """

    offset: int
    size: int
    milliseconds: int

    @property
    def end(self) -> int:
        """One past the last byte."""
        return self.offset + self.size


@dataclass(frozen=True, slots=True)
class TracedFile:
    """A file that was opened.

    Attributes:
        path: From the image's root, without a slash in front.
        size: Of the file: a newer image has the same file if path and size are the same.
        first: Milliseconds since the trace began, until it was opened.
        ranges: What was read of it, in the order of their times. No two of them touch. None if it
            was only opened.
    """

    path: bytes
    size: int
    first: int
    ranges: tuple[TracedRange, ...]

    @property
    def read_bytes(self) -> int:
        """How many of its bytes were read."""
        return sum(item.size for item in self.ranges)


@dataclass(frozen=True, slots=True)
class Trace:
    """See the module.

    Attributes:
        image: The manifest of the image that was traced.
        platform: Of that image, as in `linux/amd64`; empty for an artifact.
        name: What the image was called; empty if it had no name.
        seconds: How long was traced.
        files: In the order of their first access; each path once.
    """

    image: Digest
    platform: str
    name: str
    seconds: float
    files: tuple[TracedFile, ...]

    @property
    def read_bytes(self) -> int:
        """How many bytes were read, of all files."""
        return sum(file.read_bytes for file in self.files)

    def to_bytes(self) -> bytes:
        """The document. The same trace gives the same bytes."""
        document = {
            "version": VERSION,
            "image": str(self.image),
            "platform": self.platform,
            "name": self.name,
            "seconds": self.seconds,
            "files": [
                {
                    "path": encode_path(file.path),
                    "size": file.size,
                    "first": file.first,
                    "ranges": [[item.offset, item.size, item.milliseconds] for item in file.ranges],
                }
                for file in self.files
            ],
        }
        return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def parse_trace(raw: bytes) -> Trace:
    """Read a trace.

    Args:
        raw: The document.

    Raises:
        LimitExceeded: The document is too large, or it has too many files or ranges.
        InvalidDocument: Not a trace of version 1, or one that contradicts itself.
    """
    document = Node.parse(raw, what="trace", max_size=limits.TRACE_SIZE)
    document.refuse_case_variants(_FIELDS)
    version = document.require("version")
    if version.integer() != VERSION:
        raise version.error(f"the only version is {VERSION}")
    seconds = document.require("seconds")
    return Trace(
        image=parse_digest(document.require("image")),
        platform=_platform(document.require("platform")),
        name=_name(document.get("name")),
        seconds=seconds.number(maximum=limits.TRACE_SECONDS),
        files=_files(document.require("files")),
    )


def encode_path(path: bytes) -> str:
    """A path as it is written in the document; `decode_path` gives it back."""
    return "".join(
        character
        if character.isprintable() and character != "%"
        else quote_from_bytes(character.encode("utf-8", "surrogateescape"), safe="")
        for character in path.decode("utf-8", "surrogateescape")
    )


def decode_path(text: str) -> bytes | None:
    """The path that a text means; None if it means none."""
    if _BAD_ESCAPE.search(text):
        return None
    return _ESCAPE.sub(lambda found: bytes((int(found[1], 16),)), text.encode("utf-8"))


def _files(node: Node) -> tuple[TracedFile, ...]:
    items = node.array()
    if len(items) > limits.TRACE_FILES:
        raise LimitExceeded(
            "trace has too many files", limit="TRACE_FILES", allowed=limits.TRACE_FILES
        )
    files: list[TracedFile] = []
    seen: set[bytes] = set()
    ranges = 0
    for item in items:
        file = _file(item)
        ranges += len(file.ranges)
        if ranges > limits.TRACE_RANGES:
            raise LimitExceeded(
                "trace has too many ranges", limit="TRACE_RANGES", allowed=limits.TRACE_RANGES
            )
        if file.path in seen:
            raise item.error("the path is there twice")
        if files and file.first < files[-1].first:
            raise item.require("first").error("files are not in the order of their first access")
        seen.add(file.path)
        files.append(file)
    return tuple(files)


def _file(node: Node) -> TracedFile:
    node.refuse_case_variants(_FILE_FIELDS)
    first = node.require("first").integer(maximum=limits.TRACE_MILLISECONDS)
    size = node.require("size").integer()
    listed = node.require("ranges")
    ranges = tuple(_range(item, size, first) for item in listed.array())
    if any(b.milliseconds < a.milliseconds for a, b in pairwise(ranges)):
        raise listed.error("ranges are not in the order of their times")
    by_offset = sorted(ranges, key=lambda item: item.offset)
    if any(b.offset <= a.end for a, b in pairwise(by_offset)):
        raise listed.error("ranges overlap or touch")
    return TracedFile(path=_path(node.require("path")), size=size, first=first, ranges=ranges)


def _range(node: Node, file_size: int, first: int) -> TracedRange:
    items = node.array()
    if len(items) != 3:
        raise node.error("a range is [offset, size, milliseconds]")
    offset, size, milliseconds = items
    found = TracedRange(
        offset.integer(),
        size.integer(minimum=1),
        milliseconds.integer(minimum=first, maximum=limits.TRACE_MILLISECONDS),
    )
    if found.end > file_size:
        raise node.error("a range ends behind the file")
    return found


def _path(node: Node) -> bytes:
    text = node.string()
    if len(text) > _ENCODED_LENGTH:
        raise node.error("the path is too long")
    if _CONTROL.search(text):
        raise node.error("the path has control characters that are not escaped")
    path = decode_path(text)
    if path is None:
        raise node.error("a per cent sign in the path is followed by no two digits")
    names = path.split(b"/")
    if len(path) > limits.PATH_LENGTH or max(map(len, names)) > limits.NAME_LENGTH:
        raise node.error("the path is too long")
    if b"\0" in path or not {b"", b".", b".."}.isdisjoint(names):
        raise node.error("not a plain path from the image's root")
    return path


def _platform(node: Node) -> str:
    if not node.string():
        return ""
    try:
        return str(Platform.parse(node.string()))
    except InvalidPlatform as exc:
        raise node.error(str(exc)) from exc


def _name(node: Node | None) -> str:
    if node is None:
        return ""
    name = node.string()
    if len(name) > limits.REFERENCE_LENGTH or not (name.isascii() and name.isprintable()):
        raise node.error("not the name of an image")
    return name
