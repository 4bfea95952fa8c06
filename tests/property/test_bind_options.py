"""Options of a bind mount: what is accepted, and that a record gives back what was put in it."""

import contextlib
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvol.errors import InvalidArgument
from imgvol.volumes.options import (
    WHOLE_VIEW,
    BindOptions,
    Escapes,
    IDMapping,
    Propagation,
    parse_mappings,
)

ID_END = 2**32 - 1
IDS = st.integers(0, 40) | st.integers(ID_END - 40, ID_END)
RUNS = st.tuples(IDS, IDS, st.integers(1, 12))
PATHS = st.binary(max_size=40).map(lambda path: path.replace(b"\0", b""))


def is_valid(runs) -> bool:
    """The same rules, said slowly."""
    for run in runs:
        if max(run[0], run[1]) + run[2] > ID_END:
            return False
    for one, other in combinations(runs, 2):
        for side in (0, 1):
            ours = range(one[side], one[side] + one[2])
            theirs = range(other[side], other[side] + other[2])
            if set(ours) & set(theirs):
                return False
    return True


def mappings_of(runs):
    return tuple(IDMapping(container_id=c, host_id=h, length=n) for c, h, n in runs)


@given(runs=st.lists(RUNS, min_size=1, max_size=4))
def test_mappings_are_taken_when_no_id_has_two_meanings(runs):
    text = ",".join(f"{c}:{h}:{n}" for c, h, n in runs)
    if is_valid(runs):
        mappings = parse_mappings(text)
        assert BindOptions(uid_mappings=mappings, gid_mappings=mappings).uid_mappings == mappings
        assert mappings == mappings_of(runs)
        assert ",".join(map(str, mappings)) == text
    else:
        with pytest.raises(InvalidArgument):
            BindOptions(uid_mappings=parse_mappings(text), gid_mappings=parse_mappings(text))


@given(
    flags=st.tuples(*[st.booleans()] * 4),
    runs=st.lists(RUNS, max_size=2).filter(is_valid),
    propagation=st.sampled_from(Propagation),
    escapes=st.sampled_from(Escapes),
    sub_path=PATHS,
)
def test_a_record_gives_back_what_was_put_in_it(flags, runs, propagation, escapes, sub_path):
    noexec, nosymfollow, selinux_relabel, dirs_only = flags
    options = BindOptions(
        noexec=noexec,
        nosymfollow=nosymfollow,
        selinux_relabel=selinux_relabel,
        dirs_only=dirs_only,
        uid_mappings=mappings_of(runs),
        gid_mappings=mappings_of(runs),
        propagation=propagation,
        escapes=escapes,
        sub_path=sub_path,
    )
    text = options.to_json()
    assert BindOptions.from_json(text) == options
    assert text.isascii()
    assert (text == "{}") == (options == WHOLE_VIEW)


@given(st.text(max_size=30) | st.sampled_from(['{"noexec":1,"x":2}', "[]", '{"sub_path":7}', "7"]))
def test_a_damaged_record_is_an_error_of_ours(text):
    with contextlib.suppress(InvalidArgument):
        BindOptions.from_json(text)


@given(st.text(alphabet="0123456789:,x- ", max_size=20))
def test_whatever_a_mapping_says_it_is_taken_or_refused(text):
    try:
        mappings = parse_mappings(text)
    except InvalidArgument:
        return
    assert ",".join(f"{m.container_id}:{m.host_id}:{m.length}" for m in mappings) == ",".join(
        ":".join(str(int(n)) for n in part.split(":")) for part in text.split(",") if part
    )
