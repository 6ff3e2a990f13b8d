"""The order of samples: a pure function of (seed, epoch, global batch), never of the number of workers.

Rows lie in *row groups*, the units that are fetched. An epoch's order is made in four steps:

1. Row groups are permuted by (seed, epoch), and their rows follow one another in that sequence.
2. The sequence is cut into C equal *lanes*, one a slot of the global batch, or fewer where lanes would have fewer than ten
   row groups or together exceed the shuffle window.
3. In a lane, rows are shuffled inside *blocks* of W row groups, by (seed, epoch, lane, block). A lane's first block is
   1 + lane mod W row groups long, so that lanes come to the end of their blocks at different times.
4. Lanes are dealt in turn: position p of the epoch is row p // C of lane p mod C. A *global batch* is `global_batch_size`
   consecutive positions (the last one of an epoch may be smaller; no row is dropped, none is seen twice).

Reader r of R reads lanes [C·r//R, C·(r+1)//R), so that together they fetch each row group once, and those cut by a lane's
end twice. Position in a run is one integer, the global batches consumed; finding any position costs the same. Arithmetic is
over row groups, never over rows: 16 bytes a row group.

Draws are numpy's Philox with key (seed, epoch) and counter (0, 0, 0, 0) for step 1, (0, block, lane, 1) for step 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

GROUPS_A_LANE = 10
"""Row groups a lane has at least: the one or two that its ends cut are fetched twice, so 1.1 times the bytes at most."""


def batches_per_epoch(rows: int, global_batch_size: int) -> int:
    """Global batches that cover `rows` rows once."""
    return -(-rows // global_batch_size)


def share(size: int, rank: int, world_size: int) -> slice:
    """The part of `size` things that one of `world_size` gets: parts are consecutive and differ by one at most."""
    return slice(size * rank // world_size, size * (rank + 1) // world_size)


def lane_count(groups: int, global_batch_size: int, group_bytes: float, window_bytes: float) -> int:
    """Lanes of a set of `groups` row groups of `group_bytes` on average, when blocks may take `window_bytes` over all lanes."""
    return max(1, min(global_batch_size, groups // GROUPS_A_LANE, int(window_bytes / max(1.0, group_bytes))))


@dataclass(frozen=True)
class Lane:
    """One lane of one epoch: pieces of row groups, in blocks. All arrays are over its pieces or its blocks."""

    number: int
    groups: Ints
    """Row group of each piece."""
    first: Ints
    """First row of the piece, inside its row group."""
    stop: Ints
    """Row behind the last one."""
    edges: Ints
    """Where blocks begin, counted in pieces, shape `[blocks + 1]`."""
    starts: Ints
    """Where blocks begin, counted in rows of the lane, shape `[blocks + 1]`."""
    key: tuple[int, int]

    def block_of(self, row: int) -> int:
        """The block that a row of the lane lies in."""
        return int(np.searchsorted(self.starts, row, "right")) - 1

    def permutation(self, block: int) -> Ints:
        """The order of the rows of a block: place → row of its pieces, one behind the other."""
        philox = np.random.Philox(key=np.array(self.key, np.uint64), counter=[0, block, self.number, 1])
        return np.random.Generator(philox).permutation(int(self.starts[block + 1] - self.starts[block]))


@dataclass(frozen=True, eq=False)
class Order:
    """The order of one set of row groups.

    Args:
        rows: rows of each row group, in storage order, shape `[groups]`.
        group_bytes: what a row group takes in memory, on average.
        window_bytes: what the blocks of all lanes may take together (the shuffle window); at least one row group a lane.
        seed: below 2^64.
    """

    rows: Ints
    global_batch_size: int
    seed: int
    group_bytes: float = 4e6
    window_bytes: float = 64e6

    @cached_property
    def total(self) -> int:
        """Rows of the set."""
        return int(self.rows.sum())

    @cached_property
    def lanes(self) -> int:
        """C, the number of lanes."""
        return lane_count(len(self.rows), self.global_batch_size, self.group_bytes, self.window_bytes)

    @cached_property
    def groups_a_block(self) -> int:
        """W, the row groups of a block."""
        return max(1, int(self.window_bytes / (max(1.0, self.group_bytes) * self.lanes)))

    @cached_property
    def blocks_ahead(self) -> int:
        """Blocks of a lane that are read ahead of the one in use: as many as twice the window holds, and one at least."""
        return max(1, int(2 * self.window_bytes / (max(1.0, self.group_bytes) * self.lanes * self.groups_a_block)) - 1)

    @cached_property
    def batches(self) -> int:
        """Global batches of an epoch."""
        return batches_per_epoch(self.total, self.global_batch_size)

    def span(self, position: int) -> tuple[int, int, int]:
        """(epoch, first, stop) of the global batch at `position` (0, 1, 2, … over all epochs), in positions of the epoch."""
        epoch, batch = divmod(position, self.batches)
        first = batch * self.global_batch_size
        return epoch, first, min(first + self.global_batch_size, self.total)

    def wanted(self, lane: int, first: int, stop: int) -> tuple[int, int]:
        """(first, stop) rows of a lane among positions [first, stop) of an epoch."""
        return -(-(first - lane) // self.lanes), -(-(stop - lane) // self.lanes)

    def readers(self, first: int, stop: int, world_size: int) -> Ints:
        """Which rank reads each of the positions [first, stop), shape `[stop - first]`."""
        ends = np.array([share(self.lanes, rank, world_size).stop for rank in range(world_size)])
        return np.searchsorted(ends, np.arange(first, stop) % self.lanes, "right")

    def lane(self, epoch: int, number: int) -> Lane:
        """A lane of an epoch."""
        sequence, ends = self._sequence(epoch)
        size, longer = divmod(self.total, self.lanes)
        start = number * size + min(number, longer)
        stop = start + size + (number < longer)
        low, high = int(np.searchsorted(ends, start, "right")), int(np.searchsorted(ends, stop, "left")) + 1
        if stop == start:
            high = low
        groups, behind = sequence[low:high], ends[low:high]
        before = behind - self.rows[groups]
        first, last = np.maximum(start, before) - before, np.minimum(stop, behind) - before
        some = last > first  # row groups without rows are nobody's piece
        groups, first, last = groups[some], first[some], last[some]
        width = self.groups_a_block
        edges = np.concatenate([[0], np.arange(1 + number % width, len(groups), width), [len(groups)]])
        starts = np.concatenate([[0], np.cumsum(last - first)])[edges]
        return Lane(number, groups, first, last, edges, starts, (self.seed, epoch))

    def batch(self, position: int) -> Ints:
        """Row numbers (in storage order) of the global batch at `position`, shape `[<= global_batch_size]`."""
        epoch, first, stop = self.span(position)
        found = np.empty(stop - first, np.int64)
        base = np.cumsum(self.rows) - self.rows
        for number in range(self.lanes):
            lane = self.lane(epoch, number)
            row, end = self.wanted(number, first, stop)
            while row < end:
                block = lane.block_of(row)
                upto = min(end, int(lane.starts[block + 1]))
                pieces = range(lane.edges[block], lane.edges[block + 1])
                there = np.concatenate([np.arange(lane.first[i], lane.stop[i]) + base[lane.groups[i]] for i in pieces])
                start = int(lane.starts[block])
                chosen = lane.permutation(block)[row - start : upto - start]
                found[np.arange(row, upto) * self.lanes + number - first] = there[chosen]
                row = upto
        return found

    def _sequence(self, epoch: int) -> tuple[Ints, Ints]:
        """Row groups in the epoch's order, and how many rows there are up to the end of each."""
        return _permuted(self, epoch)


@lru_cache(maxsize=4)
def _permuted(order: Order, epoch: int) -> tuple[Ints, Ints]:
    philox = np.random.Philox(key=np.array([order.seed, epoch], np.uint64))
    sequence = np.random.Generator(philox).permutation(len(order.rows))
    return sequence, np.cumsum(order.rows[sequence])
