"""Plans for a sandbox's volumes: what they lead to, whatever there is, what they leave alone."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvol.content.records import VolumeRecord
from imgvol.errors import Conflict
from imgvol.volumes.mountinfo import FILESYSTEM_TYPE, MountInfo, source_of
from imgvol.volumes.plan import BindAgain, Create, Restore, Wanted, plan_mounts
from imgvol.volumes.volume import HeldVolume
from support.records import image_record, layer_record

VIEWS = Path("/run/imgvol/views")
IMAGES = [image_record([layer_record(name)], name) for name in "abcd"]
TARGETS = [f"/run/imgvol/volumes/pod/{image.manifest.encoded}" for image in IMAGES]
LIVE, DEAD, OTHERS = (0, 50), (0, 40), (8, 1)
# Of another user, who has chosen our filesystem's name.
FORGED = frozenset({f"user_id={os.geteuid() + 1}"})


@dataclass(frozen=True)
class View:
    """As much of an open view as a plan looks at."""

    name: bytes


def view_of(position):
    return View(IMAGES[position].view_id.hex.encode())


def mount(target, root, device, *, is_ours=True):
    return MountInfo(
        mount_id=1,
        parent_id=1,
        major=device[0],
        minor=device[1],
        root=root,
        mount_point=target.encode(),
        options=frozenset(),
        fstype=FILESYSTEM_TYPE if is_ours else "ext4",
        source=source_of(VIEWS) if is_ours else b"/dev/sda1",
        super_options=frozenset({f"user_id={os.geteuid()}"}),
    )


def stacked(position):
    """What may be mounted at a target, from the bottom up."""
    target, root = TARGETS[position], b"/" + view_of(position).name
    kinds = [
        mount(target, root, LIVE),
        mount(target, b"/another", LIVE),
        mount(target, root, DEAD),
        mount(target, root, LIVE, is_ours=False),
        # Of another daemon of ours: another place, hence another source.
        replace(mount(target, root, LIVE), source=source_of(Path("/other/views"))),
        replace(mount(target, root, LIVE), super_options=FORGED),
    ]
    return st.lists(st.sampled_from(kinds), max_size=3)


def held_volume(position, *, is_open):
    record = VolumeRecord(
        id=f"v{position}",
        sandbox="pod",
        image="x",
        manifest=IMAGES[position].manifest,
        target=TARGETS[position],
        options="{}",
        patience=0.0,
        view_id=IMAGES[position].view_id,
        created_at=1.0,
        boot_id="b",
    )
    view = view_of(position) if is_open else None
    return HeldVolume(record=record, image=IMAGES[position], view=view)


@st.composite
def situations(draw):
    wanted = draw(st.lists(st.sampled_from(range(len(IMAGES))), max_size=6))
    held, table = {}, [mount(str(VIEWS), b"/", DEAD), mount(str(VIEWS), b"/", LIVE)]
    for position, target in enumerate(TARGETS):
        state = draw(st.sampled_from(["none", "open", "lost"]))
        if state != "none":
            held[target] = held_volume(position, is_open=state == "open")
        table += draw(stacked(position))
    # Other places, between and after.
    table.insert(draw(st.integers(2, len(table))), mount("/srv", b"/x", OTHERS, is_ours=False))
    return [Wanted("x", IMAGES[p], TARGETS[p]) for p in wanted], held, table


def at(table, target):
    return [one for one in table if one.mount_point == target.encode()]


def is_shown(table, held, target):
    """Written down once more, without the code under test."""
    stack, volume = at(table, target), held.get(target)
    if not stack or volume is None or volume.view is None:
        return False
    top = stack[-1]
    if is_foreign(top):
        return False
    return (top.root, (top.major, top.minor)) == (b"/" + volume.view.name, LIVE)


def is_foreign(one):
    is_known = one.source == source_of(VIEWS) and one.fstype == FILESYSTEM_TYPE
    return not is_known or one.super_options == FORGED


def taken(steps, held, table):
    """What a kernel and a manager make of steps."""
    held, table = dict(held), list(table)
    for step in steps:
        target = step.wanted.target if isinstance(step, Create) else step.held.record.target
        position = TARGETS.index(target)
        for left in step.leftovers:
            assert not is_foreign(left)
            table.remove(left)
        table.append(mount(target, b"/" + view_of(position).name, LIVE))
        held[target] = held_volume(position, is_open=True)
    return held, table


@given(situations())
def test_a_plan_leads_to_every_wanted_volume_and_touches_nothing_else(situation):
    wanted, held, table = situation
    targets = {one.target for one in wanted}
    in_the_way = {
        target
        for target in targets
        if not is_shown(table, held, target) and any(map(is_foreign, at(table, target)))
    }
    if in_the_way:
        with pytest.raises(Conflict) as refused:
            plan_mounts(wanted, held, table, VIEWS)
        assert refused.value.fields["target"] in in_the_way
        return
    steps = plan_mounts(wanted, held, table, VIEWS)
    after_held, after = taken(steps, held, table)
    for target in targets:
        assert is_shown(after, after_held, target)
    for one in table:
        if one.mount_point.decode() not in targets or is_foreign(one):
            assert one in after
    assert plan_mounts(wanted, after_held, after, VIEWS) == (), (
        "a second time nothing is left to do"
    )


@given(situations())
def test_each_volume_is_planned_once_and_in_the_order_of_the_requests(situation):
    wanted, held, table = situation
    table = [one for one in table if not is_foreign(one)]
    steps = plan_mounts(wanted, held, table, VIEWS)
    planned = [
        step.wanted.target if isinstance(step, Create) else step.held.record.target
        for step in steps
    ]
    order = [one.target for one in wanted]
    assert planned == sorted(set(planned), key=order.index)
    for step, target in zip(steps, planned, strict=True):
        known = held.get(target)
        expected = Create if known is None else BindAgain if known.view else Restore
        assert type(step) is expected
    for target in set(order) - set(planned):
        assert is_shown(table, held, target)
