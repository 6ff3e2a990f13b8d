"""Running a split through the model on all workers, every row exactly once."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from trainers.data.shards import Shards
from trainers.data.stream import in_batches
from trainers.distributed import Group


@torch.no_grad()
def evaluate(engine: Any, task: ModuleType, shards: Shards, labels: list[str], group: Group, micro_batch_size: int, pad_token_id: int) -> dict[str, float]:
    """The task's metrics over the whole split, the same on every worker.

    Each worker reads its part of the rows, a row group at a time, in order of length; all of them make the same number of
    calls, as ZeRO-3 needs.
    """
    was_training = engine.training
    engine.eval()
    calls = -(-shards.total // (group.world_size * micro_batch_size))
    evaluation = task.Evaluation(labels)
    for rows in in_batches(shards.part(group.rank, group.world_size), micro_batch_size, calls):
        batch = task.collate(rows, pad_token_id)
        evaluation.add(*engine({name: tensor.to(group.device) for name, tensor in batch.items()}))
    engine.train(was_training)
    return task.Evaluation(labels).metrics(group.gather(evaluation.state()))
