"""The model's weights between the engine's sharded form and plain tensors on rank 0, and the folder that comes out.

One parameter at a time is gathered, so the other ranks never hold more than one whole. Rank 0 holds the result in main memory.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from trainers.distributed import Group
from trainers.model import bare


def gather(model: nn.Module, group: Group, *, trainable_only: bool = False) -> dict[str, torch.Tensor]:
    """Name → tensor on CPU, complete on rank 0 and empty elsewhere. Every rank must call it."""
    result = {}
    for name, parameter in model.named_parameters():
        if trainable_only and not parameter.requires_grad:
            continue
        with _whole(parameter):
            if group.rank == 0:
                result[name] = parameter.detach().to("cpu", copy=True)
    if group.rank == 0 and not trainable_only:
        persistent = model.state_dict().keys()
        result |= {name: buffer.detach().to("cpu", copy=True) for name, buffer in model.named_buffers() if name in persistent}
    return result


@torch.no_grad()
def scatter(model: nn.Module, weights: dict[str, torch.Tensor], group: Group) -> None:
    """Puts rank 0's `weights` (names from `gather`) into every rank's model. Every rank must call it."""
    names = set(group.broadcast(sorted(weights) if group.rank == 0 else None))
    for name, parameter in model.named_parameters():
        if name not in names:
            continue
        if hasattr(parameter, "ds_id"):
            with _whole(parameter, modifier_rank=0):
                if group.rank == 0:
                    parameter.copy_(weights[name])
            continue
        if group.rank == 0:
            parameter.copy_(weights[name])
        if group.world_size > 1:
            dist.broadcast(parameter.data, src=0)


def save_model(model: nn.Module, weights: dict[str, torch.Tensor], tokenizer: Any, source_path: str, load_base: Any, target: Path) -> None:
    """Writes a Hugging Face folder at `target`, replacing an older one whole; rank 0 calls it with `gather`'s result.

    With LoRA, the adapter goes to `adapter/` and the folder itself holds the merged model, ready for `from_pretrained`.
    `load_base()` loads the model that the adapter belongs on.
    """
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    if hasattr(model, "peft_config"):
        from peft import PeftModel

        adapted: Any = model
        adapted.peft_config["default"].base_model_name_or_path = source_path
        adapted.save_pretrained(partial / "adapter", state_dict=weights)
        merged = PeftModel.from_pretrained(load_base(), partial / "adapter").merge_and_unload()
        merged.save_pretrained(partial)
    else:
        bare(model).save_pretrained(partial, state_dict=weights)
    tokenizer.save_pretrained(partial)
    replace_folder(partial, target)


def replace_folder(new: Path, target: Path) -> None:
    """Puts `new` where `target` is. Dying between the two renames leaves the older one beside, as `.<name>.old`."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _whole(parameter: nn.Parameter, modifier_rank: int | None = None) -> Any:
    """A context in which a parameter that ZeRO-3 has partitioned is whole."""
    if not hasattr(parameter, "ds_id"):
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=modifier_rank)
