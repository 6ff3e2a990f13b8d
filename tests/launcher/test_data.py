"""`muster prepare` and `muster data`: made once, and shown as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny

from launcher.cli.main import app

pytestmark = pytest.mark.unit


def job_file(folder: Path, **data: object) -> Path:
    job = {"name": "shown", "task": "text-classification", "model": str(tiny.bert(folder / "bert")), "data": {"train": "rows.jsonl", **data}}
    rows = [{"text": text, "label": "odd" if i % 20 else "even"} for i, text in enumerate(TEXTS)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[3], {"text": " ", "label": "odd"}]))
    (folder / "job.yaml").write_text(json.dumps(job))
    return folder / "job.yaml"


TEXTS = [f"sun {'sea ' * (i % 7)}number {i}" for i in range(60)]


def call(*arguments: object) -> None:
    app([str(a) for a in arguments], standalone_mode=False)


def test_prepare_says_what_it_made_and_makes_it_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = job_file(tmp_path)
    call("prepare", job, "--storage", tmp_path / "storage")
    first = capsys.readouterr().out
    (folder,) = (tmp_path / "storage" / "prepared").iterdir()
    assert "tokenising" in first and first.splitlines()[-1] == f"prepared  {folder}"
    dropped = [json.loads(line) for line in (folder / "dropped.jsonl").read_text().splitlines()]
    assert [(row["split"], row["row"], row["reason"]) for row in dropped] == [("train", 61, "duplicates"), ("train", 62, "missing")]
    assert dropped[0]["content"] == TEXTS[3]
    call("prepare", job, "--storage", tmp_path / "storage", "--json")
    again = json.loads(capsys.readouterr().out)
    assert again["prepared"] == str(folder) and sum(again["rows"].values()) == 60 and again["dropped"] == {"duplicates": 1, "missing": 1}


def test_rows_may_be_prepared_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = job_file(tmp_path, prepared="elsewhere")
    call("prepare", job, "--storage", tmp_path / "storage")
    assert "".join(capsys.readouterr().out.splitlines()[-1]).startswith(f"prepared  {tmp_path}/elsewhere/")
    assert not (tmp_path / "storage" / "prepared").exists()


def test_data_shows_counts_lengths_imbalance_and_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("data", job_file(tmp_path), "--storage", tmp_path / "storage")
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert any(line.split()[:2] == ["even", "3"] or line.startswith("even") for line in lines)
    assert "imbalanced: the commonest label has" in out and "times the training rows of 'even'" in out
    assert "dropped   1 missing, 1 duplicates" in lines and out.count("\nexample ") == 3
    call("data", tmp_path / "job.yaml", "--storage", tmp_path / "storage", "--json")
    shown = json.loads(capsys.readouterr().out)
    assert len(shown["sample"]) == 3 and shown["lengths"]["train"]["p50"] <= shown["longest"]["train"]
    assert sum(map(sum, shown["label_counts"].values())) == 60


def test_data_points_out_that_a_template_may_make_rows_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = job_file(tmp_path)
    template = "you are a helpful assistant and answer in one word whether the following number is odd or even, and nothing else at all: "
    rows = [{"text": f"{template}{i}", "label": "odd" if i % 2 else "even"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    call("data", job, "--storage", tmp_path / "storage", "--set", "data.split={validation: 0, test: 0}")
    assert "rows are near duplicates of others; if it is a template" in capsys.readouterr().out
    call("data", job, "--storage", tmp_path / "storage", "--set", "data.clean.near_duplicates=keep")
    assert "near duplicates" not in capsys.readouterr().out


def test_data_marks_the_tokens_with_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = {"name": "chat", "task": "causal-lm", "model": str(tiny.llama(tmp_path / "llama")), "data": {"train": str(tiny.dialogues(tmp_path / "d.jsonl", 30))}}
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    call("data", tmp_path / "job.yaml", "--storage", tmp_path / "storage")
    out = capsys.readouterr().out
    call("data", tmp_path / "job.yaml", "--storage", tmp_path / "storage", "--json")
    sample = json.loads(capsys.readouterr().out)["sample"]
    for example in sample:
        assert {part["supervised"] for part in example["parts"]} == {True, False}
        assert "".join(f"⟦{part['text']}⟧" if part["supervised"] else part["text"] for part in example["parts"]) in out
