"""Dealing rows to workers: every slot once, as many as its lanes hold, sums that are close together."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.data.deal import deal
from trainers.data.order import share


@settings(deadline=None, max_examples=150)
@given(st.lists(st.integers(1, 4096), min_size=0, max_size=80), st.integers(1, 12))
def test_every_slot_once_in_shares_as_large_as_the_share(lengths: list[int], world_size: int) -> None:
    hands = deal(np.array(lengths, dtype=np.int64), world_size)
    assert sorted(slot for hand in hands for slot in hand.tolist()) == list(range(len(lengths)))
    shares = [share(len(lengths), rank, world_size) for rank in range(world_size)]
    assert [len(hand) for hand in hands] == [share.stop - share.start for share in shares]


@pytest.mark.parametrize("seed", range(20))
def test_two_workers_are_within_three_percent_of_the_best_division(seed: int) -> None:
    """Against every division of 12 rows into 6 and 6, lengths as uneven as dialogues cut at 512."""
    lengths = np.random.default_rng(seed).integers(60, 513, 12)
    best = min(max(lengths[list(half)].sum(), lengths.sum() - lengths[list(half)].sum()) for half in combinations(range(12), 6))
    assert max(lengths[hand].sum() for hand in deal(lengths, 2)) <= 1.03 * best


def test_it_beats_contiguous_lanes_on_dialogues() -> None:
    """The busiest of two workers, over 200 global batches of 8, as a share of the mean."""
    batches = np.random.default_rng(0).integers(60, 513, (200, 8))
    dealt = np.mean([max(b[hand].sum() for hand in deal(b, 2)) / (b.sum() / 2) for b in batches])
    contiguous = np.mean([max(b[:4].sum(), b[4:].sum()) / (b.sum() / 2) for b in batches])
    assert dealt < 1.02 < 1.1 < contiguous


def test_thousands_of_rows_take_no_time_and_no_memory() -> None:
    lengths = np.random.default_rng(0).integers(1, 4096, 100_000)
    hands = deal(lengths, 2)
    assert abs(lengths[hands[0]].sum() - lengths[hands[1]].sum()) <= 4096
