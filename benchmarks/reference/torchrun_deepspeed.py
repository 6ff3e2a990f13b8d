"""What an engineer writes by hand for the same job: torchrun, deepspeed.initialize, a loop. Nothing of Muster's.

    torchrun --nproc-per-node=2 benchmarks/reference/torchrun_deepspeed.py CONFIG.json

It reads token rows from Parquet (`input_ids`, `label`), fine-tunes a classifier on them and prints a JSON line a step.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import deepspeed
import deepspeed.ops
import numpy as np
import pyarrow.parquet as parquet
import torch
import torch.distributed as dist
from transformers import AutoModelForSequenceClassification

CONFIG: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())

# An operator for inference that DeepSpeed would compile for 20 s at the first start. Skipped, in the reference's favour.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def collate(rows: list[np.ndarray], labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """input_ids and attention mask `[B, T]`, padded to the longest row; labels `[B]`."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), CONFIG["pad_token_id"], dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.from_numpy(row)
        mask[i, : len(row)] = 1
    return ids, mask, torch.from_numpy(labels)


def decay_groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Weight decay on matrices only."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": CONFIG["weight_decay"]},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def main() -> None:
    torch.set_num_threads(CONFIG["threads"])
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(CONFIG["seed"])

    table = parquet.read_table(CONFIG["rows"])
    ids = [np.asarray(row, dtype=np.int64) for row in table.column("input_ids").to_pylist()]
    labels = table.column("label").to_numpy().astype(np.int64)

    model = AutoModelForSequenceClassification.from_pretrained(
        CONFIG["model"], num_labels=CONFIG["labels"], dtype=torch.float32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    batch_size = CONFIG["global_batch_size"]
    share = batch_size // world_size
    optimizer = torch.optim.AdamW(decay_groups(model), lr=CONFIG["lr"], fused=True)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config={
            "train_micro_batch_size_per_gpu": share,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 1.0,
            "zero_optimization": {"stage": CONFIG["zero"], "overlap_comm": False},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
        },
    )
    engine.train()
    order = np.array(CONFIG["order"])
    for step, first in enumerate(range(0, len(order), batch_size), 1):
        started = time.perf_counter()
        mine = order[first + rank * share : first + (rank + 1) * share]
        input_ids, mask, wanted = collate([ids[i] for i in mine], labels[mine])
        logits = engine(input_ids=input_ids, attention_mask=mask).logits
        loss_sum = torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="sum")
        engine.backward(loss_sum / len(wanted))
        engine.step()
        totals = torch.tensor([loss_sum.item(), len(wanted)], dtype=torch.float64)
        dist.all_reduce(totals)
        loss = (totals[0] / totals[1]).item()
        seconds = time.perf_counter() - started
        if rank == 0:
            print(json.dumps({"kind": "step", "step": step, "loss": loss, "step_s": seconds}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
