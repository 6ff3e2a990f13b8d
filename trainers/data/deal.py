"""Dealing the rows of a global batch to the workers, so that they finish together.

Which rows make up a global batch is the order's business; who computes which of them changes neither the loss (a sum over
all of them) nor the next batch. Workers wait for the slowest, so rows are dealt by length: the longest first, to the worker
with the fewest tokens so far (LPT, Graham 1969) that still has room, then single rows are exchanged between the fullest
and the emptiest worker while that helps. Workers get equal numbers of rows, but for one.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from trainers.data.order import share

EXCHANGES = 64
"""At most so many exchanges a global batch; in practice a few are enough."""
MANY = 256
"""Rows a worker from which on the first deal is even enough: an exchange looks at every pair of rows."""


def deal(lengths: NDArray[np.int64], world_size: int) -> list[NDArray[np.int64]]:
    """Who computes what: for each worker the slots of the global batch it gets, ascending; every slot once.

    Args:
        lengths: tokens of each slot, shape `[B]`.

    The same on every worker, as it depends on nothing else.
    """
    rooms = [slots.stop - slots.start for slots in (share(len(lengths), rank, world_size) for rank in range(world_size))]
    hands: list[list[int]] = [[] for _ in rooms]
    loads = [(0, rank) for rank, room in enumerate(rooms) if room]
    for slot in np.argsort(-lengths, kind="stable").tolist():
        load, rank = heapq.heappop(loads)
        hands[rank].append(slot)
        if len(hands[rank]) < rooms[rank]:
            heapq.heappush(loads, (load + int(lengths[slot]), rank))
    dealt = [np.array(hand, dtype=np.int64) for hand in hands]
    _exchange(dealt, lengths)
    return [np.sort(hand) for hand in dealt]


def _exchange(dealt: list[NDArray[np.int64]], lengths: NDArray[np.int64]) -> None:
    """Swaps one row of the fullest worker with one of the emptiest, in place, while the larger of the two sums falls."""
    sums = np.array([lengths[hand].sum() for hand in dealt])
    busy = np.flatnonzero([len(hand) > 0 for hand in dealt])
    few = len(busy) > 1 and max(map(len, dealt)) <= MANY
    for _ in range(EXCHANGES if few else 0):
        full, empty = busy[np.argmax(sums[busy])], busy[np.argmin(sums[busy])]
        moved = lengths[dealt[full]][:, None] - lengths[dealt[empty]][None, :]
        after = np.maximum(sums[full] - moved, sums[empty] + moved)
        i, j = np.unravel_index(np.argmin(after), after.shape)
        if after[i, j] >= sums[full]:
            return
        sums[full] -= moved[i, j]
        sums[empty] += moved[i, j]
        dealt[full][i], dealt[empty][j] = dealt[empty][j], dealt[full][i]
