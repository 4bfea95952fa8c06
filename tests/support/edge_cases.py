"""The edge-case image: one directory per case, named after it, over up to four layers.

`CASES` are read alike by umoci and by imgvol,
so that `umoci unpack` is the judge. `DISPUTED` are cases where umoci
0.4.7 does something else or refuses; each says what, and carries what imgvol shall show instead.
"""

import struct
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from support.images import (
    TIME,
    Entry,
    Image,
    Layer,
    block_device,
    character_device,
    directory,
    fifo,
    file,
    hardlink,
    opaque,
    sha256,
    sparse,
    symlink,
    whiteout,
)

MIB = 1 << 20
LAYERS = 4
COMPRESSIONS = ("gzip", "zstd", "none", "gzip")
SECOND = 10**9


@dataclass(frozen=True)
class Case:
    """Entries per layer, bottom first; the directory of the case itself is added to the first."""

    name: str
    layers: Sequence[Sequence[Entry]]
    # Directories whose time umoci does not restore, or that no layer names at all.
    untimed: Sequence[str] = ()
    # For disputed cases: what umoci does, and what imgvol shows (`described` in
    # test_edge_cases.py).
    umoci: str = ""
    expect: Mapping[str, str] = field(default_factory=dict)


def content(size: int, seed: int = 1) -> bytes:
    """Bytes that do not compress away and differ everywhere, quickly."""
    unit = b"".join(
        struct.pack("<Q", (seed * 0x9E3779B97F4A7C15 + i * 0xBF58476D1CE4E5B9) % 2**64)
        for i in range(512)
    )
    stamped = b"".join(struct.pack("<I", i) + unit[4:] for i in range(-(-size // len(unit))))
    return stamped[:size]


def capability(bits: int) -> bytes:
    """A `security.capability` value, version 2, effective (linux/capability.h)."""
    return struct.pack("<IIIII", 0x02000001, bits, 0, 0, 0)


def _types(c: str) -> Case:
    return Case(
        c,
        [
            [
                file(f"{c}/file", b"hello"),
                file(f"{c}/empty"),
                directory(f"{c}/empty-directory"),
                symlink(f"{c}/symlink", "file"),
                symlink(f"{c}/dangling", "/nowhere/at/all"),
                symlink(f"{c}/loop", "loop"),
                symlink(f"{c}/long-target", "x/" * 2000 + "end"),
                hardlink(f"{c}/hardlink", f"{c}/file"),
                fifo(f"{c}/fifo", mode=0o600),
                character_device(f"{c}/null", 1, 3, mode=0o666),
                character_device(f"{c}/zero-zero", 0, 0),
                character_device(f"{c}/large-numbers", 4095, 1048575),
                block_device(f"{c}/disk", 8, 1, mode=0o660, gid=6),
                Entry(
                    name=f"{c}/old-style",
                    type=b"\0",
                    content=b"type nul",
                    format=tarfile.GNU_FORMAT,
                ),
                Entry(
                    name=f"{c}/old-style-directory/",
                    type=b"\0",
                    mode=0o755,
                    format=tarfile.USTAR_FORMAT,
                ),
            ]
        ],
    )


def _modes(c: str) -> Case:
    modes = (0o4755, 0o2755, 0o1777, 0o7777, 0o000, 0o111, 0o644)
    entries = [file(f"{c}/file-{mode:04o}", b"x", mode=mode) for mode in modes]
    entries += [directory(f"{c}/directory-{mode:04o}", mode=mode) for mode in modes]
    return Case(c, [entries])


def _owners(c: str) -> Case:
    ids = (1, 1000, 65534, 65536, 2097152, 4000000000, 4294967294)
    entries = [file(f"{c}/{n}", b"x", uid=n, gid=n - 1) for n in ids]
    entries.append(
        file(f"{c}/base-256", b"x", uid=3_000_000_000, gid=3_000_000_001, format=tarfile.GNU_FORMAT)
    )
    entries += [
        symlink(f"{c}/symlink", "1", uid=7, gid=8),
        directory(f"{c}/directory", uid=9, gid=10),
    ]
    return Case(c, [entries])


def _times(c: str) -> Case:
    times = {
        "first-second": SECOND,
        "one-nanosecond": SECOND + 1,
        "nanoseconds": TIME,
        "almost-next": 2 * SECOND - 1,
        "after-2038": 2**31 * SECOND + 999_999_999,
    }
    entries = [file(f"{c}/{name}", b"x", mtime_ns=t) for name, t in times.items()]
    entries += [
        symlink(f"{c}/symlink", "x", mtime_ns=5 * SECOND + 5),
        directory(f"{c}/directory", mtime_ns=6 * SECOND + 6),
    ]
    entries.append(file(f"{c}/directory/does-not-touch-it", b"x"))
    return Case(c, [entries])


def _names(c: str) -> Case:
    names = [
        "n" * 255, "n" * 100, "n" * 101, "new\nline", "tab\tbell\a", " leading and trailing ",
        "-rf", "back\\slash", "...",
        ".hidden", "q'u\"o`t$e", "*?[x]", "caf\u00e9", "cafe\u0301", "\u65e5\u672c\u8a9e",
        "\U0001f600", "\udcff\udcfe-latin1-\udce9",
        ".wh", "in.wh.side", "wh.", "%41", "a=b", "#", "~", "con",
    ]  # fmt: skip
    entries = [file(f"{c}/{name}", name.encode("utf-8", "surrogateescape")) for name in names]
    entries.append(
        file(f"{c}/gnu-\udcff\udcfe", b"raw bytes in the header", format=tarfile.GNU_FORMAT)
    )
    entries.append(file(f"{c}/gnu-{'l' * 200}", b"long link header", format=tarfile.GNU_FORMAT))
    entries.append(symlink(f"{c}/gnu-long-target", "t/" * 150, format=tarfile.GNU_FORMAT))
    ustar = f"{c}/{'p' * 90}"
    entries += [
        directory(ustar),
        file(
            f"{ustar}/{'s' * 90}", b"prefix field", format=tarfile.USTAR_FORMAT, mtime_ns=9 * SECOND
        ),
    ]
    return Case(c, [entries])


def _spellings(c: str) -> Case:
    return Case(
        c,
        [
            [
                file(f"./{c}/dot-slash", b"1"),
                file(f"/{c}/absolute", b"2"),
                file(f"{c}//double", b"3"),
                file(f"{c}/./dot", b"4"),
                directory(f"{c}/sub"),
                file(f"{c}/sub/../dot-dot", b"5"),
                file(f"../../../{c}/escape", b"6"),
                hardlink(f"{c}/link-to-escape", f"../../{c}/escape"),
                hardlink(f"{c}/link-to-absolute", f"/{c}/absolute"),
                hardlink(f"{c}/link-to-dotted", f"./{c}/sub/.././dot"),
            ]
        ],
    )


def _depth(c: str) -> Case:
    entries, path = [], c
    for level in range(60):
        path = f"{path}/{level:02}-{'d' * 45}"
        entries.append(directory(path))
    entries.append(file(f"{path}/bottom", b"deep"))
    return Case(
        c, [entries, [file(f"{path}/added", b"by the second layer")], [whiteout(f"{path}/bottom")]]
    )


def _many(c: str) -> Case:
    return Case(
        c,
        [
            [file(f"{c}/{n:05}", b"%d" % n) for n in range(2000)],
            [whiteout(f"{c}/{n:05}") for n in range(0, 2000, 3)] + [directory(c)],
            [file(f"{c}/{n:05}", b"again %d" % n) for n in range(0, 2000, 5)],
        ],
    )


def _sizes(c: str) -> Case:
    sizes = (
        1,
        511,
        512,
        513,
        4095,
        4096,
        4097,
        131071,
        131072,
        131073,
        MIB - 1,
        MIB,
        MIB + 1,
        5 * MIB + 7,
    )
    return Case(c, [[file(f"{c}/{size}", content(size, size)) for size in sizes]])


def _sparse(c: str) -> Case:
    head, tail = content(600, 2), content(5000, 3)
    entries = []
    for form in ("1.0", "0.1"):
        entries += [
            sparse(
                f"{c}/{form}-holes",
                3 * MIB,
                [(4096, head), (2 * MIB + 512, tail), (3 * MIB, b"")],
                form=form,
            ),
            sparse(
                f"{c}/{form}-small",
                20_000,
                [(0, head), (12_288, tail[:512]), (20_000, b"")],
                form=form,
            ),
            sparse(f"{c}/{form}-only-hole", 100_000, [(100_000, b"")], form=form),
        ]
    return Case(c, [entries])


def _xattrs(c: str) -> Case:
    return Case(
        c,
        [
            [
                file(f"{c}/text", b"x", xattrs={"user.comment": b"hello", "user.other": b"two"}),
                file(
                    f"{c}/binary",
                    b"x",
                    xattrs={"user.binary": bytes(range(256)), "user.equals=sign": b"a=b\nc"},
                ),
                file(f"{c}/large", b"x", xattrs={"user.large": content(3000)}),
                file(
                    f"{c}/capability",
                    b"x",
                    mode=0o755,
                    xattrs={"security.capability": capability(1 << 10)},
                ),
                directory(f"{c}/directory", xattrs={"user.on-directory": b"1"}),
                symlink(f"{c}/symlink", "text"),
            ],
            [
                file(f"{c}/text", b"replaced: no attribute survives"),
                directory(f"{c}/directory", xattrs={"user.upper": b"2"}),
            ],
        ],
    )


def _whiteouts(c: str) -> Case:
    base = [
        file(f"{c}/gone", b"lower"), file(f"{c}/stays", b"lower"),
        file(f"{c}/replaced-after", b"lower"), file(f"{c}/replaced-before", b"lower"),
        file(f"{c}/.hidden", b"lower"), file(f"{c}/..double", b"lower"),
        directory(f"{c}/tree"), directory(f"{c}/tree/sub"), file(f"{c}/tree/sub/file", b"lower"),
        directory(f"{c}/dir-before"), file(f"{c}/dir-before/lower", b"lower"),
        directory(f"{c}/dir-after"), file(f"{c}/dir-after/lower", b"lower"),
        symlink(f"{c}/symlink", "stays"), symlink(f"{c}/to-tree", "tree"),
        file(f"{c}/one", b"shared"), hardlink(f"{c}/two", f"{c}/one"),
        hardlink(f"{c}/three", f"{c}/one"),
        character_device(f"{c}/device", 1, 3),
    ]  # fmt: skip
    change = [
        whiteout(f"{c}/gone"), whiteout(f"{c}/.hidden"), whiteout(f"{c}/..double"),
        whiteout(f"{c}/tree"), whiteout(f"{c}/symlink"), whiteout(f"{c}/two"),
        whiteout(f"{c}/device"), whiteout(f"{c}/never-was"),
        whiteout(f"{c}/replaced-after"), file(f"{c}/replaced-after", b"upper"),
        file(f"{c}/replaced-before", b"upper"), whiteout(f"{c}/replaced-before"),
        whiteout(f"{c}/dir-after"), directory(f"{c}/dir-after", mode=0o700),
        file(f"{c}/dir-after/upper", b"upper"),
        directory(f"{c}/dir-before", mode=0o700), file(f"{c}/dir-before/upper", b"upper"),
        whiteout(f"{c}/dir-before"),
    ]  # fmt: skip
    later = [
        file(f"{c}/gone", b"back again"),
        directory(f"{c}/tree"),
        file(f"{c}/tree/new", b"not the old tree"),
    ]
    last = [whiteout(f"{c}/gone"), Entry(name=f"{c}/.wh.stays", content=b"a whiteout with a body")]
    return Case(c, [base, change, later, last], untimed=["dir-before"])


def _opaques(c: str) -> Case:
    def tree(name):
        return [
            directory(f"{c}/{name}"), file(f"{c}/{name}/lower", b"lower"),
            directory(f"{c}/{name}/sub"),
            file(f"{c}/{name}/sub/lower", b"lower"), directory(f"{c}/{name}/sub/deep"),
            file(f"{c}/{name}/sub/deep/lower", b"lower"),
        ]  # fmt: skip

    names = ("first", "last", "middle", "nested", "empty", "twice", "with-whiteout", "then-more")
    base = [entry for name in names for entry in tree(name)]
    change = [
        opaque(f"{c}/first"), directory(f"{c}/first"), file(f"{c}/first/upper", b"upper"),
        directory(f"{c}/last"), file(f"{c}/last/upper", b"upper"), opaque(f"{c}/last"),
        directory(f"{c}/middle"), directory(f"{c}/middle/sub"), opaque(f"{c}/middle"),
        file(f"{c}/middle/sub/upper", b"upper"),
        directory(f"{c}/nested"), directory(f"{c}/nested/sub"),
        file(f"{c}/nested/sub/upper", b"upper"), opaque(f"{c}/nested/sub"),
        directory(f"{c}/empty", mode=0o711), opaque(f"{c}/empty"),
        directory(f"{c}/twice"), opaque(f"{c}/twice"), file(f"{c}/twice/second", b"second"),
        directory(f"{c}/with-whiteout"), opaque(f"{c}/with-whiteout"),
        whiteout(f"{c}/with-whiteout/lower"), file(f"{c}/with-whiteout/lower", b"upper"),
        directory(f"{c}/then-more"), opaque(f"{c}/then-more"),
        file(f"{c}/then-more/second", b"second"),
    ]  # fmt: skip
    later = [
        directory(f"{c}/twice"), opaque(f"{c}/twice"), file(f"{c}/twice/third", b"third"),
        directory(f"{c}/then-more"), file(f"{c}/then-more/third", b"third"),
    ]  # fmt: skip
    return Case(c, [base, change, later], untimed=["middle/sub"])


def _type_changes(c: str) -> Case:
    """Every type replaced by every other, and back."""
    makers = {
        "file": lambda path, n: [file(path, b"file of layer %d" % n)],
        "directory": lambda path, n: [directory(path), file(f"{path}/in-{n}", b"inside")],
        "symlink": lambda path, n: [symlink(path, f"target-{n}")],
        "fifo": lambda path, _: [fifo(path)],
        "device": lambda path, n: [character_device(path, 1, 3 + n)],
    }
    layers = [[], [], []]
    for old, make_old in makers.items():
        for new, make_new in makers.items():
            path = f"{c}/{old}-{new}"
            for n, make in enumerate((make_old, make_new, make_old)):
                layers[n] += make(path, n)
    return Case(c, layers)


def _directories(c: str) -> Case:
    base = [
        directory(f"{c}/attributes", mode=0o700, uid=1, xattrs={"user.old": b"1"}),
        file(f"{c}/attributes/kept", b"lower"),
        directory(f"{c}/untouched", mode=0o750, uid=2, gid=3, mtime_ns=77 * SECOND),
        file(f"{c}/untouched/kept", b"lower"),
    ]  # fmt: skip
    change = [
        directory(f"{c}/attributes", mode=0o755, uid=5, xattrs={"user.new": b"2"}),
        file(f"{c}/untouched/added", b"the layer does not name the directory"),
    ]
    return Case(c, [base, change])


def _hardlinks(c: str) -> Case:
    base = [
        file(f"{c}/a", b"one file", mode=0o640, uid=3), hardlink(f"{c}/b", f"{c}/a"),
        hardlink(f"{c}/c", f"{c}/b"),
        symlink(f"{c}/symlink", "a"), hardlink(f"{c}/second-name-of-symlink", f"{c}/symlink"),
        directory(f"{c}/sub"), symlink(f"{c}/to-sub", "sub"), file(f"{c}/sub/file", b"in sub"),
        hardlink(f"{c}/through-symlink", f"{c}/to-sub/file"),
        fifo(f"{c}/fifo"), hardlink(f"{c}/second-fifo", f"{c}/fifo"),
        file(f"{c}/large", content(2 * MIB, 5)), hardlink(f"{c}/large-too", f"{c}/large"),
        hardlink(f"{c}/other-attributes", f"{c}/sub/file", mode=0o777, uid=9, mtime_ns=SECOND),
    ]  # fmt: skip
    change = [
        whiteout(f"{c}/a"),  # b and c stay one file
        file(f"{c}/sub/file", b"now a file of its own"),
        file(f"{c}/new", b"both in the second layer"), hardlink(f"{c}/new-too", f"{c}/new"),
    ]  # fmt: skip
    return Case(c, [base, change])


def _foreign_links(c: str) -> Case:
    base = [
        file(f"{c}/lower", b"in the first layer", uid=4),
        file(f"{c}/replaced", b"old"),
        directory(f"{c}/sub"),
    ]
    change = [
        hardlink(f"{c}/sub/link", f"{c}/lower"),
        hardlink(f"{c}/old-content", f"{c}/replaced"),
        file(f"{c}/replaced", b"new, after the link was made"),
    ]
    return Case(c, [base, change, [whiteout(f"{c}/lower")]])


def _duplicates(c: str) -> Case:
    return Case(
        c,
        [
            [
                file(f"{c}/file", b"first"), file(f"{c}/file", b"second wins", mode=0o600),
                directory(f"{c}/kept", mode=0o700), file(f"{c}/kept/child", b"x"),
                directory(f"{c}/kept", mode=0o755),
                directory(f"{c}/to-file"), file(f"{c}/to-file/lost", b"x"),
                file(f"{c}/to-file", b"a file now"),
                file(f"{c}/to-directory", b"x"), directory(f"{c}/to-directory"),
                file(f"{c}/to-directory/child", b"x"),
                symlink(f"{c}/link-to-directory", "kept"), directory(f"{c}/link-to-directory"),
                file(f"{c}/linked", b"x"), hardlink(f"{c}/other-name", f"{c}/linked"),
                file(f"{c}/linked", b"parted"),
                file(f"{c}/large", content(2 * MIB, 6)), file(f"{c}/large", b"small in the end"),
            ]
        ],
    )  # fmt: skip


def _symlinked_parents(c: str) -> Case:
    """Parents that are symbolic links of the same layer are followed, inside the root."""
    return Case(
        c,
        [
            [
                directory(f"{c}/etc"), file(f"{c}/etc/passwd", b"users"), directory(f"{c}/dummy"),
                symlink(f"{c}/absolute", f"/{c}/etc"), file(f"{c}/absolute/by-absolute", b"1"),
                symlink(f"{c}/up-and-out", f"/{c}/dummy/../etc"),
                file(f"{c}/up-and-out/by-up-and-out", b"2"),
                symlink(f"{c}/dummy/etc", f"/{c}/etc"), symlink(f"{c}/multiple", f"/{c}/dummy/etc"),
                file(f"{c}/multiple/by-multiple", b"3"),
                symlink(f"{c}/relative", "./dummy/etc"), file(f"{c}/relative/by-relative", b"4"),
                symlink(f"{c}/far-up", f"../../../../../../../{c}/etc"),
                file(f"{c}/far-up/by-far-up", b"5"),
                hardlink(f"{c}/link-by-absolute", f"/{c}/absolute/passwd"),
                hardlink(f"{c}/link-by-far-up", f"{c}/far-up/passwd"),
                file(f"{c}/etc/emptied", b"not empty"), file(f"{c}/absolute/emptied"),
            ]
        ],
    )  # fmt: skip


def _symlink_and_directory(c: str) -> Case:
    base = [
        directory(f"{c}/etc"), file(f"{c}/etc/passwd", b"users"), directory(f"{c}/was-directory"),
        file(f"{c}/was-directory/lost", b"x"),
        symlink(f"{c}/was-symlink", "etc"), symlink(f"{c}/removed", "etc"),
    ]  # fmt: skip
    change = [
        symlink(f"{c}/was-directory", "etc"), directory(f"{c}/was-symlink"),
        file(f"{c}/was-symlink/own", b"not in etc"),
        whiteout(f"{c}/removed"),
    ]  # fmt: skip
    return Case(c, [base, change])


def _implicit_parents(c: str) -> Case:
    return Case(
        c,
        [
            [file(f"{c}/a/b/c/file", b"nobody names its parents")],
            [file(f"{c}/a/b/d/file", b"nor here")],
        ],
        untimed=[".", "a", "a/b", "a/b/c", "a/b/d"],
    )


def _whiteout_like_directory(c: str) -> Case:
    """The prefix counts on the last component only."""
    return Case(
        c,
        [[directory(f"{c}/etc")], [file(f"{c}/.wh.etc/somefile", b"non-empty")]],
        untimed=[".", ".wh.etc"],
    )


CASES = tuple(
    make(name)
    for name, make in {
        "types": _types, "modes": _modes, "owners": _owners, "times": _times, "names": _names,
        "spellings": _spellings,
        "depth": _depth, "many-entries": _many, "sizes": _sizes, "sparse": _sparse,
        "xattrs": _xattrs,
        "whiteouts": _whiteouts, "opaques": _opaques, "type-changes": _type_changes,
        "directories": _directories,
        "hardlinks": _hardlinks, "links-to-lower-layers": _foreign_links, "duplicates": _duplicates,
        "symlinked-parents": _symlinked_parents, "symlink-and-directory": _symlink_and_directory,
        "implicit-parents": _implicit_parents, "whiteout-like-directory": _whiteout_like_directory,
    }.items()
)  # fmt: skip

OLD_SPARSE_PIECES = [(4096, content(512, 2)), (2 * MIB + 512, content(5000, 3)), (3 * MIB, b"")]


def laid_out(size: int, pieces: Sequence[tuple[int, bytes]]) -> bytes:
    """What a reader of a sparse file sees."""
    seen = bytearray(size)
    for offset, data in pieces:
        seen[offset : offset + len(data)] = data
    return bytes(seen)


DISPUTED = (
    Case(
        "old-sparse",
        [[sparse("old-sparse/holes", 3 * MIB, OLD_SPARSE_PIECES, form="old")]],
        umoci="fails: unknown type `S`",
        expect={"holes": f"file {sha256(laid_out(3 * MIB, OLD_SPARSE_PIECES))}"},
    ),
    Case(
        "contiguous",
        [
            [
                Entry(
                    name="contiguous/file",
                    type=b"7",
                    content=b"type seven",
                    format=tarfile.GNU_FORMAT,
                )
            ]
        ],
        umoci="fails: unknown type `7`",
        expect={"file": "file type seven"},
    ),
    Case(
        "parent-is-symlink-of-lower-layer",
        [
            [
                directory("parent-is-symlink-of-lower-layer/etc"),
                symlink("parent-is-symlink-of-lower-layer/link", "etc"),
            ],
            [file("parent-is-symlink-of-lower-layer/link/file", b"here")],
        ],
        umoci="follows the link; overlay snapshotters show a directory in its place",
        expect={"etc": "directory", "link": "directory", "link/file": "file here"},
    ),
    Case(
        "parent-is-file-of-same-layer",
        [
            [
                file("parent-is-file-of-same-layer/x", b"file"),
                file("parent-is-file-of-same-layer/x/y", b"below"),
            ]
        ],
        umoci="0.4.7 fails: not a directory",
        expect={"x": "directory", "x/y": "file below"},
    ),
    Case(
        "aufs",
        [
            [file("aufs/kept", b"kept"), file("aufs/.plnk", b"kept too")],
            [
                file("aufs/.wh..wh.aufs"),
                directory("aufs/.wh..wh.plnk"),
                file("aufs/.wh..wh.plnk/1.2", b"a pseudo link"),
                directory("aufs/.wh..wh.orph"),
            ],
        ],
        umoci="shows the directory `.wh..wh.plnk`: the names of its children have no prefix",
        expect={"kept": "file kept", ".plnk": "file kept too"},
    ),
    Case(
        "global-pax-header",
        [
            [
                Entry(
                    name="pax_global_header",
                    raw=tarfile.TarInfo.create_pax_global_header({"uid": "7", "comment": "x"}),
                ),
                file("global-pax-header/file", b"uid 0"),
            ]
        ],
        umoci="fails: unknown type `g`",
        expect={"file": "file uid 0"},
    ),
    Case(
        "symlink-named-dot-dot",
        [
            [
                directory("symlink-named-dot-dot/sub"),
                symlink("symlink-named-dot-dot/sub/../..", "/etc/"),
                file("symlink-named-dot-dot/file", b"x"),
            ]
        ],
        umoci="refuses to change the type of the root (CVE-2021-29136)",
        expect={"sub": "directory", "file": "file x"},
    ),
    Case(
        "trusted-xattrs",
        [
            [
                directory("trusted-xattrs/sub", xattrs={"trusted.overlay.opaque": b"y"}),
                file("trusted-xattrs/sub/file", b"x"),
            ]
        ],
        umoci="sets them: an image could change the merge of an overlay above its view",
        expect={"sub": "directory", "sub/file": "file x"},
    ),
)


def image_of(cases: Sequence[Case], compressions: Sequence[str] = COMPRESSIONS) -> Image:
    """Layer n of the image holds layer n of every case."""
    layers: list[list[Entry]] = [
        [directory("./", mode=0o755, mtime_ns=TIME)],
        *([] for _ in range(LAYERS - 1)),
    ]
    for case in cases:
        layers[0].append(directory(case.name))
        for number, entries in enumerate(case.layers):
            layers[number] += entries
    return Image([Layer(e, c) for e, c in zip(layers, compressions, strict=True)])


def untimed_paths(cases: Sequence[Case]) -> list[str]:
    paths = [f"{case.name}/{path}" for case in cases for path in case.untimed]
    return [path.removesuffix("/.") for path in paths]
