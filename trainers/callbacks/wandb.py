"""Weights & Biases: online with a key, offline without, off on request; one W&B run id for the whole life of a run.

Every call to wandb is made by one thread behind a queue, so that neither its start (a second or two) nor a slow network
takes time from training. What the queue still holds when the run ends is sent before the worker leaves.
"""

from __future__ import annotations

import os
import queue
import threading
from pathlib import Path
from typing import Any

from trainers.callbacks import Callback
from trainers.job import Job

_END = object()


def mode(job: Job) -> str:
    """`online`, `offline` or `off`: what the job says, or with `auto` whether there is a key (environment or ~/.netrc)."""
    said = job.monitor.wandb.mode
    if said != "auto":
        return said
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return "offline" if os.environ["WANDB_MODE"] == "offline" else "off"
    return "online" if os.environ.get("WANDB_API_KEY") or _netrc_key() else "offline"


class Wandb(Callback):
    """Sends config, steps and evaluations to W&B under `run_id`; `folder` keeps the offline files.

    If wandb itself fails, training goes on without it: `error` holds why, and the worker's log says so.
    """

    def __init__(self, job: Job, run_id: str, folder: Path, how: str) -> None:
        self._job, self._run_id, self._folder, self._mode = job, run_id, folder, how
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)

    def start(self, facts: dict[str, Any]) -> None:
        self._queue.put(("config", facts))
        self._thread.start()

    def step(self, record: dict[str, Any]) -> None:
        self._queue.put(("log", {f"train/{k}": v for k, v in record.items() if k not in ("kind", "step")} | {"step": record["step"]}))

    def evaluation(self, record: dict[str, Any]) -> None:
        self._queue.put(("log", {f"{record['split']}/{k}": v for k, v in record["metrics"].items()} | {"step": record["step"]}))

    def end(self, report: dict[str, Any]) -> None:
        self._queue.put(("summary", {f"test/{k}": v for k, v in report.get("test", {}).items()}))

    def close(self) -> None:
        if self._thread.is_alive():
            self._queue.put(_END)
            self._thread.join(timeout=120)

    def _work(self) -> None:
        try:
            import wandb

            config = self._job.monitor.wandb
            run = wandb.init(
                project=config.project,
                entity=config.entity,
                id=self._run_id,
                name=self._run_id,
                resume="allow",
                dir=str(self._folder),
                mode="online" if self._mode == "online" else "offline",
                config=self._job.resolved(),
                settings=wandb.Settings(console="off", silent=True, disable_git=True, save_code=False),
            )
            run.define_metric("step")
            run.define_metric("*", step_metric="step")
            while (item := self._queue.get()) is not _END:
                what, values = item
                if what == "config":
                    run.config.update(values, allow_val_change=True)
                elif what == "log":
                    run.log(values)
                else:
                    run.summary.update(values)
            run.finish()
        except Exception as error:  # monitoring must not end a run; the worker's log says so
            self.error = error
            print(f"wandb failed, training goes on without it: {error!r}", flush=True)


def _netrc_key() -> bool:
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return path.is_file() and "api.wandb.ai" in path.read_text(encoding="utf-8", errors="replace")
