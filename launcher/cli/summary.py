"""The end of `muster train`: what came out, next to the baselines, and what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from launcher.cli import text

if TYPE_CHECKING:
    from trainers.runfolder import RunFolder

COLUMNS = {"before": "before fine-tuning", "majority": "always the commonest label"}


def summary(state: str, run: RunFolder, report: Mapping[str, Any], step: Mapping[str, Any], command: list[str]) -> None:
    """Prints the summary; `report` may lack any key, `step` is the last step seen, `command` is what the user typed."""
    print()
    if state == "finished":
        took = f" in {text.duration(report['train_s'])}" if report.get("train_s") else ""
        best = f"; best at step {report['best_step']}, kept" if report.get("best_step") else ""
        print(f"{run.id}: finished, {report.get('steps', step.get('step', '?'))} steps{took}{best}")
    else:
        print(f"{run.id}: stopped " + (f"after step {step['step']} of {step['total_steps']}" if step else "before the first step"))
    if report.get("test"):
        print()
        scores(report["test"], report.get("baselines") or {})
        print()
    storage = storage_option(command)
    lines = {"model": str(run.model)} if run.model.is_dir() else {"model": "none was kept"}
    lines |= {"run": str(run.path)}
    wandb = report.get("wandb") or {}
    if wandb.get("mode") and wandb["mode"] != "off":
        lines["wandb"] = " ".join(str(wandb[part]) for part in ("mode", "id", "url") if wandb.get(part))
    if run.model.is_dir():
        lines["export"] = shlex.join([text.program(), "export", run.id, f"./{run.id}", *storage])
    if state != "finished":
        again = [*command, "--set", f"model={run.model}"] if run.model.is_dir() else command
        lines["go on"] = shlex.join(again)
        lines[""] = "(from these weights, with a fresh optimizer and schedule)" if run.model.is_dir() else "(from the beginning)"
    for name, value in lines.items():
        print(f"{name:<7} {value}".rstrip())


def scores(test: Mapping[str, Any], baselines: Mapping[str, Mapping[str, Any]]) -> None:
    """The table of test metrics, one column a baseline that was measured, the fine-tuned model last."""
    columns = {title: baselines[name] for name, title in COLUMNS.items() if baselines.get(name)} | {"fine-tuned": test}
    rows = [["test metric", *columns]]
    rows += [[metric, *(text.number(values.get(metric)) for values in columns.values())] for metric in test]
    text.table(rows, right=range(1, len(columns) + 1))


def storage_option(command: list[str]) -> list[str]:
    """`--storage DIR` as the user gave it, so that the next command looks in the same place."""
    return command[command.index("--storage") :][:2] if "--storage" in command else []
