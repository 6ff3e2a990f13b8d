"""Cleaning and splitting, as pure functions of the rows' facts.

A row's split follows from a hash of its content (or of its `group_by` value), so adding rows moves no other row, and rows
that belong together never end up on two sides. Labels are stratified: each one's share is off by at most a fifth or by one
row. Where the hash alone would be further off, which happens to labels of few rows, the rows nearest the boundary change
sides. A label always keeps a row for training: a model cannot learn it otherwise.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

from trainers.data import minhash
from trainers.data.facts import ENCODING, FINE, MISSING, UNREADABLE, Facts
from trainers.data.order import Ints
from trainers.job import Clean

SPLITS = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)
REASONS = ("missing", "encoding", "unreadable", "conflicts", "duplicates", "near duplicates", "leaks")
"""Why rows are left out. `conflicts`: equal contents, other labels; `leaks`: training rows that are also held out, or nearly."""

Verdicts = NDArray[np.uint8]
"""A row's split (its number in `SPLITS`), or 3 + the number of the reason in `REASONS`."""

TOLERANCE = 0.2


def verdict(reason: str) -> int:
    """The number that says it in `Verdicts`."""
    return len(SPLITS) + REASONS.index(reason)


def decide(facts: Facts, split: NDArray[np.uint8], clean: Clean, validation: float, test: float) -> Verdicts:
    """What becomes of every row.

    Args:
        split: the split of the file each row came from, `[rows]`.
        validation: share of the training files' rows to hold out; 0 where validation rows were given.
        test: likewise.
    """
    rows = np.argsort(-split.astype(np.int64), kind="stable")  # test, validation, train: what is held out wins over its equals
    verdicts = split.copy()
    alone = len(split) == 0 or bool((split == split[0]).all())  # nothing to put in order: no second copy of the facts
    verdicts[rows] = _cleaned(facts if alone else facts.take(rows), split[rows], clean)
    mine = np.flatnonzero(verdicts == TRAIN)
    verdicts[mine] = _held_out(facts.take(mine), clean, validation, test)
    return verdicts


def _cleaned(facts: Facts, split: NDArray[np.uint8], clean: Clean) -> Verdicts:
    verdicts = split.copy()
    for state, reason in ((MISSING, "missing"), (ENCODING, "encoding"), (UNREADABLE, "unreadable")):
        verdicts[facts.state == state] = verdict(reason)
    content = _numbered(facts.content)
    if clean.conflicts == "drop":
        fine = facts.state == FINE
        least, most = np.full(len(facts), np.iinfo(np.int32).max), np.full(len(facts), -1)
        np.minimum.at(least, content[fine], facts.label[fine])
        np.maximum.at(most, content[fine], facts.label[fine])
        verdicts[fine & (least[content] < most[content])] = verdict("conflicts")
    if clean.duplicates == "drop":
        _drop_later(verdicts, split, content, content * (len(facts.labels) + 1) + facts.label + 1, "duplicates")
    left = np.flatnonzero(verdicts < len(SPLITS))
    if facts.sketch.shape[1]:
        cluster = np.arange(len(facts))
        cluster[left] = left[_components(len(left), *minhash.similar_pairs(facts.sketch[left], clean.similarity))]
        same = cluster * (len(facts.labels) + 1) + facts.label + 1
        _drop_later(verdicts, split, same, same, "near duplicates")
    held = np.unique(facts.group[(verdicts != TRAIN) & (verdicts < len(SPLITS)) & (facts.group > 0)])
    verdicts[(verdicts == TRAIN) & np.isin(facts.group, held)] = verdict("leaks")
    return verdicts


def _drop_later(verdicts: Verdicts, split: NDArray[np.uint8], across: Ints, within: Ints, reason: str) -> None:
    """Of the rows that are left, keeps the first of each `within`; and of those alike in `across`, the ones of the first's split."""
    left = np.flatnonzero(verdicts < len(SPLITS))
    first = _first(across[left])
    leak = split[left] != split[left][first]
    verdicts[left[leak]] = verdict("leaks")
    left = left[~leak]
    first = _first(within[left])
    verdicts[left[first != np.arange(len(left))]] = verdict(reason)


def _held_out(facts: Facts, clean: Clean, validation: float, test: float) -> Verdicts:
    """Splits by unit: rows of a group, equal rows, and near duplicates stay together."""
    everyone = np.arange(len(facts))
    same = [everyone, _first(_numbered(facts.content))]
    grouped = np.flatnonzero(facts.group)
    same += [grouped, grouped[_first(facts.group[grouped])]]
    if facts.sketch.shape[1]:
        same += minhash.similar_pairs(facts.sketch, clean.similarity)
    unit = _components(len(facts), np.concatenate(same[::2]), np.concatenate(same[1::2]))
    key = np.where(facts.group > 0, facts.group, facts.content[:, 0])
    least = np.full(len(facts), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(least, unit, key)
    units = np.flatnonzero(unit == everyone)  # a unit is known by its first row, and has that one's label
    chance = (least[units] >> np.uint64(11)) / 2.0**53
    ordered = np.lexsort((chance, facts.label[units]))
    bounds = np.flatnonzero(np.diff(facts.label[units][ordered], prepend=-2, append=-2))
    verdicts = np.full(len(facts), TRAIN, np.uint8)
    for a, b in itertools.pairwise(bounds.tolist()):
        of_label = units[ordered[a:b]]
        tests, validations = _counts(chance[ordered[a:b]], test, validation)
        verdicts[of_label[:tests]] = TEST
        verdicts[of_label[tests : tests + validations]] = VALIDATION
    return verdicts[unit]


def _counts(chance: NDArray[np.float64], test: float, validation: float) -> tuple[int, int]:
    """How many of a label's units, in order of their chance, test and how many validate."""
    n = len(chance)
    below = np.searchsorted(chance, [test, test + validation])
    tests = min(_near(int(below[0]), test * n), n - 1)
    return tests, min(_near(int(below[1]) - tests, validation * n), n - 1 - tests)


def _near(count: int, wanted: float) -> int:
    """The count, or the nearest one that is not off by more than `TOLERANCE` or one row."""
    if not wanted:
        return 0
    least = min(math.floor(wanted + 0.5), math.ceil((1 - TOLERANCE) * wanted))
    return min(max(count, least), max(1, math.ceil((1 + TOLERANCE) * wanted)))


def _numbered(pairs: NDArray[np.uint64]) -> Ints:
    """A number for each distinct row of `[rows, 2]`."""
    order = np.lexsort(pairs.T)
    new = (np.diff(pairs[order], axis=0, prepend=pairs[order][:1]) != 0).any(axis=1)
    numbers = np.empty(len(pairs), np.int64)
    numbers[order] = np.cumsum(new)
    return numbers


def _first(keys: NDArray) -> Ints:
    """For each element, the place of the first one equal to it."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return first[inverse]


def _components(count: int, a: Ints, b: Ints) -> Ints:
    """For each of `count` nodes, the first one of its connected component."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    _, component = connected_components(coo_array((np.ones(len(a), bool), (a, b)), shape=(count, count)), directed=False)
    return _first(component)
