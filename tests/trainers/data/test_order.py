"""The order of samples against a naive one, written with lists; its streams; its cost."""

from __future__ import annotations

import math
import time
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.data.order import Order, share

pytestmark = pytest.mark.unit

RANKS = [1, 2, 3, 5, 8, 64, 1000]


def naive(groups: list[int], batch: int, seed: int, epoch: int, lanes: int, width: int) -> list[list[int]]:
    """The four steps of the module's header, row by row."""
    first = [sum(groups[:g]) for g in range(len(groups))]
    key = np.array([seed, epoch], np.uint64)
    sequence = np.random.Generator(np.random.Philox(key=key)).permutation(len(groups)).tolist()
    rows = [(g, first[g] + i) for g in sequence for i in range(groups[g])]
    dealt: dict[int, int] = {}
    start = 0
    for lane in range(lanes):
        mine = rows[start : start + len(range(lane, len(rows), lanes))]
        start += len(mine)
        pieces: list[list[int]] = []
        last = None
        for g, row in mine:
            if g != last:
                pieces.append([])
            pieces[-1].append(row)
            last = g
        blocks, room = [], 1 + lane % width
        while pieces:
            blocks.append([row for piece in pieces[:room] for row in piece])
            pieces, room = pieces[room:], width
        shuffled = []
        for number, block in enumerate(blocks):
            order = np.random.Generator(np.random.Philox(key=key, counter=[0, number, lane, 1])).permutation(len(block))
            shuffled += [block[i] for i in order]
        dealt |= {lane + i * lanes: row for i, row in enumerate(shuffled)}
    positions = [dealt[p] for p in range(len(rows))]
    return [positions[i : i + batch] for i in range(0, len(positions), batch)]


sizes = st.lists(st.integers(0, 7), min_size=1, max_size=90).filter(any)


@settings(max_examples=300, deadline=None)
@given(sizes, st.integers(1, 40), st.integers(0, 2**64 - 1), st.integers(0, 3), st.sampled_from([1.0, 3.0, 7.0, 40.0, 1000.0]))
def test_the_order_is_the_naive_one(groups: list[int], batch: int, seed: int, epoch: int, window: float) -> None:
    order = Order(np.array(groups), batch, seed, group_bytes=1.0, window_bytes=window)
    expected = naive(groups, batch, seed, epoch, order.lanes, order.groups_a_block)
    assert order.batches == len(expected)
    found = [order.batch(epoch * order.batches + i).tolist() for i in range(order.batches)]
    assert found == expected
    assert sorted(row for rows in found for row in rows) == list(range(sum(groups))), "every row once"


@settings(max_examples=100, deadline=None)
@given(sizes, st.integers(1, 40), st.sampled_from(RANKS), st.sampled_from([1.0, 5.0, 1000.0]))
def test_the_ranks_read_every_position_once_whatever_their_number(groups: list[int], batch: int, world: int, window: float) -> None:
    order = Order(np.array(groups), batch, 5, group_bytes=1.0, window_bytes=window)
    for position in range(order.batches):
        _, first, stop = order.span(position)
        readers = order.readers(first, stop, world)
        for rank in set(readers.tolist()):
            mine = share(order.lanes, rank, world)
            held = [p for lane in range(mine.start, mine.stop) for p in range(first, stop) if p % order.lanes == lane]
            assert sorted(held) == (np.flatnonzero(readers == rank) + first).tolist()
            counted = [order.wanted(lane, first, stop) for lane in range(mine.start, mine.stop)]
            assert sum(b - a for a, b in counted) == len(held)


@pytest.mark.parametrize("world", RANKS)
@pytest.mark.parametrize(("groups", "batch"), [(300, 8), (5000, 256), (20_000, 1024), (10_000, 1021)])
def test_row_groups_are_fetched_by_one_rank_and_few_by_two(groups: int, batch: int, world: int) -> None:
    order = Order(np.full(groups, 100), batch, 1, group_bytes=1.0, window_bytes=1e9)
    assert order.lanes == min(batch, groups // 10)
    fetched = sum(len(order.lane(0, lane).groups) for lane in range(order.lanes))
    assert fetched <= 1.1 * groups + 1
    by_rank = [sum(len(order.lane(0, lane).groups) for lane in range(order.lanes)[share(order.lanes, rank, world)]) for rank in range(world)]
    assert sum(by_rank) == fetched


def test_blocks_end_at_different_times_and_stay_in_the_window() -> None:
    order = Order(np.full(4000, 100), 8, 1, group_bytes=4e6, window_bytes=400e6)
    assert (order.lanes, order.groups_a_block) == (8, 12)
    lanes = [order.lane(0, lane) for lane in range(8)]
    assert len({int(lane.starts[1]) for lane in lanes}) == 8
    assert all(max(np.diff(lane.edges)) <= 12 for lane in lanes)


def test_a_sorted_source_is_mixed_like_a_full_shuffle() -> None:
    """Entropy of a batch's labels, against the same batches of a full shuffle; ten labels, sorted, in 400 row groups."""
    labels = np.repeat(np.arange(10), 8000)

    def entropy(rows: np.ndarray) -> float:
        shares = [n / len(rows) for n in Counter(labels[rows].tolist()).values()]
        return -sum(p * math.log(p) for p in shares)

    shuffled = np.random.default_rng(0).permutation(len(labels))
    full = np.mean([entropy(shuffled[i : i + 32]) for i in range(0, len(labels), 32)])
    for window in (1e9, 128e6):  # 250 and 32 row groups of 400
        order = Order(np.full(400, 200), 32, 3, group_bytes=4e6, window_bytes=window)
        mean = np.mean([entropy(order.batch(i)) for i in range(0, order.batches, 25)])
        assert mean >= 0.97 * full, window


def test_a_billion_rows_cost_little() -> None:
    rows = np.full(1_000_000, 1000)
    tracemalloc.start()
    started = time.perf_counter()
    order = Order(rows, 10_000, 1, group_bytes=4e6, window_bytes=100e9)
    mine = share(order.lanes, 4321, 10_000)
    for position in (0, order.batches // 2, order.batches - 1):
        epoch, first, stop = order.span(position)
        assert len(order.readers(first, stop, 10_000)) == stop - first
        for number in range(mine.start, mine.stop):
            lane = order.lane(epoch, number)
            row, _ = order.wanted(number, first, stop)
            lane.permutation(lane.block_of(row))
    seconds = time.perf_counter() - started
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 2 and peak < 200e6, (seconds, peak)


def test_the_streams_are_pinned() -> None:
    """numpy may change what a generator draws (NEP 19): a run resumed under it must be told, not shuffled anew."""
    order = Order(np.array([3, 2, 4, 1] * 5), 4, 7, group_bytes=1.0, window_bytes=6.0)
    assert (order.lanes, order.groups_a_block) == (2, 3)
    assert [order.batch(i).tolist() for i in (0, 1, order.batches)] == [[43, 5, 44, 7], [24, 38, 29, 6], [5, 35, 7, 38]]
