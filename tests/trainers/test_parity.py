"""Decision 4: the loss is normalised once. Muster's losses equal a plain single-process PyTorch loop's, step by step.

The reference is written here from scratch: padded rows, the model's own full logits, one mean over the supervised
positions of the whole global batch, torch's AdamW and gradient clipping. It shares the order of rows with Muster (which
rows a step sees is not what is compared) and nothing else.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch.nn import functional

from trainers.data.columns import View
from trainers.data.prepare import prepare
from trainers.data.prepared import Prepared
from trainers.job import job_class
from trainers.model_source import locate
from trainers.setup import Setup

pytestmark = pytest.mark.cluster

STEPS, ROWS, BATCH = 50, 45, 8  # 45 rows: the sixth batch of each epoch has five rows, so shares are uneven and some empty


def make_job(task: str, folder: Path, **train: Any) -> Any:
    """A job on a tiny model and data set, made in `folder`."""
    if task == "causal-lm":
        model, rows = tiny.llama(folder / "model"), tiny.dialogues(folder / "rows.jsonl", ROWS)
    else:
        model, rows = tiny.bert(folder / "model"), tiny.texts(folder / "rows.jsonl", ROWS)
    return job_class(task).model_validate(
        {
            "name": "parity", "task": task, "model": str(model),
            "data": {"train": str(rows), "split": {"validation": 0.0, "test": 0.0}, "clean": {"duplicates": "keep"}},
            "train": {"max_steps": STEPS, "global_batch_size": BATCH, "optimizer": {"lr": 1e-2, "weight_decay": 0.1}, **train},
            "monitor": {"wandb": {"mode": "off"}},
        }
    )  # fmt: skip


def make_setup(job: Any, storage: Path, number: int) -> Setup:
    prepared = prepare(job, locate(job.model), storage, lambda text: None)
    folder = storage / f"run-{number}"
    (folder / "logs").mkdir(parents=True)
    return Setup(job=job.resolved(), folder=str(folder), prepared=str(prepared.path), model=locate(job.model), wandb="off", cpus=1, gpu=False)


def train_all(group: Any, setups: list[Setup]) -> list[list[float]]:
    """Per-step losses of each setup, one after the other in the same processes."""
    from trainers.worker import train

    losses = []
    for setup in setups:
        train(setup, group)
        records = [json.loads(line) for line in (Path(setup.folder) / "metrics.jsonl").read_text().splitlines()] if group.rank == 0 else []
        losses.append([record["loss"] for record in records if record["kind"] == "step"])
    return losses


def reference(job: Any, prepared: Path) -> list[float]:
    """The plain loop."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    train, found = job.train, Prepared(prepared)
    table, order = found.shards("train").table(), found.order(job)
    causal = job.task == "causal-lm"
    model = (AutoModelForCausalLM if causal else AutoModelForSequenceClassification).from_pretrained(job.model, dtype=torch.float32)
    model.train()
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=1e-2)
    warmup = round(0.1 * STEPS)
    losses = []
    for step in range(STEPS):
        rows = View.of(table.take(order.batch(step))).rows()
        ids = [torch.tensor(row).long() for row in rows["input_ids"]]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
        logits = model(input_ids=padded, attention_mask=mask).logits
        if causal:
            flags = torch.nn.utils.rnn.pad_sequence([torch.tensor(row).bool() for row in rows["supervised"]], batch_first=True)
            loss = functional.cross_entropy(logits[:, :-1][flags[:, 1:]], padded[:, 1:][flags[:, 1:]], label_smoothing=train.label_smoothing)
        else:
            loss = functional.cross_entropy(logits, torch.tensor(rows["label"]), label_smoothing=train.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.gradient_clipping)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * ((step + 1) / (warmup + 1) if step < warmup else 1 - (step - warmup) / (STEPS - warmup))
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("task", ["text-classification", "causal-lm"])
def test_losses_equal_a_plain_loop_at_every_zero_stage_and_accumulation(task: str, workers: int, tmp_path: Path) -> None:
    base = make_job(task, tmp_path)
    cases = []
    for zero in (0, 1, 2, 3):
        for accumulation in (1, 4):
            micro = BATCH // workers // accumulation
            train = base.train.model_copy(update={"micro_batch_size": micro})
            scale = base.scale.model_copy(update={"zero": zero, "workers": workers})
            cases.append(((zero, accumulation), base.model_copy(update={"train": train, "scale": scale})))
    setups = [make_setup(job, tmp_path / "storage", i) for i, (_, job) in enumerate(cases)]
    expected = reference(base, Path(setups[0].prepared))
    assert min(expected[-10:]) < 0.7 * expected[0], "the reference learns, so there is something to compare"
    found = tiny.run_workers(train_all, workers, setups)[0]
    for (case, _), losses in zip(cases, found, strict=True):
        assert len(losses) == STEPS
        differences = [abs(a - b) for a, b in zip(losses, expected, strict=True)]
        assert max(differences) < 1e-4, f"zero, accumulation = {case}: differs by {max(differences):.2e} at step {differences.index(max(differences))}"
