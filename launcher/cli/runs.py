"""`muster runs`: every run in the storage, newest first."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from launcher.cli import text
from launcher.cli.options import DEFAULT_STORAGE, Json, Storage

if TYPE_CHECKING:
    from trainers.runfolder import RunFolder


def runs(storage: Storage = DEFAULT_STORAGE, as_json: Json = False) -> None:
    """List the runs, newest first."""
    from trainers import runfolder

    found = [describe(run) for run in runfolder.runs(storage)]
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    if not found:
        print(f"no runs in {storage} yet")
        return
    rows = [["run", "task", "state", "step", "test", "age"]]
    for run in found:
        step = "" if run["step"] is None else f"{run['step']}/{run['total_steps'] or '?'}"
        test = "" if run["metric"] is None else f"{run['metric']} {text.number(run['value'])}"
        age = text.duration(time.time() - run["started"]) if run["started"] else ""
        rows.append([run["run"], run["task"], run["state"], step, test, age])
    text.table(rows, right={3, 5})


def describe(run: RunFolder) -> dict[str, Any]:
    """What the list says of a run. Old or damaged folders are read as far as they can be."""
    facts, test = run.facts(), run.report().get("test") or {}
    task = facts.get("task") or _task(run)
    step = run.last_step()
    metric = _main_metric(task, test)
    return {
        "run": run.id,
        "folder": str(run.path),
        "task": task,
        "state": run.state(),
        "step": step.get("step"),
        "total_steps": step.get("total_steps") or facts.get("total_steps"),
        "metric": metric,
        "value": test.get(metric),
        "started": facts.get("started"),
    }


def _main_metric(task: str, test: dict[str, Any]) -> str | None:
    from trainers import tasks

    if task in tasks.names() and tasks.get(task).DEFAULT_METRIC in test:
        return str(tasks.get(task).DEFAULT_METRIC)
    return next(iter(test), None)


def _task(run: RunFolder) -> str:
    from trainers import yamlfile
    from trainers.errors import UserError

    try:
        return str(yamlfile.read(run.path / "job.yaml").values.get("task", ""))
    except UserError:
        return ""
