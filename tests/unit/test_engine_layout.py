"""How rows lie in forward passes: nothing lost, nothing twice, limits kept, little wasted."""

import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from comd_trainer.engine.layout import grouped, packs, shares

LENGTHS = st.lists(st.integers(1, 300), max_size=64)


@given(LENGTHS, st.integers(1, 4), st.integers(1, 8))
def test_groups_hold_every_row_once_and_ranks_have_equally_many(lengths: list[int], ranks: int, size: int) -> None:
    found = grouped(lengths, world_size=ranks, micro_batch_size=size)
    assert sorted(place for rank in found for micro in rank for place in micro) == list(range(len(lengths)))
    assert [len(rank) for rank in found] == [max(1, math.ceil(len(lengths) / (ranks * size)))] * ranks
    sizes = [len(micro) for rank in found for micro in rank]
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1, "no rank idles while another has work for two"


@given(LENGTHS, st.integers(1, 4), st.integers(1, 8))
def test_rows_of_a_group_are_neighbours_in_length(lengths: list[int], ranks: int, size: int) -> None:
    found = grouped(lengths, world_size=ranks, micro_batch_size=size)
    turns = [micro for turn in zip(*found, strict=True) for micro in turn]
    in_order = [lengths[place] for micro in turns for place in micro]
    assert in_order == sorted(lengths, reverse=True)


def test_grouping_leaves_little_padding() -> None:
    lengths = [10, 300, 12, 290, 11, 310, 9, 305]
    found = grouped(lengths, world_size=1, micro_batch_size=4)[0]
    padded = sum(len(micro) * max(lengths[place] for place in micro) for micro in found)
    assert padded <= 1.05 * sum(lengths), "put together as they come, they would be padded to 2,460"


@given(LENGTHS, st.integers(1, 8))
def test_shares_are_even(lengths: list[int], ranks: int) -> None:
    found = shares(lengths, world_size=ranks)
    assert len(found) == ranks
    assert sorted(place for share in found for place in share) == list(range(len(lengths)))
    loads = [sum(lengths[place] for place in share) for share in found]
    assert max(loads) - min(loads) <= max(lengths, default=0)


@given(LENGTHS, st.integers(300, 2000))
def test_packs_keep_their_limit_and_are_few(lengths: list[int], limit: int) -> None:
    found = packs(lengths, limit=limit)
    assert sorted(place for pack in found for place in pack) == list(range(len(lengths)))
    loads = sorted(sum(lengths[place] for place in pack) for pack in found)
    assert all(0 < load <= limit for load in loads)
    # Of two that fit into one, the second would never have been begun.
    assert all(first + second > limit for first, second in pairwise(loads))
    assert len(found) <= 2 * math.ceil(sum(lengths) / limit)
