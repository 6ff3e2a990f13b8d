"""Cleaning and splitting against naive references, and what adding rows moves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.data.facts import Facts
from trainers.data.rows import Example
from trainers.data.split import REASONS, SPLITS, decide
from trainers.job import Clean, Data

pytestmark = pytest.mark.unit

EXACT = Clean(near_duplicates="keep")
Row = tuple[str, str, str | None]
GROUPED = st.tuples(st.text(max_size=4), st.sampled_from("xyz"), st.sampled_from([None, *"pqrstuvw"]))


def verdicts(rows: Sequence[tuple[str, ...]], clean: Clean = EXACT, given: int = 0, validation: float = 0.0, test: float = 0.0) -> list[str]:
    """What becomes of (text, label, group) rows; the last `given` of them come from the test file."""
    examples = [Example(row[0], row[1], row[0] or None, group=row[2] if len(row) > 2 else None) for row in rows]
    split = np.array([0] * (len(rows) - given) + [2] * given, np.uint8)
    return [(*SPLITS, *REASONS)[v] for v in decide(Facts.of(examples, Data(train="x", clean=clean)), split, clean, validation, test).tolist()]


def test_every_reason_and_held_out_rows_win() -> None:
    rows = [("a", "x"), ("a", "x"), ("b", "x"), ("b", "y"), ("t", "x"), ("", "x"), ("\ufffd", "x"), ("t", "x")]
    expected = ["train", "duplicates", "conflicts", "conflicts", "leaks", "missing", "encoding", "test"]
    assert verdicts(rows, given=1) == expected


def test_what_is_kept_on_request() -> None:
    keep = Clean(duplicates="keep", conflicts="keep", encoding="keep", near_duplicates="keep")
    assert verdicts([("a", "x"), ("a", "x"), ("b", "x"), ("b", "y"), ("\ufffd", "x")], keep) == ["train"] * 5


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("xy"), st.none()), max_size=40), st.integers(0, 10))
def test_cleaning_equals_a_naive_reference(rows: list[Row], given: int) -> None:
    given = min(given, len(rows))
    labels: dict[str, set[str]] = {}
    for text, label, _ in rows:
        labels.setdefault(text, set()).add(label)
    seen: dict[str, str] = {}
    expected = [""] * len(rows)
    first_train = len(rows) - given
    for i in [*range(first_train, len(rows)), *range(first_train)]:
        split, text = "test" if i >= first_train else "train", rows[i][0]
        expected[i] = "conflicts" if len(labels[text]) > 1 else split if text not in seen else "duplicates" if seen[text] == split else "leaks"
        seen.setdefault(text, split)
    assert verdicts(rows, given=given) == expected


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.text(max_size=4), st.sampled_from("xyz"), st.sampled_from([None, *"pqrstuvw"])), max_size=80), st.floats(0, 0.45), st.floats(0, 0.45)
)
def test_groups_and_equal_rows_stay_together_and_every_label_is_learnt(rows: list[Row], validation: float, test: float) -> None:
    keep = Clean(duplicates="keep", conflicts="keep", missing="drop", encoding="keep", near_duplicates="keep")
    found = verdicts(rows, keep, 0, validation, test)
    for key in (0, 2):
        sides: dict[str, set[str]] = {}
        for row, side in zip(rows, found, strict=True):
            if row[key] and side in SPLITS:
                sides.setdefault(str(row[key]), set()).add(side)
        assert all(len(side) == 1 for side in sides.values())
    alone = [row for row in rows if row[0] and row[2] is None]
    if alone == [row for row in rows if row[0]] and len({row[0] for row in alone}) == len(alone):
        assert {row[1] for row, side in zip(rows, found, strict=True) if side == "train"} == {row[1] for row in alone}


def test_labels_are_stratified_and_large_ones_follow_the_hash_alone() -> None:
    rows = [(f"{label}{i}", label) for label, count in (("x", 20_000), ("y", 300), ("z", 20), ("rare", 3)) for i in range(count)]
    found = Counter(zip((row[1] for row in rows), verdicts(rows, validation=0.1, test=0.2), strict=True))
    for label, count in (("x", 20_000), ("y", 300), ("z", 20), ("rare", 3)):
        for split, share in (("validation", 0.1), ("test", 0.2)):
            assert abs(found[label, split] - share * count) <= max(1, 0.2 * share * count), (label, split)


def test_adding_rows_moves_no_row_of_a_label_that_has_enough() -> None:
    rows = [(f"{label}{i}", label) for label in "xy" for i in range(2000)]
    before = verdicts(rows, validation=0.1, test=0.1)
    for more in (1, 50, 3000):
        assert verdicts([*rows, *((f"more {i}", "xy"[i % 2]) for i in range(more))], validation=0.1, test=0.1)[: len(rows)] == before
    shuffled = np.random.default_rng(0).permutation(len(rows))
    assert verdicts([rows[i] for i in shuffled], validation=0.1, test=0.1) == [before[i] for i in shuffled], "nor does their order"


def test_near_duplicates_are_dropped_and_those_of_another_label_stay_on_one_side() -> None:
    words = "alpha beta gamma delta epsilon zeta eta theta iota kappa".split()
    texts = [" ".join(f"{word}{k}{i}" for k in range(4) for word in words) for i in range(60)]
    near = [f"{text} once more" for text in texts]
    rows = [*((text, "x") for text in texts), *((text, "y") for text in near)]
    clean = Clean(similarity=0.8)
    found = verdicts(rows, clean, validation=0.2, test=0.2)
    assert found[:60] == found[60:] and {"train", "test", "validation"} == set(found)
    assert verdicts([(text, "x") for text in texts + near], clean) == ["train"] * 60 + ["near duplicates"] * 60
    assert verdicts([*((text, "x") for text in texts), *((text, "x") for text in near)], clean, given=60) == ["leaks"] * 60 + ["test"] * 60


def test_facts_of_parts_are_the_facts_of_the_whole() -> None:
    examples = [Example(f"text {i}", "cab"[i % 3], 1, group=str(i // 4)) for i in range(20)]
    data = Data(train="x")
    whole, joined = Facts.of(examples, data), Facts.join([Facts.of(examples[:7], data), Facts.of([], data), Facts.of(examples[7:], data)])
    assert whole.labels == joined.labels == ["a", "b", "c"]
    for name in ("state", "content", "label", "group", "size", "sketch"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(joined, name))
