"""From rows to prepared rows: what is refused and how it is said, what is dropped, what moves when rows are added."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.data.columns import View
from trainers.data.prepare import Prepared, prepare
from trainers.data.rows import Example
from trainers.data.split import clean, hold_out
from trainers.errors import UserError
from trainers.job import Clean
from trainers.joblint import load_job
from trainers.model_source import locate

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.bert(tmp_path_factory.mktemp("model"))


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make(folder: Path, model: Path, **data: Any) -> Prepared:
    """Prepares a job that is written to a file first, so that errors know their lines."""
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump({"task": "text-classification", "model": str(model), "data": data}, sort_keys=False))
    job, document = load_job(path)
    with document.blame("data.train"):
        return prepare(job, locate(job.model), folder / "storage", lambda text: None)


GOOD = [{"text": f"{word} {other}", "label": word} for word in ("red", "green") for other in tiny.WORDS]


@pytest.mark.parametrize(
    ("files", "data", "message"),
    [
        ({"a.jsonl": []}, {}, "job.yaml:4: data.train: {0}/a.jsonl: there are no rows"),
        ({"a.jsonl": GOOD}, {"text": "txt"}, "job.yaml:5: data.text: there is no column 'txt'; the data has text, label; did you mean text?"),
        ({"a.jsonl": GOOD, "b.jsonl": [{"text": "sea", "label": "blue"}]}, {"test": "b.jsonl"}, "job.yaml:5: data.test: the label 'blue' never occurs"),
        ({"a.jsonl": GOOD}, {"max_length": 65}, "job.yaml:5: data.max_length: 65 tokens are more than the model can position; at most 64"),
        ({"a.jsonl": [{"text": "a", "label": "x"}, {"text": "b", "label": "x"}]}, {}, "every row has the label 'x'; there is nothing to tell apart"),
        ({"a.jsonl": [{"text": 3, "label": "x"}]}, {}, "data.text: column 'text' holds int64, not text"),
        ({"a.jsonl": [{"text": "a", "label": 0.5}]}, {}, "column 'label' holds double; a label is text, a whole number or true/false"),
        ({"a.jsonl": [{"text": " ", "label": "x"}]}, {"clean": {"missing": "error"}}, "row 1 of the train data has no text or label"),
        ({"a.jsonl": [{"text": "same", "label": "x"}, {"text": "same", "label": "y"}]}, {}, "of 2 rows none is left to train on after cleaning"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_one_line_with_its_place(files: dict[str, Any], data: Any, message: str, tmp_path: Path, model: Path) -> None:
    for name, rows in files.items():
        jsonl(tmp_path / name, rows)
    with pytest.raises(UserError) as caught:
        make(tmp_path, model, train="a.jsonl", **data)
    assert message.format(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert not list((tmp_path / "storage").rglob("manifest.json")), "nothing half-written"


def test_broken_files_are_named_with_their_line(tmp_path: Path, model: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": \n')
    with pytest.raises(UserError, match=r"a\.jsonl:2: is not JSON"):
        make(tmp_path, model, train="a.jsonl")
    (tmp_path / "a.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(UserError, match=r"a\.parquet: cannot be read as parquet"):
        make(tmp_path, model, train="a.parquet")


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_every_format_gives_the_same_rows(ending: str, tmp_path: Path, model: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    path = tmp_path / f"rows.{ending}"
    if ending == "jsonl":
        jsonl(path, GOOD)
    elif ending == "json":
        path.write_text(json.dumps(GOOD))
    elif ending == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["text", "label"])
            writer.writeheader()
            writer.writerows(GOOD)
    else:
        parquet.write_table(pa.Table.from_pylist(GOOD), path)
    prepared = make(tmp_path, model, train=path.name)
    reference = make(tmp_path, model, train=jsonl(tmp_path / "reference.jsonl", GOOD).name)
    assert prepared.manifest["hash"] == reference.manifest["hash"] and sum(prepared.rows.values()) == len(GOOD)


def test_an_unchanged_source_costs_nothing_and_a_changed_one_prepares_anew(tmp_path: Path, model: Path) -> None:
    jsonl(tmp_path / "a.jsonl", GOOD)
    first = make(tmp_path, model, train="a.jsonl")
    stamp = (first.path / "manifest.json").stat().st_mtime_ns
    assert make(tmp_path, model, train="a.jsonl").path == first.path
    assert (first.path / "manifest.json").stat().st_mtime_ns == stamp
    assert make(tmp_path, model, train="a.jsonl", max_length=8).path != first.path
    jsonl(tmp_path / "a.jsonl", [*GOOD, {"text": "sun", "label": "red"}])
    assert make(tmp_path, model, train="a.jsonl").path != first.path


def test_long_rows_are_cut_with_their_closing_token_and_counted(tmp_path: Path, model: Path) -> None:
    rows = [*GOOD, {"text": "sun " * 30, "label": "red"}]
    prepared = make(tmp_path, model, train=jsonl(tmp_path / "a.jsonl", rows).name, max_length=10, split={"validation": 0, "test": 0})
    found = View.of(prepared.shards("train").table()).lengths()
    assert prepared.manifest["cut"] == 1 and max(found) == prepared.manifest["longest"]["train"] == 10


def examples(rows: list[tuple[str, str]]) -> list[Example]:
    return [Example(text, label, text) for text, label in rows]


def test_cleaning_counts_by_reason_and_held_out_rows_win() -> None:
    splits = {
        "train": [*examples([("a", "x"), ("a", "x"), ("b", "x"), ("b", "y"), ("t", "x")]), Example.blank()],
        "test": examples([("t", "x")]),
    }
    kept, dropped = clean(splits, Clean())
    assert [e.content for e in kept["train"]] == ["a"] and [e.content for e in kept["test"]] == ["t"]
    assert Counter(row.reason for row in dropped) == {"duplicates": 1, "leaks": 1, "conflicts": 2, "missing": 1}
    assert [row.row for row in dropped] == [2, 3, 4, 5, 6] and {row.split for row in dropped} == {"train"}


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.text(max_size=5), st.sampled_from("xyz")), unique_by=lambda r: r[0], min_size=1, max_size=200), st.integers(0, 50))
def test_the_split_is_stable_when_rows_are_added(rows: list[tuple[str, str]], extra: int) -> None:
    before = hold_out(examples(rows), 0.2, 0.2)
    assert sorted(e.content for part in before.values() for e in part) == sorted(text for text, _ in rows)
    assert {e.label for e in before["train"]} == {label for _, label in rows}, "every label can be learnt"
    after = hold_out(examples([*rows, *((f"added {i}", "xyz"[i % 3]) for i in range(extra))]), 0.2, 0.2)
    for name in ("validation", "test"):
        assert {e.content for e in before[name]} <= {e.content for e in after[name]}


def test_the_splits_have_about_the_asked_shares() -> None:
    parts = hold_out(examples([(str(i), "x") for i in range(20_000)]), 0.1, 0.2)
    assert len(parts["validation"]) == pytest.approx(2000, rel=0.1) and len(parts["test"]) == pytest.approx(4000, rel=0.1)
