"""Everything that one worker's training loop needs, built in order: data, model, engine, callbacks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from trainers import engine as engines
from trainers import tasks
from trainers.callbacks import Callback
from trainers.callbacks.early_stopping import Stopper
from trainers.callbacks.metrics import Metrics
from trainers.callbacks.wandb import Wandb
from trainers.data.cache import Cache
from trainers.data.prepared import Prepared
from trainers.data.shards import Shards
from trainers.data.store import Store
from trainers.data.stream import Stream, accumulation
from trainers.distributed import Group
from trainers.job import Job
from trainers.model import add_lora, count_parameters, load_tokenizer
from trainers.model_source import ModelSource
from trainers.runfolder import RunFolder
from trainers.setup import Setup

CPU_TOKENS, GPU_TOKENS = 2048, 16384
"""Tokens of a micro batch that `micro_batch_size: auto` aims at: enough to fill the device, little enough to fit."""


@dataclass
class Session:
    """One worker's half of a run. `close` it whatever happens."""

    job: Job
    group: Group
    folder: RunFolder
    source: ModelSource
    task: ModuleType
    tokenizer: Any
    labels: list[str]
    store: Store
    """Where the rows lie."""
    stream: Stream
    """The rows to train on."""
    held: dict[str, Shards]
    """The rows of `validation` and `test`."""
    label_counts: dict[str, list[int]]
    """Rows of each label, by split."""
    pad_token_id: int
    engine: Any
    steps_per_epoch: int
    total_steps: int
    micro_batch_size: int
    accumulation: int
    callbacks: list[Callback]
    stopper: Stopper | None
    diary: Metrics | None

    def stage(self, text: str) -> None:
        """Says what the run is doing now; rank 0 is heard."""
        if self.diary:
            self.diary.stage(text)

    def close(self) -> None:
        """Ends the callbacks, and the engine with its hooks."""
        self.stream.close()
        self.store.close()
        for callback in self.callbacks:
            callback.close()
        self.engine.destroy()


def choose_micro_batch(rows: int, longest: int, budget: int) -> int:
    """Rows a micro batch: the worker's `rows` of a global batch in as few equal parts as keep each within `budget` tokens."""
    parts = max(1, -(-rows * longest // budget))
    return max(1, -(-rows // parts))


def build(setup: Setup, group: Group) -> Session:
    """Loads data and model and makes the engine. Every worker calls it."""
    job, folder = setup.load_job(), RunFolder(Path(setup.folder))
    diary = Metrics(folder.metrics) if group.rank == 0 else None
    if diary:
        diary.stage("loading the model")
    task, prepared = tasks.get(job.task), Prepared(setup.prepared)
    tokenizer = load_tokenizer(setup.model)
    batch_size, share = job.train.global_batch_size, -(-job.train.global_batch_size // group.world_size)
    micro = job.train.micro_batch_size
    if micro == "auto":
        micro = choose_micro_batch(share, prepared.manifest["longest"]["train"], GPU_TOKENS if setup.gpu else CPU_TOKENS)

    parts = accumulation(batch_size, group.world_size, micro)
    zero = _zero(job, setup, group)
    config = engines.ds_config(job, zero, group.world_size, micro, parts, group.device.type)
    torch.manual_seed(job.seed)  # fresh heads start equal on every worker
    with engines.loading_sharded(config):
        model = task.load(setup.model, job, prepared.labels)
    task.prepare_model(model, tokenizer, job)
    if job.train.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    if job.train.lora:
        model = add_lora(model, job)
    parameters, trainable = count_parameters(model)
    engine = engines.build(engines.TaskModel(model, task, job), job, config)

    stopper = Stopper(job.train.early_stopping) if job.train.early_stopping else None
    callbacks: list[Callback] = [c for c in (diary, stopper) if c]
    if group.rank == 0 and setup.wandb != "off":
        callbacks.append(Wandb(job, folder.id, folder.path, setup.wandb))
    order = prepared.order(job)
    cache = Cache(Path(job.data.cache.dir), job.data.cache.gigabytes * 1e9) if job.data.cache else None
    total_steps = job.train.max_steps or max(1, round(job.train.epochs * order.batches))
    session = Session(
        job=job,
        group=group,
        folder=folder,
        source=setup.model,
        task=task,
        tokenizer=tokenizer,
        labels=prepared.labels,
        store=prepared.store,
        stream=Stream(prepared.shards("train", cache), order, group, total_steps),
        held={name: prepared.shards(name, cache) for name in ("validation", "test")},
        label_counts=prepared.manifest["label_counts"],
        pad_token_id=prepared.manifest["pad_token_id"],
        engine=engine,
        steps_per_epoch=order.batches,
        total_steps=total_steps,
        micro_batch_size=micro,
        accumulation=parts,
        callbacks=callbacks,
        stopper=stopper,
        diary=diary,
    )
    facts = {"parameters": parameters, "trainable_parameters": trainable, "zero": zero, "micro_batch_size": micro}
    facts |= {"accumulation": parts, "total_steps": session.total_steps, "workers": group.world_size}
    for callback in callbacks:
        callback.start(facts)
    return session


def _zero(job: Job, setup: Setup, group: Group) -> int:
    """The job's ZeRO stage, or the one that fits."""
    if job.scale.zero != "auto":
        return job.scale.zero
    if job.scale.offload != "none":
        return 3 if job.scale.offload == "all" else 2
    if setup.gpu:
        memory = float(torch.cuda.get_device_properties(group.device).total_memory)
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / int(os.environ.get("LOCAL_WORLD_SIZE", group.world_size))
    return engines.choose_zero(_parameters(setup.model), group.world_size, memory)


def _parameters(source: ModelSource) -> int:
    """Parameters of the model, from its configuration alone (built without memory on the meta device)."""
    from transformers import AutoModel

    from trainers.model import load_config

    with torch.device("meta"):
        return count_parameters(AutoModel.from_config(load_config(source)))[0]
