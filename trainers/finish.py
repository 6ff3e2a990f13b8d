"""Before and behind the loop: baselines, evaluations, and what a run leaves in its folder."""

from __future__ import annotations

from typing import Any

import torch

from trainers import modelcard, weights
from trainers.evaluation.evaluate import evaluate
from trainers.runfolder import write_json
from trainers.session import Session


def measure(s: Session, name: str, step: int, split: str = "") -> dict[str, float]:
    """Metrics of a split (`name` unless said otherwise) with the weights as they are; recorded under `name`."""
    metrics = evaluate(s.engine, s.task, s.held[split or name], s.labels, s.group, s.micro_batch_size, s.pad_token_id)
    record = {"kind": "evaluation", "split": name, "step": step, "metrics": metrics}
    for callback in s.callbacks:
        callback.evaluation(record)
    return metrics


def baselines(s: Session) -> dict[str, dict[str, float]]:
    """The test as it comes out without fine-tuning, and for always answering the same, where the task has such an answer."""
    if not s.job.test.baseline or not s.held["test"].total:
        return {}
    s.stage("measuring the baseline")
    found = {"before": measure(s, "baseline", 0, "test")}
    if hasattr(s.task, "trivial_baseline"):
        found["majority"] = s.task.trivial_baseline(s.label_counts["train"], s.label_counts["test"])
    return found


def conclude(s: Session, state: str, steps: int, best: dict[str, torch.Tensor], before: dict[str, Any], train_s: float) -> dict[str, Any]:
    """Restores the best weights, saves the model, tests it unless the run was stopped, and writes the report."""
    model = s.engine.module.model
    stopper = s.stopper
    if stopper and stopper.best is not None:
        weights.scatter(model, best, s.group)
    report: dict[str, Any] = {"state": state, "steps": steps, "total_steps": s.total_steps, "train_s": round(train_s, 3), "baselines": before}
    if stopper and stopper.best is not None:
        report |= {"best_step": stopper.best_step, "best": {stopper.config.metric: stopper.best}}
    if steps:
        s.stage("saving the model")
        whole = weights.gather(model, s.group)
        if s.group.rank == 0:
            weights.save_model(model, whole, s.tokenizer, s.source.path, lambda: s.task.load(s.source, s.job, s.labels), s.folder.model)
        del whole
    if state == "finished" and s.held["test"].total:
        s.stage("testing the model")
        report["test"] = measure(s, "test", steps, "test")
    if s.group.rank == 0:
        if steps:
            modelcard.write(s.folder.model, s.job, report)
        write_json(s.folder.path / "report.json", report)
    for callback in s.callbacks:
        callback.end(report)
    return report
