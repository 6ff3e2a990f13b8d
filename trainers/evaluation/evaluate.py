"""Running a split through the model on all workers, every row exactly once."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import torch

from trainers.data.stream import Split
from trainers.distributed import Group


@torch.no_grad()
def evaluate(engine: Any, task: ModuleType, split: Split, labels: list[str], group: Group, micro_batch_size: int, pad_token_id: int) -> dict[str, float]:
    """The task's metrics over the whole split, the same on every worker.

    Rows are dealt out in order of length, so that workers finish together and padding is small; all of them make the same
    number of calls, as ZeRO-3 needs.
    """
    was_training = engine.training
    engine.eval()
    numbers = np.argsort(-split.lengths, kind="stable")[group.rank :: group.world_size]
    most = -(-len(split) // group.world_size)
    evaluation = task.Evaluation(labels)
    for first in range(0, most, micro_batch_size):
        batch = task.collate(split.take(numbers[first : first + micro_batch_size]), pad_token_id)
        evaluation.add(*engine({name: tensor.to(group.device) for name, tensor in batch.items()}))
    engine.train(was_training)
    return task.Evaluation(labels).metrics(group.gather(evaluation.state()))
