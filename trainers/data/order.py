"""The order of samples: a pure function of (seed, epoch, global batch), never of the number of workers.

A *global batch* is `global_batch_size` consecutive positions of the epoch's permutation (the last one of an epoch may be
smaller; no row is dropped, none is seen twice). Its slots are the *lanes*: worker r of R reads lanes [C·r//R, C·(r+1)//R).
Position in a run is one integer, the global batches consumed; finding the rows of any position costs the same.

The permutation of an epoch is drawn whole (8 bytes a row) from a Philox generator keyed by (seed, epoch), so no generator
state has to be kept.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def batches_per_epoch(rows: int, global_batch_size: int) -> int:
    """Global batches that cover `rows` rows once."""
    return -(-rows // global_batch_size)


def global_batch(rows: int, global_batch_size: int, seed: int, position: int) -> NDArray[np.int64]:
    """Row numbers of the global batch at `position` (0, 1, 2, … over all epochs), shape `[<= global_batch_size]`."""
    epoch, index = divmod(position, batches_per_epoch(rows, global_batch_size))
    return permutation(rows, seed, epoch)[index * global_batch_size : (index + 1) * global_batch_size]


def lanes(size: int, rank: int, world_size: int) -> slice:
    """The share of a batch of `size` slots that one worker reads."""
    return slice(size * rank // world_size, size * (rank + 1) // world_size)


@lru_cache(maxsize=2)
def permutation(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The epoch's order of row numbers, shape `[rows]`."""
    order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(rows)
    order.flags.writeable = False
    return order
