"""Ranges against the plainest model there is: a set of numbers."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from imgvol.content.ranges import Ranges, joined

numbers = st.integers(0, 40)
pairs = st.lists(st.tuples(numbers, numbers), max_size=20)


@given(pairs, st.tuples(numbers, numbers))
def test_ranges_hold_what_a_set_holds(added, asked):
    ranges, model = Ranges(), set()
    for start, end in added:
        ranges.add(start, end)
        model |= set(range(start, end))
        found = list(ranges)
        assert {n for s, e in found for n in range(s, e)} == model
        assert all(s < e for s, e in found)
        assert all(before[1] < after[0] for before, after in pairwise(found)), "touching are one"
        assert ranges.size == len(model)
    assert ranges.covers(*asked) == set(range(*asked)).issubset(model)
    holes = list(ranges.holes(*asked))
    assert {n for s, e in holes for n in range(s, e)} == set(range(*asked)) - model
    assert all(s < e for s, e in holes)
    assert all(before[1] < after[0] for before, after in pairwise(holes))


@given(st.permutations(range(12)))
def test_the_order_of_adding_does_not_matter(order):
    ranges = Ranges()
    for number in order:
        ranges.add(number, number + 1)
    assert list(ranges) == [(0, 12)]


def test_nothing_is_in_an_empty_set_but_nothing_itself():
    ranges = Ranges()
    ranges.add(5, 5)
    ranges.add(6, 2)
    assert list(ranges) == []
    assert ranges.covers(3, 3)
    assert not ranges.covers(3, 4)


@given(pairs, st.integers(0, 20), st.integers(0, 40))
def test_ranges_are_joined_over_the_smallest_gaps_that_the_budget_allows(added, gap, budget):
    ranges = Ranges()
    for start, end in added:
        ranges.add(start, end)
    parts = joined(ranges, gap=gap, budget=budget)
    inside = {n for start, end in ranges for n in range(start, end)}
    covered = {n for start, end in parts for n in range(start, end)}
    assert inside <= covered
    assert len(covered) - len(inside) <= budget
    assert all(before[1] < after[0] for before, after in pairwise(parts))
    gaps = sorted(after[0] - before[1] for before, after in pairwise(ranges))
    affordable = [size for size in gaps if size <= gap]
    while sum(affordable) > budget:
        affordable.pop()
    assert len(parts) == len(list(ranges)) - len(affordable)
