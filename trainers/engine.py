"""From a job to a DeepSpeed engine: its configuration, the optimizer, and the loss normalised once.

The loss of a global batch is the sum over its supervised positions over their global count. A worker backs
`loss_sum × world_size / global_count` through: DeepSpeed averages gradients over the workers (÷ world size), and is told
not to divide by accumulation steps. So the same batch gives the same step on any number of workers, however the labels
lie. The optimizer is torch's own (fused kernels, on CPU too); DeepSpeed shards its state.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import nn

from trainers.distributed import Group
from trainers.job import Job, Optimizer


class TaskModel(nn.Module):
    """The model and its task's loss as one module, so that one forward pass runs all of ZeRO-3's hooks."""

    def __init__(self, model: nn.Module, task: ModuleType, job: Job) -> None:
        super().__init__()
        self.model = model
        self._loss = task.loss
        self._smoothing = job.train.label_smoothing
        self._options = {"chunk": job.data.chunk} if hasattr(job.data, "chunk") else {}

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The task's loss: a float32 sum over supervised positions, and what its evaluation needs."""
        return self._loss(self.model, batch, self._smoothing if self.training else 0.0, **self._options)


def choose_zero(parameters: int, world_size: int, memory_bytes: float) -> int:
    """The lowest ZeRO stage whose state fits in 60% of a worker's memory, by Rajbhandari et al. 2020, section 3.

    Mixed-precision Adam keeps 2 + 2 + 12 bytes a parameter: weights, gradients, optimizer state. The rest is left to
    activations. One worker has nothing to shard: stage 0.
    """
    if world_size == 1:
        return 0
    weights, gradients, state = 2.0 * parameters, 2.0 * parameters, 12.0 * parameters
    needs = [weights + gradients + state, weights + gradients + state / world_size, weights + (gradients + state) / world_size]
    return next((stage for stage, need in enumerate(needs) if need <= 0.6 * memory_bytes), 3)


def ds_config(job: Job, zero: int, world_size: int, micro_batch_size: int, accumulation: int, device: str) -> dict[str, Any]:
    """DeepSpeed's configuration of a job. `zero` is a stage; `device` is `cpu` or `cuda`."""
    train, gpu = job.train, device == "cuda"
    sharding: dict[str, Any] = {"stage": zero, "overlap_comm": gpu, "contiguous_gradients": gpu}
    if not gpu:
        # The default buckets of 5e8 elements are sized for NVLink; on a CPU they would be gigabytes of main memory.
        sharding |= {"reduce_bucket_size": 50_000_000, "allgather_bucket_size": 50_000_000}
    if zero == 3:
        sharding |= {"stage3_param_persistence_threshold": 100_000, "stage3_prefetch_bucket_size": 50_000_000}
    if job.scale.offload != "none":
        sharding["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if job.scale.offload == "all":
        sharding["offload_param"] = {"device": "cpu", "pin_memory": True}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": train.gradient_clipping,
        "zero_optimization": sharding,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "bf16": {"enabled": train.precision == "bf16"},
        "fp16": {"enabled": train.precision == "fp16", "initial_scale_power": 16, "loss_scale_window": 1000},
    }
    if train.precision == "bf16" and zero in (1, 2) and accumulation > 1:
        config["data_types"] = {"grad_accum_dtype": "fp32"}  # bf16 sums lose what late micro batches add
    return config


def optimizer_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: those that decay, and norms and biases (under two dimensions), which do not."""
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": weight_decay}, {"params": [], "weight_decay": 0.0}]
    for parameter in model.parameters():
        if parameter.requires_grad:
            shape = getattr(parameter, "ds_shape", parameter.shape)  # ZeRO-3 leaves an empty placeholder behind
            groups[0 if len(shape) >= 2 else 1]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def make_optimizer(groups: list[dict[str, Any]], config: Optimizer, offload: bool) -> torch.optim.Optimizer:
    """torch's optimizer, or DeepSpeed's CPU Adam where its state lives in main memory beside a GPU."""
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    if offload:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, lr=config.lr, betas=config.betas, eps=config.eps, adamw_mode=config.name == "adamw")
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


@contextlib.contextmanager
def loading_sharded(config: dict[str, Any]) -> Iterator[None]:
    """While this lasts, transformers builds and loads models already partitioned, if `config` is of ZeRO stage 3."""
    if config["zero_optimization"]["stage"] != 3:
        yield
        return
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    held = HfDeepSpeedConfig(config)  # transformers keeps a weak reference: it must live on
    try:
        yield
    finally:
        del held
        unset_hf_deepspeed_config()


def build(model: TaskModel, job: Job, config: dict[str, Any]) -> Any:
    """The DeepSpeed engine. The process group must exist; DeepSpeed uses it.

    DeepSpeed would compile a shared-memory operator for CPU inference (20 s, a compiler): it is not used in training and
    skipped, see `skip_shm_op`.
    """
    import deepspeed

    skip_shm_op()
    import_muon_uncompiled()
    optimizer = make_optimizer(optimizer_groups(model, job.train.optimizer.weight_decay), job.train.optimizer, job.scale.offload != "none")
    exact = {}
    if job.train.precision == "bf16" and config["zero_optimization"]["stage"] in (1, 2):
        exact = {parameter: parameter.detach().clone() for parameter in model.parameters() if parameter.requires_grad}
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    for parameter, value in exact.items():
        # DeepSpeed makes its fp32 masters from weights already rounded to bf16: steps smaller than half a bf16 digit then
        # move nothing for a while. From the exact weights, a fitting share of them moves from the first step on.
        deepspeed.utils.safe_set_full_fp32_param(parameter, value)
    if config["zero_optimization"]["stage"] == 3:
        _share_head(model)
    exact.clear()
    give_back_memory()
    return engine


def import_muon_uncompiled() -> None:
    """Imports DeepSpeed 0.19's Muon, which it looks at in every step of any optimizer, without torch's compiler.

    Its decorators would import the whole of Inductor: 2 s and 100 MB a worker, for an optimizer that no job asks for.
    """
    with mock.patch.object(torch, "compile", lambda function=None, **_: function or (lambda inner: inner)):
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")


def give_back_memory() -> None:
    """Returns to the machine what loading and sharding have freed; glibc would keep it, several copies of the model, for good."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # not in musl
        if trim:
            trim(0)


def skip_shm_op() -> None:
    """Tells DeepSpeed 0.19's `deepspeed.comm.torch.build_shm_op` that the operator does not suit this machine."""
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _share_head(model: TaskModel) -> None:
    """The language model's loss reads the head's weight outside the head's own forward: ZeRO-3 must gather it for the whole step."""
    import deepspeed

    from trainers.model import bare

    head = bare(model.model).get_output_embeddings() if hasattr(bare(model.model), "get_output_embeddings") else None
    for parameter in head.parameters(recurse=False) if head is not None else ():
        deepspeed.zero.register_external_parameter(model, parameter)


def set_lr(engine: Any, lr: float) -> None:
    """The learning rate of the next step, in every parameter group."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr


def backward(engine: Any, loss_sum: torch.Tensor, global_count: float, group: Group) -> None:
    """Backs a micro batch's share of the global mean loss through; see this file's header for the factor."""
    engine.backward(loss_sum * (group.world_size / max(1.0, global_count)), scale_wrt_gas=False)
