"""Between files as the kernel asks for them and paths: a recording is named, a trace is matched."""

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

import trio

from imgvol import limits
from imgvol.images.traces.recording import FileKey, NotedFile
from imgvol.layers.index import NodeType
from imgvol.view.chain import ChainView
from imgvol.view.trace import Trace, TracedFile

# Paths looked up before other tasks get their turn: a few milliseconds of work.
_AT_ONCE: Final = 64


class Wanted(NamedTuple):
    """A part of a file that a trace names, in a view that has that file.

    Attributes:
        milliseconds: When it was read.
        key: The file.
        offset: Of the part.
        size: Of the part.
    """

    milliseconds: int
    key: FileKey
    offset: int
    size: int


async def name_files(notes: Mapping[FileKey, NotedFile], tree: ChainView) -> tuple[TracedFile, ...]:
    """The noted files with their paths, in the order of their first access.

    A file with several names has the first that the view shows. One that only a hard link of a
    layer above still shows is left out.
    """
    files = []
    for number, (key, note) in enumerate(notes.items()):
        if number % _AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
        path = next((path for path in _names(tree, key) if find_file(tree, path) == key), None)
        if path is not None:
            files.append(TracedFile(path, note.size, note.first, note.ranges()))
    return tuple(sorted(files, key=lambda file: file.first))


def _names(tree: ChainView, key: FileKey) -> Iterator[bytes]:
    index = tree.layers[key.position]
    for directory, name in index.hardlink_names(key.node):
        parent = index.path_of(directory).strip(b"/")
        yield parent + b"/" + name if parent else name


async def match(trace: Trace, tree: ChainView) -> tuple[list[Wanted], int]:
    """What of a trace a view has, in the order of time, and how many files these are of.

    A file is the same if path and size are. Of a file that is at most limits.TRACE_WHOLE all is
    wanted: the kernel's readahead blurs what was read, and to ask twice costs more.
    """
    found: list[Wanted] = []
    files = 0
    for number, file in enumerate(trace.files):
        if number % _AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
        key = find_file(tree, file.path) if file.ranges else None
        if key is None:
            continue
        record = tree.layers[key.position].record(key.node)
        if record.type is not NodeType.FILE or record.size != file.size:
            continue
        files += 1
        if file.size <= limits.TRACE_WHOLE:
            found.append(Wanted(file.ranges[0].milliseconds, key, 0, file.size))
        else:
            found += (
                Wanted(item.milliseconds, key, item.offset, item.size) for item in file.ranges
            )
    found.sort(key=lambda wanted: wanted.milliseconds)
    return found, files


def find_file(tree: ChainView, path: bytes) -> FileKey | None:
    """The file at a path, without following links; None: there is none."""
    node = tree.root
    for name in path.split(b"/"):
        if not tree.is_directory(node):
            return None
        found = tree.lookup(node, name)
        if found is None:
            return None
        node = found
    return None if tree.is_directory(node) else FileKey(*tree.content(node))
