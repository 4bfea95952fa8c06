"""Whatever is told of an image while its layers come is what the image turns out to be."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvol.errors import ImgvolError, InvalidLayer
from imgvol.layers.builder import IndexBuilder
from imgvol.layers.growing import GrowingIndex
from imgvol.layers.index import LayerIndex, NodeType
from imgvol.layers.tar import MemberType
from imgvol.view.chain import ChainView
from imgvol.view.settling import SettlingView, Unsettled
from support import model

PROBED = [*model.NAMES, b".wh.a", b"stargz.index.json"]
DEPTH = 3


class Coming:
    """Layers that come member by member, in any order, as the pulls of an image bring them."""

    def __init__(self, stack):
        self.view = SettlingView(len(stack), chain_slot=5)
        self.builders = [IndexBuilder() for _ in stack]
        self.growing = {}
        self.rest = [list(members) for members in stack]

    def step(self, position):
        """The next that happens to a layer: it begins, gets a member, or ends."""
        builder, rest = self.builders[position], self.rest[position]
        if rest is None:
            return
        if position not in self.growing:
            self.growing[position] = GrowingIndex(builder)
            self.view.begin(position, self.growing[position])
        elif rest:
            builder.add(rest.pop(0))
        else:
            self.rest[position] = None
            index = LayerIndex(builder.finish())
            self.view.end(position, index, self.growing[position].final_nodes())

    def finish(self):
        for position in reversed(range(len(self.rest))):
            while self.rest[position] is not None:
                self.step(position)


def told(view, *, depth=DEPTH):
    """What the view tells at this moment, by path; None: there is no such name.

    And what it lists, by path and "names".
    """
    answers = {}
    pending = [((), view.root)]
    while pending:
        path, node = pending.pop()
        if len(path) == depth or not view.is_directory(node):
            continue
        if isinstance(view, SettlingView):
            assert_settled_as_listed(view, node)
        with contextlib.suppress(Unsettled):
            names = tuple(view.list(node))
            answers[(*path, "names")] = names, tuple(name for name, _ in names)
        for name in PROBED:
            try:
                found = view.lookup(node, name)
            except Unsettled:
                continue
            answers[(*path, name)] = None if found is None else (found, describe(view, found))
            if found is not None:
                pending.append(((*path, name), found))
    return answers


def assert_settled_as_listed(view, node):
    try:
        view.list(node)
    except Unsettled:
        assert not view.is_settled(node, None)
    else:
        assert view.is_settled(node, None)


def describe(view, node):
    attributes = view.attributes(node)
    is_link = attributes.type is NodeType.SYMLINK
    return (
        attributes._replace(nlink=0, ino=0),
        view.symlink_target(node) if is_link else b"",
        view.xattrs(node),
    )


def without_nodes(answers):
    return {path: answer and answer[1] for path, answer in answers.items()}


def follow(stack, order, seen):
    """Lets a stack come in an order, and looks at everything after each step.

    Returns:
        The view, and what it ever told. It may have failed.
    """
    coming = Coming(stack)
    ever = {}
    try:
        for position in order:
            coming.step(position % len(stack))
            for path, answer in (told(coming.view) if seen else {}).items():
                assert ever.setdefault(path, answer) == answer, path
        coming.finish()
    except InvalidLayer:
        assert coming.view.failure is not None
    return coming.view, ever


orders = st.lists(st.integers(0, 4), max_size=60)


@given(model.stacks(), orders)
def test_what_is_told_early_is_so_in_the_end_or_the_view_fails(stack, order):
    if not stack:
        return
    view, ever = follow(stack, order, seen=True)
    if view.failure is not None:
        with pytest.raises(ImgvolError):
            view.lookup(view.root, b"a")
        return
    assert view.is_whole
    final = told(view)
    for path, answer in ever.items():
        assert final[path] == answer, path
    assert without_nodes(final) == without_nodes(told(ChainView(indexes(stack))))


OPAQUE = [
    model.DEFAULT._replace(name=b"a"),
    model.DEFAULT._replace(name=b"a/.wh..wh..opq", type=MemberType.FILE),
    model.DEFAULT._replace(name=b"a/c", type=MemberType.FILE),
]


@given(model.stacks(), orders)
def test_what_an_upper_layer_makes_opaque_is_listed_as_soon_as_that_has_ended(stack, order):
    stack = [*stack, OPAQUE]
    first = [len(stack) - 1] * (len(OPAQUE) + 2)
    view, ever = follow(stack, [*first, *order], seen=True)
    assert ever[b"a", "names"][1] == (b"c",)
    if view.failure is None:
        final = told(view)
        for path, answer in ever.items():
            assert final[path] == answer, path


@given(model.stacks(), orders)
def test_who_asks_for_nothing_early_sees_the_image_as_it_is(stack, order):
    if not stack:
        return
    view, _ = follow(stack, order, seen=False)
    assert view.failure is None
    plain = ChainView(indexes(stack))
    assert everything(view) == everything(plain)


@st.composite
def tidy_stacks(draw):
    """What real builders write: each path once, directories before what they hold."""
    stack = []
    for members in draw(model.stacks()):
        tidy, seen = [], {}
        for member in members:
            path = model.cleaned(member.name)
            is_whiteout = bool(path) and path[-1].startswith(b".wh.")
            if not path or path in seen or member.type in {MemberType.SYMLINK, MemberType.HARDLINK}:
                continue
            missing = [path[:n] for n in range(1, len(path)) if path[:n] not in seen]
            parents = [seen[path[:n]] for n in range(1, len(path)) if path[:n] in seen]
            if not all(kind is MemberType.DIRECTORY for kind in parents):
                continue
            for parent in missing:
                seen[parent] = MemberType.DIRECTORY
                tidy.append(model.DEFAULT._replace(name=b"/".join(parent)))
            seen[path] = None if is_whiteout else member.type
            tidy.append(member._replace(name=b"/".join(path)))
        stack.append(tidy)
    return stack


@given(tidy_stacks(), orders)
def test_no_archive_that_says_everything_once_fails(stack, order):
    if not stack:
        return
    view, _ = follow(stack, order, seen=True)
    assert view.failure is None
    assert view.is_whole


def indexes(stack):
    found = []
    for members in stack:
        builder = IndexBuilder()
        for member in members:
            builder.add(member)
        found.append(LayerIndex(builder.finish()))
    return found


def everything(view):
    """All paths of a whole view, by its listings."""
    found = {}
    pending = [((), view.root)]
    while pending:
        path, node = pending.pop()
        found[path] = describe(view, node)
        with_nlink = view.attributes(node).nlink
        found[path] = (*found[path], with_nlink)
        if view.is_directory(node):
            pending += [((*path, name), child) for name, child in view.list(node)]
    return found
