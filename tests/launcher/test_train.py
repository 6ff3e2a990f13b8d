"""`muster train` as a user runs it: the command itself, a Ray of its own, real workers; killed, stopped and fed nonsense."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny
import wandbfile
import yaml

pytestmark = pytest.mark.cluster

MUSTER = [str(Path(sys.executable).with_name("muster"))]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model and rows for both tasks."""
    folder = tmp_path_factory.mktemp("jobs")
    tiny.bert(folder / "bert")
    tiny.llama(folder / "llama")
    tiny.texts(folder / "texts.jsonl", 120)
    tiny.dialogues(folder / "dialogues.jsonl", 90)
    return folder


def write_job(folder: Path, **changes: Any) -> Path:
    job: dict[str, Any] = {
        "task": "text-classification", "model": "./bert", "data": {"train": "texts.jsonl", "split": {"validation": 0.2, "test": 0.2}},
        "train": {"epochs": 3, "global_batch_size": 8, "optimizer": {"lr": 1e-2}}, "scale": {"workers": 2, "zero": 2},
        "monitor": {"wandb": {"mode": "offline", "project": "tiny"}},
    }  # fmt: skip
    for key, value in changes.items():
        job[key] = {**job.get(key, {}), **value} if isinstance(value, dict) else value
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """The command in a process group of its own, so that Ctrl-C can be sent as a terminal does: to all of the group."""
    return subprocess.Popen(
        [*MUSTER, *arguments], env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def events(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


def ours(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def left(processes: list[psutil.Process]) -> list[str]:
    """Those still running once the command has ended; a zombie that init has yet to reap has ended too."""
    found = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} of {process.ppid()}: {' '.join(process.cmdline())[:150]}")
        except psutil.NoSuchProcess:
            pass
    return found


def test_a_run_from_the_job_to_the_exported_model(place: Path, tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    # An address where no Ray is: an embedded Ray must not look at it.
    process = start("train", str(write_job(place)), "--storage", str(storage), "--json", RAY_ADDRESS="127.0.0.1:9", WANDB_API_KEY="")
    seen = list(events(process))
    assert process.wait(60) == 0, process.stderr.read()[-2000:]  # type: ignore[union-attr]
    assert process.stderr.read() == ""  # type: ignore[union-attr]
    run = next(event for event in seen if event["kind"] == "run")
    folder = Path(run["folder"])
    assert folder.parent == storage.resolve() / "runs"

    steps = [event for event in seen if event["kind"] == "step"]
    assert [step["step"] for step in steps] == list(range(1, steps[0]["total_steps"] + 1)), "every step is told once, in order"
    assert steps[-1]["loss"] < steps[0]["loss"]
    recorded = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r for r in recorded if r["kind"] == "step"] == steps
    report = json.loads((folder / "report.json").read_text())
    assert seen[-1]["kind"] == "end" and seen[-1]["report"] == report
    assert report["test"]["accuracy"] > report["baselines"]["before"]["accuracy"] and report["baselines"]["majority"]["macro_f1"] < 0.5

    facts = json.loads((folder / "run.json").read_text())
    assert facts["state"] == "finished" and facts["versions"]["ray"] and facts["data"] and facts["code"] and facts["seed"] == 0
    assert yaml.safe_load((folder / "job.yaml").read_text())["scale"]["zero"] == 2
    assert not (folder / "stop").exists()

    (offline,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    logged = wandbfile.read(offline)
    assert logged["id"] == run["run"] and logged["project"] == "tiny"
    assert logged["config"]["train"]["optimizer"]["lr"] == 1e-2
    history = {row["step"]: row for row in logged["history"] if "train/loss" in row}
    assert {step: row["train/loss"] for step, row in history.items()} == {s["step"]: s["loss"] for s in steps}
    assert all({"train/lr", "train/samples_per_s", "train/supervised_tokens_per_s"} <= row.keys() for row in history.values())
    validation = [r for r in recorded if r["kind"] == "evaluation" and r["split"] == "validation"]
    assert [row["validation/macro_f1"] for row in logged["history"] if "validation/macro_f1" in row] == [v["metrics"]["macro_f1"] for v in validation]

    listed = subprocess.run([*MUSTER, "runs", "--storage", str(storage), "--json"], capture_output=True, text=True, check=True)
    assert run["run"] in listed.stdout
    subprocess.run([*MUSTER, "export", "last", str(tmp_path / "model"), "--storage", str(storage)], check=True, capture_output=True)
    from transformers import pipeline

    classify = pipeline("text-classification", model=str(tmp_path / "model"))
    assert classify("blue sun moon")[0]["label"] in ("red", "green", "blue")


def test_ctrl_c_keeps_the_model_says_how_to_go_on_and_leaves_nothing_running(place: Path, tmp_path: Path) -> None:
    job = write_job(place, train={"max_steps": 100_000, "evaluate_every": 1000}, task="causal-lm", model="./llama", data={"train": "dialogues.jsonl"})
    process = start("train", str(job), "--storage", str(tmp_path))
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step "):
            break
    children = ours(process)
    assert any("worker-" in str(file.path) for child in children for file in child.open_files()), "the workers are among them"
    os.killpg(process.pid, signal.SIGINT)
    rest = process.stdout.read()
    assert process.wait(60) == 130 and process.stderr.read() == ""  # type: ignore[union-attr]
    assert "stopped" in rest and "--set model=" in rest
    (folder,) = (tmp_path / "runs").iterdir()
    assert json.loads((folder / "run.json").read_text())["state"] == "stopped"
    assert (folder / "model" / "model.safetensors").is_file()
    assert left(children) == []


def test_a_killed_worker_is_told_in_one_line_and_leaves_nothing_running(place: Path, tmp_path: Path) -> None:
    process = start("train", str(write_job(place, train={"max_steps": 100_000})), "--storage", str(tmp_path), "--json")
    for event in events(process):
        if event["kind"] == "step":
            break
    children = ours(process)
    victim = next(child for child in children for file in child.open_files() if file.path.endswith("worker-1.log"))
    victim.kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.count("\n") == 1 and "worker 1 died" in errors and "micro_batch_size" in errors
    assert json.loads(next((tmp_path / "runs").glob("*/run.json")).read_text())["state"] == "failed"
    assert left(children) == []


def test_out_of_memory_in_a_worker_is_told_in_one_line(place: Path, tmp_path: Path) -> None:
    # 200,000 words at once through eager attention of 4 heads ask for more memory than any machine here has.
    (tmp_path / "long.jsonl").write_text("".join(json.dumps({"text": "sun moon " * 100_000, "label": label}) + "\n" for label in ("a", "b") * 2))
    model = tiny.bert(tmp_path / "bert", labels=2)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 200_001, "_attn_implementation": "eager", "num_attention_heads": 32}))
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    weights["bert.embeddings.position_embeddings.weight"] = torch.zeros(200_001, 32)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    data = {
        "train": str(tmp_path / "long.jsonl"),
        "split": {"validation": 0, "test": 0},
        "max_length": 200_000,
        "clean": {"duplicates": "keep", "conflicts": "keep"},
    }
    job = write_job(place, model=str(model), data=data, train={"global_batch_size": 2, "micro_batch_size": 1})
    process = start("train", str(job), "--storage", str(tmp_path), "--json")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert errors.count("\n") == 1 and "out of memory" in errors and "micro_batch_size" in errors


def test_nan_is_told_in_one_line_with_the_step(place: Path, tmp_path: Path) -> None:
    train = {
        "optimizer": {"name": "sgd", "lr": 10.0, "momentum": 0.99},
        "gradient_clipping": 0.0,
        "max_steps": 3000,
        "schedule": {"warmup_ratio": 0.0, "name": "constant"},
    }
    job = write_job(place, train=train, task="causal-lm", model="./llama", data={"train": "dialogues.jsonl"}, scale={"workers": 1, "zero": 0})
    process = start("train", str(job), "--storage", str(tmp_path), "--json")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert errors.count("\n") == 1 and "the loss is" in errors and "at step" in errors and "lower train.optimizer.lr" in errors
    assert not list((tmp_path / "runs").glob("*/model"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "data.text=txt"], "there is no column 'txt'; the data has text, label; did you mean text?"),
        (["--set", "data.train=nowhere.jsonl"], "there is no such file"),
        (["--set", "model=./nothing"], "there is no folder"),
        (["--storage", "/proc/muster"], "cannot write to /proc/muster"),
    ],
)
def test_the_users_errors_are_told_at_once_before_anything_starts(place: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    began = time.monotonic()
    done = subprocess.run([*MUSTER, "train", str(write_job(place)), "--storage", str(tmp_path / "s"), *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and message in done.stderr, done.stderr
    assert not (tmp_path / "s" / "runs").exists()
    assert time.monotonic() - began < 15
