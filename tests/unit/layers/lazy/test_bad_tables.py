"""The same nonsense in every kind of table of contents: refused with an error that says why, or
read as a tar that says it would be."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from imgvol import limits
from imgvol.errors import ContentError, InvalidDocument, InvalidLayer, LimitExceeded, Unsupported
from imgvol.layers.compression import Compression
from imgvol.layers.lazy.spans import LazyLayer
from support import soci, tars
from support.lazy import describe_lazy
from support.toc_blobs import Body, sha256

NAMES = (b"a", b"b")
CONTENT = b"content"


def toc_body(compression: Compression) -> Body:
    body = Body(compression)
    for name in NAMES:
        body.file(name.decode(), CONTENT)
    return body


TAR = b"".join(tars.member(name, CONTENT) for name in NAMES) + tars.END


@dataclass(frozen=True)
class Case:
    """One kind of nonsense.

    Attributes:
        toc: Changes the entries of a table in JSON.
        ztoc: Changes a zTOC.
        error: What both are refused with; or the paths that they show all the same, as a tar would.
        ztoc_error: The same for zTOCs, where that is something else.
    """

    toc: Callable[[list[dict]], object]
    ztoc: Callable[[soci.Draft], soci.Draft] | None
    error: type[ContentError] | set[bytes]
    ztoc_error: type[ContentError] | set[bytes] | None = None


def second(**fields) -> Callable[[soci.Draft], soci.Draft]:
    """A zTOC whose second entry is another."""
    return lambda draft: replace(
        draft, entries=[draft.entries[0], replace(draft.entries[1], **fields)]
    )


def more(*entries: soci.Entry) -> Callable[[soci.Draft], soci.Draft]:
    """A zTOC with further entries behind its own; headers only."""
    placed = [replace(e, offset=2560 + 512 * n) for n, e in enumerate(entries)]
    return lambda draft: replace(
        draft, entries=[*draft.entries, *placed], uncompressed_size=2560 + 512 * len(placed)
    )


def links(*pairs: str) -> list[dict]:
    return [{"type": "hardlink", "name": a, "linkName": b} for a, b in pairs]


def soci_links(*pairs: str) -> Callable[[soci.Draft], soci.Draft]:
    made = [soci.Entry(a.encode(), b"hardlink", linkname=b.encode()) for a, b in pairs]
    return more(*made)


DEEP = "/".join("d" * (limits.PATH_DEPTH + 1))
CASES = {
    "a size that the content does not have": Case(
        lambda e: e[1].update(size=8, chunkSize=7, chunkDigest=sha256(CONTENT)),
        second(size=1 << 40),
        InvalidLayer,
    ),
    "a huge size": Case(
        lambda e: e[1].update(size=1 << 62), second(size=1 << 62), LimitExceeded, InvalidLayer
    ),
    "a negative size": Case(
        lambda e: e[1].update(size=-1), second(size=-1), InvalidDocument, InvalidLayer
    ),
    "a place beyond the blob": Case(
        lambda e: e[1].update(offset=1 << 30), second(offset=1 << 30), InvalidLayer
    ),
    "a negative place": Case(
        lambda e: e[1].update(offset=-1), second(offset=-512), InvalidDocument, InvalidLayer
    ),
    "content in the place of other content": Case(
        lambda e: e[1].update(offset=e[0]["offset"]), second(offset=512), InvalidLayer
    ),
    "a negative owner": Case(
        lambda e: e[1].update(uid=-1), second(uid=(1 << 32) - 1), InvalidDocument, InvalidLayer
    ),
    "an owner that no file can have": Case(lambda e: e[1].update(uid=1 << 32), None, InvalidLayer),
    "a NUL in a name": Case(lambda e: e[1].update(name="a\0b"), second(name=b"a\0b"), InvalidLayer),
    "a name that leads out": Case(
        lambda e: e[1].update(name="../../b"), second(name=b"../../b"), {b"/a", b"/b"}
    ),
    "a name that leads back": Case(
        lambda e: e[1].update(name="x/../b"), second(name=b"x/../b"), {b"/a", b"/b"}
    ),
    "an absolute name": Case(
        lambda e: e[1].update(name="//b"), second(name=b"//b"), {b"/a", b"/b"}
    ),
    "no name": Case(lambda e: e[1].update(name=""), second(name=b""), {b"/a"}),
    "the root as a file": Case(lambda e: e[1].update(name="."), second(name=b"."), {b"/a"}),
    "a name twice": Case(lambda e: e[1].update(name="a"), second(name=b"a"), {b"/a"}),
    "a long name": Case(
        lambda e: e[1].update(name="x" * 256), second(name=b"x" * 256), LimitExceeded
    ),
    "a long path": Case(
        lambda e: e[1].update(name="xy/" * 1400), second(name=b"xy/" * 1400), LimitExceeded
    ),
    "a deep path": Case(
        lambda e: e[1].update(name=DEEP), second(name=DEEP.encode()), LimitExceeded
    ),
    # A zTOC has the order of its tar, where a link leads to what comes before it, or below.
    "links in a circle": Case(
        lambda e: e.extend(links("xy", "yz", "zx")),
        soci_links("xy", "yz", "zx"),
        InvalidLayer,
        {b"/a", b"/b", b"-> /y", b"-> /z"},
    ),
    "a link to itself": Case(lambda e: e.extend(links("xx")), soci_links("xx"), {b"/a", b"/b"}),
    "a link to a directory": Case(
        lambda e: e.extend([{"type": "dir", "name": "d"}, *links("xd")]),
        more(soci.Entry(b"d", b"dir"), soci.Entry(b"x", b"hardlink", linkname=b"d")),
        InvalidLayer,
    ),
    "a link to a whiteout": Case(
        lambda e: e.extend([{"type": "reg", "name": ".wh.w"}, *links(("x", ".wh.w"))]),
        more(soci.Entry(b".wh.w"), soci.Entry(b"x", b"hardlink", linkname=b".wh.w")),
        {b"/a", b"/b", b"/w", b"-> /.wh.w"},
    ),
    "a device that no file can be": Case(
        lambda e: e[1].update(type="char", devMajor=1 << 33, size=0),
        second(type=b"char", major=1 << 33, size=0),
        InvalidLayer,
    ),
    "a type that there is not": Case(
        lambda e: e[1].update(type="socket"), second(type=b"socket"), Unsupported, InvalidLayer
    ),
    "a time that there is not": Case(
        lambda e: e[1].update(modtime="2023-02-30T00:00:00Z"),
        second(mtime=b"2023-02-30T00:00:00Z"),
        InvalidDocument,
        InvalidLayer,
    ),
    "a value nested deeply": Case(
        lambda e: e[1].update(xattrs=json.loads("[" * 900 + "]" * 900)), None, InvalidDocument
    ),
}


def check(read: Callable[[], LazyLayer], blob: bytes, error: type[ContentError] | set[bytes]):
    if isinstance(error, set):
        assert describe_lazy(read(), blob).keys() - {b"/"} == error
        return
    with pytest.raises(error) as caught:
        read()
    assert type(caught.value) is error
    assert len(str(caught.value)) < 6000


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("compression", [Compression.GZIP, Compression.ZSTD])
def test_nonsense_in_a_toc(compression, case):
    body = toc_body(compression)
    CASES[case].toc(body.entries)
    check(body.read, bytes(body.data), CASES[case].error)


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if case.ztoc])
def test_nonsense_in_a_ztoc(case):
    draft = CASES[case].ztoc(soci.plain_draft_of(TAR, 4096))
    check(draft.open, TAR, CASES[case].ztoc_error or CASES[case].error)
