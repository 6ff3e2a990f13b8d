"""Documents into rows: all of them, none too full, about as few rows as can be."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.data import columns
from trainers.data.packing import pack

pytestmark = pytest.mark.unit

CASES = st.integers(1, 60).flatmap(lambda capacity: st.tuples(st.lists(st.integers(1, capacity), max_size=60), st.just(capacity)))


def _best_fit_decreasing(lengths: list[int], capacity: int) -> list[list[int]]:
    """The longest document first, into the fullest row that has room for it: every row looked at every time."""
    groups: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        left = {g: capacity - sum(lengths[i] for i in group) - lengths[number] for g, group in enumerate(groups)}
        fits = [g for g in left if left[g] >= 0]
        if fits:
            groups[min(fits, key=lambda g: left[g])].append(number)
        else:
            groups.append([number])
    return groups


@given(CASES)
def test_every_document_once_and_no_row_too_full(case: tuple[list[int], int]) -> None:
    lengths, capacity = case
    groups = pack(lengths, capacity)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert all(group and sum(lengths[i] for i in group) <= capacity for group in groups)


@given(CASES)
def test_as_many_rows_as_the_naive_algorithm_fills_as_full(case: tuple[list[int], int]) -> None:
    lengths, capacity = case

    def fill(groups: list[list[int]]) -> list[list[int]]:
        return sorted(sorted(lengths[i] for i in group) for group in groups)

    groups, naive = pack(lengths, capacity), _best_fit_decreasing(lengths, capacity)
    assert len(groups) == len(naive)
    # which of equally full rows takes a document is free, and so is what shares a row: how full the rows are is not
    assert sorted(map(sum, fill(groups))) == sorted(map(sum, fill(naive)))


@given(CASES)
def test_within_the_bound_of_the_fewest(case: tuple[list[int], int]) -> None:
    lengths, capacity = case
    halves = sum(2 * length > capacity for length in lengths)  # no two of these share a row
    groups = pack(lengths, capacity)
    assert max(-(-sum(lengths) // capacity), halves) <= len(groups)
    # a row without one of those is more than two thirds full by the time another is opened
    assert len(groups) <= halves + -(-3 * sum(lengths) // (2 * capacity))


def test_close_to_the_lower_bound_on_documents_of_usual_lengths() -> None:
    draw = random.Random(0)
    lengths = [min(2048, max(1, int(draw.lognormvariate(5.5, 1)))) for _ in range(20_000)]
    assert len(pack(lengths, 2048)) <= 1.005 * sum(lengths) / 2048 + 1


def test_the_same_every_time() -> None:
    lengths = [random.Random(1).randint(1, 100) for _ in range(200)]
    assert pack(lengths, 100) == pack(list(lengths), 100)


def test_no_documents_and_whole_rows() -> None:
    assert pack([], 8) == []
    assert pack([8, 8, 8], 8) == [[0], [1], [2]]
    assert pack([3, 5, 3, 5], 8) == [[1, 0], [3, 2]] or pack([3, 5, 3, 5], 8) == [[1, 2], [3, 0]]
    assert len(pack([0, 0, 8], 8)) == 1


def test_a_document_longer_than_a_row() -> None:
    with pytest.raises(ValueError, match="document 1 has 9 tokens; a row holds 8"):
        pack([1, 9], 8)


def test_rows_are_laid_end_to_end() -> None:
    draw = np.random.default_rng(0)
    rows = [draw.integers(0, 60_000, length).tolist() for length in draw.integers(0, 9, 50)]
    table = columns.pack({"input_ids": rows, "documents": [[len(row)] for row in rows]}, ["input_ids", "documents"])
    for groups in ([[3, 1], [], [7], list(range(10, 50))], [[i] for i in range(50)], []):
        found = columns.View.of(columns.end_to_end(table, groups)).rows()
        assert [row.tolist() for row in found["input_ids"]] == [[token for i in group for token in rows[i]] for group in groups]
        assert [row.tolist() for row in found["documents"]] == [[len(rows[i]) for i in group] for group in groups]
