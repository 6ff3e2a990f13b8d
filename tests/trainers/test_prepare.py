"""From rows to prepared rows: what is refused and how it is said, what is dropped, what moves when rows are added."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import yaml

from trainers.data.columns import View
from trainers.data.prepare import prepare
from trainers.data.prepared import Prepared
from trainers.data.store import StorageError, Store
from trainers.errors import UserError
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
        ({"a.jsonl": GOOD}, {"text": "txt"}, "job.yaml:5: data.text: {0}/a.jsonl: there is no column 'txt'; the data has text, label; did you mean text?"),
        ({"a.jsonl": GOOD, "b.jsonl": [{"text": "sea", "label": "blue"}]}, {"test": "b.jsonl"}, "job.yaml:5: data.test: the label 'blue' never occurs"),
        ({"a.jsonl": GOOD}, {"max_length": 65}, "job.yaml:5: data.max_length: 65 tokens are more than the model can position; at most 64"),
        ({"a.jsonl": [{"text": "a", "label": "x"}, {"text": "b", "label": "x"}]}, {}, "every row has the label 'x'; there is nothing to tell apart"),
        ({"a.jsonl": [{"text": 3, "label": "x"}]}, {}, "data.text: {0}/a.jsonl: column 'text' holds int64, not text"),
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


def bad_rows(path: Path, good: list[dict[str, Any]]) -> None:
    """Good rows, then broken JSON on one line, a list, a row of another type, and one that is not UTF-8."""
    lines = [json.dumps(row).encode() for row in good]
    path.write_bytes(b"\n".join([*lines, b'{"text": ', b"[1]", b'{"text": 7, "label": "red"}', b'{"text": "caf\xe9 red", "label": "red"}']) + b"\n")


def test_bad_rows_stop_the_preparation_or_are_left_out(tmp_path: Path, model: Path) -> None:
    bad_rows(tmp_path / "a.jsonl", GOOD)
    with pytest.raises(UserError, match=rf"a\.jsonl:{len(GOOD) + 1}: is not JSON: Expecting value"):
        make(tmp_path, model, train="a.jsonl")
    with pytest.raises(UserError, match=rf"data\.max_bad_rows: 3 of {len(GOOD) + 4} rows cannot be read, more than the share 0\.01; the first: .*is not JSON"):
        make(tmp_path, model, train="a.jsonl", on_bad_row="drop")
    prepared = make(tmp_path, model, train="a.jsonl", on_bad_row="drop", max_bad_rows=0.5, clean={"near_duplicates": "keep"})
    assert prepared.manifest["dropped"] == {"encoding": 1, "unreadable": 3} and sum(prepared.rows.values()) == len(GOOD)
    dropped = [json.loads(line) for line in (prepared.path / "dropped.jsonl").read_text().splitlines()]
    assert [row["row"] - len(GOOD) for row in dropped] == [1, 2, 3, 4] and all(row["file"].endswith("a.jsonl") for row in dropped)
    assert "column 'text' holds int here, str elsewhere" in dropped[2]["content"] and dropped[3]["content"] == "caf\ufffd red"


def test_csv_rows_of_the_wrong_width(tmp_path: Path, model: Path) -> None:
    lines = ["text,label", *(f"{row['text']},{row['label']}" for row in GOOD), "a,b,c"]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=rf"a\.csv:{len(GOOD) + 2}: has 3 columns, not 2: a,b,c"):
        make(tmp_path, model, train="a.csv")
    assert make(tmp_path, model, train="a.csv", on_bad_row="drop", max_bad_rows=0.5).manifest["dropped"]["unreadable"] == 1


def test_a_sorted_dirty_imbalanced_set_gives_the_counts_that_were_planted(tmp_path: Path, model: Path) -> None:
    """Every kind of dirt a known number of times; the held-out shares of every label within a fifth or a row."""
    from random import Random

    draw = Random(0)

    def text(words: int = 120) -> str:
        return " ".join("".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(words))

    clean = [{"text": text(), "label": label, "user": f"{label}{i // 2}"} for label, count in (("a", 1200), ("b", 120), ("c", 12)) for i in range(count)]
    nearly = [{**row, "text": row["text"].replace(row["text"].split()[60], "zzzz", 1)} for row in clean[10:40]]
    conflicts = [{"text": text(), "label": "a", "user": "x"} for _ in range(7)]
    dirt = {
        "missing": [{"text": None, "label": "a", "user": "u"}] * 5
        + [{"text": "  ", "label": "b", "user": "u"}] * 3
        + [{"text": text(), "label": None, "user": "u"}],
        "encoding": [{"text": text() + "\ufffd", "label": "b", "user": "u"} for _ in range(4)],
        "conflicts": [*conflicts, *({**row, "label": "b"} for row in conflicts)],
        "duplicates": clean[:25],
        "near duplicates": nearly,
    }
    jsonl(tmp_path / "test.jsonl", [{"text": text(), "label": label, "user": f"held{label}"} for label in "abc"] + clean[100:106])
    jsonl(tmp_path / "a.jsonl", clean + [row for rows in dirt.values() for row in rows])
    prepared = make(tmp_path, model, train="a.jsonl", test="test.jsonl", group_by="user", split={"validation": 0.2})
    # a row of the test file also stands in training; so do its user's other rows, which are the same six: users have two rows each
    assert prepared.manifest["dropped"] == {**{reason: len(rows) for reason, rows in dirt.items()}, "leaks": 6}
    assert prepared.manifest["examples"]["test"] == 9 and sum(prepared.rows.values()) == len(clean) + 3
    for label, count in zip("abc", (1194, 120, 12), strict=True):
        held = prepared.manifest["label_counts"]["validation"][prepared.labels.index(label)]
        assert abs(held - 0.2 * count) <= max(2, 0.2 * 0.2 * count + 2), (label, held)
    again = make(tmp_path, model, train="a.jsonl", test="test.jsonl", group_by="user", split={"validation": 0.2})
    assert again.path == prepared.path


def in_small_parts(monkeypatch: pytest.MonkeyPatch, partition_bytes: int) -> None:
    """Everything as for a large source, on a small one."""
    monkeypatch.setattr("trainers.data.source.PIECE_BYTES", 5000)
    monkeypatch.setattr("trainers.data.encode.CHUNK_BYTES", 500)
    monkeypatch.setattr("trainers.data.prepare.SMALL_BYTES", 0)
    monkeypatch.setattr("trainers.data.prepare.PARTITION_BYTES", partition_bytes)


def contents(prepared: Prepared) -> dict[str, list[Any]]:
    """The rows of each split, sorted."""
    found = {}
    for split in ("train", "validation", "test"):
        rows = View.of(prepared.shards(split).table()).rows() if prepared.rows[split] else {"input_ids": []}
        found[split] = sorted(zip(*([np.asarray(value).tolist() for value in rows[name]] for name in rows), strict=True))
    return found


def test_a_source_in_many_parts_gives_the_rows_of_one_in_memory(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": f"{i} {'sea sun '[: i % 9]}red", "label": f"l{i % 7}"} for i in range(2000)] + [
        {"text": "1 sred", "label": "l1"},
        {"text": "", "label": "l1"},
    ]
    jsonl(tmp_path / "a.jsonl", rows)
    whole = make(tmp_path, model, train="a.jsonl")
    (tmp_path / "parts").mkdir()
    in_small_parts(monkeypatch, 2000)
    parts = make(tmp_path / "parts", model, train=str(tmp_path / "a.jsonl"))
    assert contents(parts) == contents(whole) and len(parts.shards("train").index) > 5
    assert {k: v for k, v in parts.manifest.items() if k != "hash"} == {k: v for k, v in whole.manifest.items() if k != "hash"}
    assert (parts.path / "dropped.jsonl").read_text() == (whole.path / "dropped.jsonl").read_text()
    assert sorted(path.name for path in parts.path.iterdir()) == ["dropped.jsonl", "index.parquet", "manifest.json", "test", "train", "validation"]


@pytest.mark.parametrize("partition_bytes", [1 << 28, 4000])
def test_documents_are_packed_within_a_partition(partition_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_small_parts(monkeypatch, partition_bytes)
    data = {"train": str(tiny.dialogues(tmp_path / "d.jsonl", 200)), "max_length": 128, "split": {"validation": 0, "test": 0}}
    model = str(tiny.llama(tmp_path / "llama"))
    made = {}
    for packing in (False, True):
        path = tmp_path / f"job-{packing}.yaml"
        path.write_text(yaml.safe_dump({"task": "causal-lm", "model": model, "data": {**data, "packing": packing}}))
        job, _ = load_job(path)
        made[packing] = prepare(job, locate(job.model), tmp_path / "storage", lambda text: None)
    plain, packed = (View.of(made[packing].shards("train").table()).rows() for packing in (False, True))
    documents = []
    for ids, supervised, lengths in zip(packed["input_ids"], packed["supervised"], packed["documents"], strict=True):
        assert len(ids) == len(supervised) == sum(lengths.tolist()) <= 128
        bounds = np.cumsum([0, *lengths.tolist()])
        documents += [(ids[a:b].tolist(), supervised[a:b].tolist()) for a, b in itertools.pairwise(bounds.tolist())]
    alone = [(ids.tolist(), flags.tolist()) for ids, flags in zip(plain["input_ids"], plain["supervised"], strict=True)]
    assert sorted(documents) == sorted(alone) and len(packed["input_ids"]) < 0.8 * len(alone)
    assert made[True].manifest["tokens"] == made[False].manifest["tokens"]


def test_neighbours_of_a_sorted_source_end_up_apart(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Label entropy of the batches, against that of a full shuffle."""
    in_small_parts(monkeypatch, 20_000)
    rows = [{"text": f"number {i}", "label": f"l{i // 1000}"} for i in range(8000)]
    prepared = make(tmp_path, model, train=jsonl(tmp_path / "a.jsonl", rows).name, split={"validation": 0, "test": 0})
    job, _ = load_job(tmp_path / "job.yaml")
    labels = np.array(View.of(prepared.shards("train").table()).rows()["label"])
    order = prepared.order(job)
    batches = [labels[list(order.batch(position))] for position in range(order.batches - 1)]
    shuffled = np.random.default_rng(0).permutation(labels)[: len(batches) * 32].reshape(-1, 32)

    def entropy(batch: Any) -> float:
        share = np.bincount(batch, minlength=8) / len(batch)
        return float(-(share[share > 0] * np.log2(share[share > 0])).sum())

    assert len(prepared.shards("train").index) > 4
    assert np.mean([entropy(batch) for batch in batches]) >= 0.97 * np.mean([entropy(batch) for batch in shuffled])


def test_a_preparation_that_failed_goes_on_where_it_was(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up after some of the work; then there is room again, and what was done is not done again."""
    in_small_parts(monkeypatch, 2000)
    jsonl(tmp_path / "a.jsonl", [{"text": f"{i} red", "label": f"l{i % 7}"} for i in range(2000)])
    put, done = Store.put, []

    def filling(self: Store, path: str, data: Any) -> None:
        if len(done) > 60:
            raise StorageError("no space left")
        put(self, path, data)
        done.append(path)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put", filling)
        with pytest.raises(UserError, match="no space left"):
            make(tmp_path, model, train="a.jsonl")
    assert not list(tmp_path.rglob("manifest.json")) and any(path.startswith("rows/") for path in done)
    finished, before = {path for path in done if path.endswith(".json")}, len(done)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "put", lambda self, path, data: (put(self, path, data), done.append(path))[0])
        prepared = make(tmp_path, model, train="a.jsonl")
    assert not finished & set(done[before:])
    (tmp_path / "again").mkdir()
    assert make(tmp_path / "again", model, train=str(tmp_path / "a.jsonl")).manifest == prepared.manifest
