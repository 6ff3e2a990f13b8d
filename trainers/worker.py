"""The training loop, the same on every worker: this page is all of it.

A step takes one global batch: micro batches forward and backward, one optimizer step. Randomness is set from (seed, step,
rank) before each step, so there is no generator state to lose. Everything else (metrics, W&B, stopping early) hangs on
callbacks.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch

from trainers import finish
from trainers.data.stream import micro_batches
from trainers.distributed import Group
from trainers.engine import backward, set_lr
from trainers.errors import RunError
from trainers.schedule import factor
from trainers.session import Session, build
from trainers.setup import Setup
from trainers.weights import gather


def train(setup: Setup, group: Group) -> dict[str, Any]:
    """Runs a job to its end, or to the step before which it was asked to stop.

    Returns:
        The report, as report.json holds it; `{"state": "stopped" | "finished", ...}`.

    Raises:
        RunError: the loss is no longer a finite number.
    """
    session = build(setup, group)
    try:
        return _loop(session)
    finally:
        session.close()


def _loop(s: Session) -> dict[str, Any]:
    job, group, engine, began = s.job, s.group, s.engine, time.monotonic()
    baselines, best, last = finish.baselines(s), {}, s.total_steps
    s.stage("training")
    engine.train()
    for step in range(s.total_steps):
        started = time.perf_counter()
        rows = s.stream.batch(step)
        micros = list(micro_batches(rows, s.micro_batch_size, s.accumulation))
        waited = time.perf_counter() - started
        batches = [s.task.collate(micro, s.pad_token_id) for micro in micros]
        asked = group.rank == 0 and s.folder.stop_request.exists()
        count, tokens, samples, stop = group.sum(sum(map(s.task.supervised, batches)), sum(map(s.task.tokens, micros)), len(rows["input_ids"]), asked)
        if stop:
            last = step
            break
        torch.manual_seed(_seed(job.seed, step, group.rank))
        lr = job.train.optimizer.lr * factor(job.train.schedule, step, s.total_steps)
        set_lr(engine, lr)
        loss_sum = 0.0
        for batch in batches:
            loss, _ = engine({name: tensor.to(group.device) for name, tensor in batch.items()})
            backward(engine, loss, count, group)
            engine.step()
            loss_sum += loss.detach()
        mean = group.sum(float(loss_sum))[0] / max(1.0, count)
        if not math.isfinite(mean):
            raise RunError(f"the loss is {mean} at step {step + 1}: lower train.optimizer.lr (now {lr:.3g}), or look at the rows of that step")
        seconds = time.perf_counter() - started
        norm = engine.get_global_grad_norm()
        record = {"kind": "step", "step": step + 1, "total_steps": s.total_steps, "epoch": (step + 1) / s.steps_per_epoch, "loss": mean, "lr": lr}
        record |= {"grad_norm": None if norm is None else float(norm), "step_s": seconds, "data_s": waited, "samples_per_s": samples / seconds}
        record |= {"supervised_tokens_per_s": tokens / seconds}
        for callback in s.callbacks:
            callback.step(record)
        if _evaluates(s, step + 1):
            finish.measure(s, "validation", step + 1)
            if s.stopper and s.stopper.improved:
                best = gather(engine.module.model, group, trainable_only=True)
            if s.stopper and s.stopper.stop:
                last = step + 1
                break
    state = "finished" if last == s.total_steps or (s.stopper and s.stopper.stop) else "stopped"
    return finish.conclude(s, state, last, best, baselines, time.monotonic() - began)


def _evaluates(s: Session, done: int) -> bool:
    """Whether the validation rows are due after `done` steps."""
    every = s.steps_per_epoch if s.job.train.evaluate_every == "epoch" else s.job.train.evaluate_every
    return s.held["validation"].total > 0 and (done % every == 0 or done == s.total_steps)


def _seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
