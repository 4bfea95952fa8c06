"""A second opinion on merging: layers as dictionaries of paths, changeset rules applied in a row.

Slow, obvious, and without a line in common with the package: a layer is unpacked into a dictionary,
and dictionaries are laid over each other. Also here: random layers.
"""

from dataclasses import dataclass, field

from hypothesis import strategies as st

from imgvol.layers.tar import MemberType, TarMember

Path = tuple[bytes, ...]
DEFAULT = TarMember(b"", MemberType.DIRECTORY, 0o755)


class Broken(Exception):
    """The layers make no sense."""


@dataclass(eq=False)
class Thing:
    """A file, a directory, … Names of one file share one Thing."""

    member: TarMember
    is_implicit: bool = False
    foreign: Path | None = None

    @property
    def is_directory(self) -> bool:
        return self.member.type is MemberType.DIRECTORY


@dataclass
class Layer:
    """What one layer says when it has been read to the end."""

    things: dict[Path, Thing] = field(default_factory=dict)
    whiteouts: set[Path] = field(default_factory=set)
    opaques: set[Path] = field(default_factory=set)


def read_layer(members: list[TarMember]) -> Layer:
    layer = Layer()
    for member in members:
        read_member(layer, member)
    return layer


def read_member(layer: Layer, member: TarMember) -> None:
    path = cleaned(member.name)
    if not path:
        if member.type is MemberType.DIRECTORY:
            layer.things[()] = Thing(member)
        return
    parent = followed(layer.things, path[:-1], must_exist=False)
    for length in range(1, len(parent) + 1):
        known = layer.things.get(parent[:length])
        if known is None or not known.is_directory:
            layer.things[parent[:length]] = Thing(DEFAULT, is_implicit=True)
    path = (*parent, path[-1])
    if path[-1] == b".wh..wh..opq":
        layer.opaques.add(parent)
    elif path[-1].startswith(b".wh."):
        if path[-1][4:] in (b"", b".", b".."):
            raise Broken
        layer.whiteouts.add((*parent, path[-1][4:]))
    elif member.type is MemberType.HARDLINK:
        _read_hardlink(layer, path, member)
    else:
        _replace(layer, path, Thing(member))


def _read_hardlink(layer: Layer, path: Path, member: TarMember) -> None:
    target = cleaned(member.linkname)
    if not target:
        raise Broken
    target = (*followed(layer.things, target[:-1], must_exist=False), target[-1])
    if target in layer.things and layer.things[target].is_directory:
        raise Broken
    if target != path:
        found = layer.things.get(target) or Thing(member, foreign=target)
        _replace(layer, path, found)


def _replace(layer: Layer, path: Path, thing: Thing) -> None:
    old = layer.things.get(path)
    if not (thing.is_directory and old is not None and old.is_directory):
        remove(layer.things, path)
        layer.whiteouts = {p for p in layer.whiteouts if not is_below(p, path)}
        layer.opaques = {p for p in layer.opaques if p != path and not is_below(p, path)}
    layer.things[path] = thing


def merge(layers: list[Layer]) -> dict[Path, Thing]:
    merged: dict[Path, Thing] = {(): Thing(DEFAULT, is_implicit=True)}
    for layer in layers:
        merged = apply_layer(merged, layer)
    return merged


def apply_layer(lower: dict[Path, Thing], layer: Layer) -> dict[Path, Thing]:
    merged = dict(lower)
    for opaque in layer.opaques:
        for path in [p for p in merged if is_below(p, opaque)]:
            del merged[path]
    for whiteout in layer.whiteouts:
        remove(merged, whiteout)
    for path in sorted(layer.things):
        thing = layer.things[path]
        old = merged.get(path)
        if thing.is_directory and old is not None and old.is_directory:
            merged[path] = old if thing.is_implicit else thing
            continue
        remove(merged, path)
        merged[path] = thing if thing.foreign is None else find_foreign(lower, thing.foreign)
    return merged


def find_foreign(lower: dict[Path, Thing], target: Path) -> Thing:
    target = (*followed(lower, target[:-1], must_exist=True), target[-1])
    if target not in lower or lower[target].is_directory:
        raise Broken
    return lower[target]


def remove(things: dict[Path, Thing], top: Path) -> None:
    for path in [p for p in things if p == top or is_below(p, top)]:
        del things[path]


def is_below(path: Path, top: Path) -> bool:
    return len(path) > len(top) and path[: len(top)] == top


def cleaned(text: bytes) -> Path:
    path: Path = ()
    for name in text.split(b"/"):
        if name == b"..":
            path = path[:-1]
        elif name not in (b"", b"."):
            path = (*path, name)
    return path


def followed(things: dict[Path, Thing], names: Path, *, must_exist: bool, links: int = 0) -> Path:
    """A path without symbolic links."""
    if links > 40:
        raise Broken
    path: Path = ()
    for i, name in enumerate(names):
        if name == b"..":
            path = path[:-1]
            continue
        thing = things.get((*path, name))
        if thing is not None and thing.member.type is MemberType.SYMLINK:
            target = thing.member.linkname
            start = () if target.startswith(b"/") else path
            steps = tuple(step for step in target.split(b"/") if step not in (b"", b"."))
            rest = (*start, *steps, *names[i + 1 :])
            return followed(things, rest, must_exist=must_exist, links=links + 1)
        if must_exist and (thing is None or not thing.is_directory):
            raise Broken
        path = (*path, name)
    return path


# --- random layers -----------------------------------------------------------------------------

NAMES = [b"a", b"b", b"c"]
_names = st.sampled_from([b"a", b"a", b"b", b"b", b"c"])
_clean_paths = st.integers(1, 3).flatmap(
    lambda depth: st.lists(_names, min_size=1, max_size=depth).map(b"/".join)
)
_paths = _clean_paths | st.builds(
    lambda prefix, path, suffix: prefix + path + suffix,
    st.sampled_from([b"", b"/", b"./", b"../", b"b/../", b"c//", b"a/./"]),
    _clean_paths,
    st.sampled_from([b"", b"/", b"/."]),
)
_targets = _clean_paths | st.sampled_from(
    [b"/a", b"../b", b"/", b"..", b"../../c/a", b"/b/../c", b"./a/", b"b/c/../../a"]
)
_KINDS = [
    *[MemberType.DIRECTORY] * 6,
    *[MemberType.FILE] * 5,
    *[MemberType.SYMLINK] * 3,
    *[MemberType.HARDLINK] * 4,
    MemberType.FIFO,
    MemberType.CHAR,
    MemberType.BLOCK,
]
_XATTRS = [(), ((b"user.a", b"1"),), ((b"security.capability", b"\0=\n\xff"), (b"user.b", b""))]


@st.composite
def members(draw) -> TarMember:
    """One member; its payload_offset is to be made unique."""
    path, shape = draw(_paths), draw(st.integers(0, 19))
    if shape < 4:
        head, _, name = path.rstrip(b"/.").rpartition(b"/")
        return TarMember(head + b"/.wh." + name, MemberType.FILE)
    if shape == 4:
        return TarMember(path + b"/.wh..wh..opq", MemberType.FILE)
    if shape == 5:
        path = draw(st.sampled_from([b".", b"./", b"/", b".wh..wh..opq"]))
    kind = draw(st.sampled_from(_KINDS))
    has_target = kind in (MemberType.SYMLINK, MemberType.HARDLINK)
    is_device = kind in (MemberType.CHAR, MemberType.BLOCK)
    return TarMember(
        path,
        kind,
        mode=draw(st.sampled_from([0o644, 0o755, 0o4755, 0o1777, 0])),
        uid=draw(st.sampled_from([0, 1000, 4_000_000_000])),
        gid=draw(st.sampled_from([0, 5])),
        size=draw(st.integers(8, 12)) if kind is MemberType.FILE else 0,
        mtime_ns=draw(st.sampled_from([0, 1, 1_700_000_000_123_456_789])),
        linkname=draw(_targets) if has_target else b"",
        devmajor=draw(st.integers(1, 9)) if is_device else 0,
        devminor=draw(st.integers(0, 9)) if is_device else 0,
        xattrs=draw(st.sampled_from(_XATTRS)) if kind is not MemberType.HARDLINK else (),
    )


@st.composite
def stacks(draw, *, max_layers: int = 5, max_members: int = 12) -> list[list[TarMember]]:
    """Layers that make sense, the bottom one first. Every file has its own payload_offset."""
    stack: list[list[TarMember]] = []
    merged = merge([])
    number = 0
    for _ in range(draw(st.integers(1, max_layers))):
        kept: list[TarMember] = []
        for member in draw(st.lists(members(), max_size=max_members)):
            number += 1
            target = member.linkname
            if member.type is MemberType.HARDLINK:
                things = merged | read_layer(kept).things
                files = sorted(b"/".join(p) for p, t in things.items() if not t.is_directory)
                target = draw(st.sampled_from([*files, target]))
            candidate = [*kept, member._replace(linkname=target, payload_offset=512 * number)]
            try:
                apply_layer(merged, read_layer(candidate))
            except Broken:
                continue
            kept = candidate
        merged = apply_layer(merged, read_layer(kept))
        stack.append(kept)
    return stack
