"""Reachability over random worlds, against the definition: what a walk from the roots meets."""

from hypothesis import given
from hypothesis import strategies as st

from imgvol.content.reachability import (
    Root,
    RootKind,
    Thing,
    ThingKind,
    World,
    reasons,
    unreachable,
)
from imgvol.oci.digest import Digest

THINGS = [Thing(kind, Digest.of(bytes([n]))) for kind in ThingKind for n in range(3)]
ROOTS = [Root(kind, name) for kind in RootKind for name in "ab"]


@st.composite
def worlds(draw):
    some = st.frozensets(st.sampled_from(THINGS), max_size=4)
    return World(
        roots=draw(st.dictionaries(st.sampled_from(ROOTS), some, max_size=6)),
        # Circles included: they must neither hang it nor keep themselves alive.
        references=draw(st.dictionaries(st.sampled_from(THINGS), some)),
        stored=draw(st.frozensets(st.sampled_from(THINGS))),
    )


def without(world, roots):
    kept = {root: held for root, held in world.roots.items() if root not in roots}
    return World(roots=kept, references=world.references, stored=world.stored)


def closure(world):
    """Everything that roots lead to, as a fixed point: slow and plain."""
    alive = {thing for held in world.roots.values() for thing in held}
    while True:
        more = {t for owner in alive for t in world.references.get(owner, ())} - alive
        if not more:
            return alive
        alive |= more


@given(worlds())
def test_what_goes_is_exactly_what_nothing_leads_to(world):
    assert unreachable(world) == world.stored - closure(world)


@given(worlds())
def test_every_stored_thing_is_explained_and_only_what_goes_has_no_reason(world):
    explained = reasons(world)
    assert explained.keys() == world.stored
    assert {thing for thing, roots in explained.items() if not roots} == unreachable(world)


@given(worlds())
def test_each_reason_alone_keeps_a_thing_and_without_all_of_them_it_goes(world):
    for thing, roots in reasons(world).items():
        assert thing in world.stored
        if roots:
            assert thing in unreachable(without(world, roots))
        for root in roots:
            assert thing not in unreachable(without(world, world.roots.keys() - {root}))


@given(worlds(), st.sampled_from(ROOTS), st.frozensets(st.sampled_from(THINGS)))
def test_one_more_root_never_makes_anything_go(world, root, held):
    more = World(
        roots={**world.roots, root: {*world.roots.get(root, ()), *held}},
        references=world.references,
        stored=world.stored,
    )
    assert unreachable(more) <= unreachable(world)
    assert not unreachable(more) & held
