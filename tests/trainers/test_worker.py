"""The loop's variants on two real workers: what each leaves behind can be loaded by transformers and tests the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from trainers.data.columns import View
from trainers.data.prepare import prepare
from trainers.data.prepared import Prepared
from trainers.job import job_class
from trainers.model_source import locate
from trainers.setup import Setup
from trainers.tasks import causal_lm

pytestmark = pytest.mark.cluster

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "zero 3": {"scale": {"zero": 3}},
    "lora": {"train": {"lora": {"rank": 4}}},
    "lora zero 3": {"train": {"lora": {"rank": 4}}, "scale": {"zero": 3}},
    "bf16 zero 0": {"train": {"precision": "bf16"}, "scale": {"zero": 0}},
    "bf16 zero 1": {"train": {"precision": "bf16", "micro_batch_size": 2}, "scale": {"zero": 1}},
    "bf16 zero 2": {"train": {"precision": "bf16", "micro_batch_size": 2}, "scale": {"zero": 2}},
    "bf16 zero 3": {"train": {"precision": "bf16"}, "scale": {"zero": 3}},
    "checkpointing": {"train": {"gradient_checkpointing": True}},
    "checkpointing lora": {"train": {"gradient_checkpointing": True, "lora": {}}},
    "sgd": {"train": {"optimizer": {"name": "sgd", "lr": 0.5, "momentum": 0.9}}},
    "adam cosine": {"train": {"optimizer": {"name": "adam", "lr": 1e-2}, "schedule": {"name": "cosine", "final": 0.1}}},
    "packing": {"data": {"packing": True}},
    "dropout": {"train": {"dropout": 0.2}},
    "classifier": {"task": "text-classification", "train": {"max_steps": 40}},
    "classifier lora zero 3": {"task": "text-classification", "train": {"max_steps": 40, "lora": {"rank": 4}}, "scale": {"zero": 3}},
}


def make_setup(folder: Path, name: str, changes: dict[str, Any]) -> Setup:
    task = changes.get("task", "causal-lm")
    if task == "causal-lm":
        model, rows = tiny.llama(folder / "llama", attention_dropout=0.0), tiny.dialogues(folder / "rows.jsonl", 90)
    else:
        model, rows = tiny.bert(folder / "bert"), tiny.texts(folder / "texts.jsonl", 90)
    job = job_class(task).model_validate(
        {
            "name": "variant", "task": task, "model": str(model),
            "data": {"train": str(rows), "split": {"validation": 0.2, "test": 0.2}, **changes.get("data", {})},
            "train": {"max_steps": 12, "global_batch_size": 8, "optimizer": {"lr": 1e-2}, "evaluate_every": 6, **changes.get("train", {})},
            "scale": {"workers": 2, **changes.get("scale", {})},
            "monitor": {"wandb": {"mode": "off"}},
        }
    )  # fmt: skip
    prepared = prepare(job, locate(job.model), folder / "storage", lambda text: None)
    run = folder / name.replace(" ", "-")
    (run / "logs").mkdir(parents=True)
    return Setup(job=job.resolved(), folder=str(run), prepared=str(prepared.path), model=locate(job.model), wandb="off", cpus=1, gpu=False)


def train_all(group: Any, setups: list[Setup]) -> list[Any]:
    """The report of each setup, or the error that it raised."""
    import traceback

    from trainers.worker import train

    results: list[Any] = []
    for setup in setups:
        try:
            results.append(train(setup, group))
        except Exception:
            results.append(traceback.format_exc())
    return results


def steps_of(setup: Setup) -> list[dict[str, Any]]:
    return [r for r in map(json.loads, (Path(setup.folder) / "metrics.jsonl").read_text().splitlines()) if r["kind"] == "step"]


def test_every_variant_learns_and_leaves_a_model_that_tests_the_same(tmp_path: Path) -> None:
    setups = {name: make_setup(tmp_path, name, changes) for name, changes in VARIANTS.items()}
    reports = dict(zip(setups, tiny.run_workers(train_all, 2, list(setups.values()))[0], strict=True))
    problems = {name: report[-1500:] for name, report in reports.items() if isinstance(report, str)}
    assert not problems, "\n\n".join(f"{name}: {text}" for name, text in problems.items())
    for name, setup in setups.items():
        report, steps = reports[name], steps_of(setup)
        assert report["state"] == "finished" and len(steps) == setup.job["train"]["max_steps"]
        assert np.mean([s["loss"] for s in steps[-3:]]) < np.mean([s["loss"] for s in steps[:3]]), name
        assert report["test"]["loss"] < report["baselines"]["before"]["loss"], name
        loss = reloaded_loss(setup)
        assert loss == pytest.approx(report["test"]["loss"], rel=2e-2 if "bf16" in name else 1e-4), name
        assert "fine-tuned" in (Path(setup.folder) / "model" / "README.md").read_text()
    assert (Path(setups["lora"].folder) / "model" / "adapter" / "adapter_model.safetensors").is_file()
    assert np.allclose([s["loss"] for s in steps_of(setups["lora"])], [s["loss"] for s in steps_of(setups["lora zero 3"])], atol=1e-4)
    assert np.allclose([s["loss"] for s in steps_of(setups["plain"])], [s["loss"] for s in steps_of(setups["checkpointing"])], atol=1e-4)


def reloaded_loss(setup: Setup) -> float:
    """Test loss of the saved folder, loaded by transformers alone."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    folder, table = Path(setup.folder) / "model", Prepared(Path(setup.prepared)).shards("test").table()
    rows = View.of(table).rows()
    assert AutoTokenizer.from_pretrained(folder).pad_token_id == 0
    if setup.job["task"] == "causal-lm":
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        batch = causal_lm.collate(rows, 0)
        total, _ = causal_lm.loss(model, batch)
        return total.item() / len(batch["targets"])
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    assert model.config.id2label == {0: "blue", 1: "green", 2: "red"}
    from trainers.tasks import text_classification

    total, _ = text_classification.loss(model, text_classification.collate(rows, 0))
    return total.item() / table.num_rows


def test_early_stopping_keeps_the_best_weights(tmp_path: Path) -> None:
    train = {
        "max_steps": 200, "evaluate_every": 2, "early_stopping": {"metric": "loss", "patience": 2}, "optimizer": {"lr": 0.2}, "schedule": {"name": "constant"},
    }  # fmt: skip
    setups = [make_setup(tmp_path, f"zero {z}", {"train": train, "scale": {"zero": z}}) for z in (1, 3)]
    for setup, report in zip(setups, tiny.run_workers(train_all, 2, setups)[0], strict=True):
        assert not isinstance(report, str), report
        assert report["state"] == "finished" and report["steps"] < 200
        records = [json.loads(line) for line in (Path(setup.folder) / "metrics.jsonl").read_text().splitlines()]
        validation = {r["step"]: r["metrics"]["loss"] for r in records if r["kind"] == "evaluation" and r["split"] == "validation"}
        assert report["best_step"] == min(validation, key=validation.__getitem__) and report["best"]["loss"] == min(validation.values())
        assert report["steps"] == report["best_step"] + 4, "two evaluations without improvement"
        assert reloaded_loss(setup) == pytest.approx(report["test"]["loss"], rel=1e-4), "the saved weights are the tested ones"


def test_a_stop_request_ends_the_run_before_a_step_and_keeps_the_model(tmp_path: Path) -> None:
    setup = make_setup(tmp_path, "stopped", {"train": {"max_steps": 100_000, "evaluate_every": 3}})
    (Path(setup.folder) / "stop").touch()
    late = make_setup(tmp_path, "late", {"train": {"max_steps": 100_000, "evaluate_every": 3}})
    report, later = tiny.run_workers(stop_while_training, 2, [setup, late])[0]
    assert report["state"] == "stopped" and report["steps"] == 0 and not (Path(setup.folder) / "model").exists()
    assert later["state"] == "stopped" and later["steps"] == len(steps_of(late)) >= 5 and "test" not in later
    assert reloaded_loss(late) > 0


def stop_while_training(group: Any, setups: list[Setup]) -> list[Any]:
    """As `train_all`; a `stop` file appears in the second run's folder once its metrics have five steps."""
    import threading

    def watch() -> None:
        folder = Path(setups[1].folder)
        while not (folder / "metrics.jsonl").exists() or len(steps_of(setups[1])) < 5:
            threading.Event().wait(0.02)
        (folder / "stop").touch()

    if group.rank == 0:
        threading.Thread(target=watch, daemon=True).start()
    return train_all(group, setups)


def test_a_loss_that_is_not_a_number_ends_the_run_with_its_step(tmp_path: Path) -> None:
    setup = make_setup(tmp_path, "nan", {"train": {"optimizer": {"name": "sgd", "lr": 10.0}, "gradient_clipping": 0.0, "max_steps": 500}})
    error = tiny.run_workers(train_all, 2, [setup])[0][0]
    assert isinstance(error, str) and "RunError: the loss is nan at step" in error.replace("inf", "nan")
    assert not (Path(setup.folder) / "model").exists()
