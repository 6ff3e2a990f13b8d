"""From prepared rows to the micro batches of one worker, one global batch at a time.

Every worker makes the same number of micro batches of every global batch, because sharded workers call collectives in
step; a worker that runs out of rows gets empty ones, which add nothing to the loss. The rows of a global batch are dealt so
that the workers finish together (`trainers.data.deal`), and each takes its own by length, which saves padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainers.data.deal import deal

Rows = dict[str, list[Any]]
"""Columns of the same length; list columns hold int32 arrays."""


class Split:
    """The rows of one prepared split, read whole from Parquet into Arrow memory (4 bytes a token)."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as parquet

        table = parquet.read_table(path, memory_map=True).combine_chunks()
        self._columns = {name: table.column(name).combine_chunks() for name in table.column_names}
        self._rows = table.num_rows
        self.lengths: NDArray[np.int64] = np.diff(self._columns["input_ids"].offsets.to_numpy()).astype(np.int64)

    def __len__(self) -> int:
        return self._rows

    def column(self, name: str) -> NDArray[Any]:
        """A column of plain values, shape `[rows]`."""
        return self._columns[name].to_numpy(zero_copy_only=False)

    def take(self, numbers: NDArray[np.int64]) -> Rows:
        """The rows with these numbers, in this order."""
        return {name: [_plain(values[int(n)]) for n in numbers] for name, values in self._columns.items()}


def micro_batches(split: Split, batch: NDArray[np.int64], rank: int, world_size: int, micro_batch_size: int, global_batch_size: int) -> Iterator[Rows]:
    """The micro batches of worker `rank`, `accumulation(...)` of them, the last ones possibly empty."""
    mine = batch[deal(split.lengths[batch], world_size)[rank]]
    mine = mine[np.argsort(-split.lengths[mine], kind="stable")]
    for i in range(accumulation(global_batch_size, world_size, micro_batch_size)):
        yield split.take(mine[i * micro_batch_size : (i + 1) * micro_batch_size])


def accumulation(global_batch_size: int, world_size: int, micro_batch_size: int) -> int:
    """Micro batches a worker makes of one global batch: enough for the largest share."""
    largest_share = (global_batch_size + world_size - 1) // world_size
    return (largest_share + micro_batch_size - 1) // micro_batch_size


def _plain(value: Any) -> Any:
    return value.values.to_numpy(zero_copy_only=False) if hasattr(value, "values") else value.as_py()
