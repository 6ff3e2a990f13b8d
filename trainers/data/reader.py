"""Reads a worker's lanes ahead of the loop: blocks of row groups, each fetched, decoded and shuffled once, in threads.

A worker holds, for each of its lanes, the block it reads from and the next one: at most twice its part of the shuffle
window. Position is what the loop has consumed, never what was read ahead, so nothing is lost or repeated by stopping.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from trainers.data.order import Ints, Lane, Order
from trainers.data.shards import Shards

THREADS = 16
"""Requests in flight."""

Key = tuple[int, int]
"""(epoch, block): blocks of a lane in the order they are read."""


class Reader:
    """The rows of some lanes, one global batch after the other.

    Args:
        lanes: numbers of the lanes to read.
        end: the position behind the last global batch of the run: no epoch behind it is read ahead.
    """

    def __init__(self, shards: Shards, order: Order, lanes: range, end: int) -> None:
        self._shards, self._order, self._lanes = shards, order, lanes
        self._last_epoch = (end - 1) // order.batches
        self._fetching = ThreadPoolExecutor(THREADS, "fetch")
        self._shuffling = ThreadPoolExecutor(1, "shuffle")
        self._known: dict[int, dict[int, Lane]] = {number: {} for number in lanes}
        self._blocks: dict[int, dict[Key, Future[pa.Table]]] = {number: {} for number in lanes}

    def rows(self, position: int) -> tuple[Ints, pa.Table]:
        """This worker's rows of the global batch at `position`: their slots in it, ascending, and the rows.

        Raises:
            StorageError: a row group could not be read.
        """
        epoch, first, stop = self._order.span(position)
        wanted = [(self._lane(epoch, number), *self._order.wanted(number, first, stop)) for number in self._lanes]
        parts = [(lane, *part) for lane, row, end in wanted for part in _parts(lane, row, end)]
        for lane, block, _, _ in parts:
            self._ask(lane.number, (epoch, block))
        for lane, block, _, _ in parts:
            self._ask_next(lane, (epoch, block))
        slots, tables = [np.empty(0, np.int64)], [self._shards.schema.empty_table()]
        for lane, block, row, end in parts:
            table = self._blocks[lane.number][epoch, block].result()
            tables.append(table.slice(row - int(lane.starts[block]), end - row))
            slots.append(np.arange(row, end) * self._order.lanes + lane.number - first)
            self._forget(lane.number, (epoch, block))
        places = np.concatenate(slots)
        ascending = np.argsort(places)
        return places[ascending], pa.concat_tables(tables).take(pa.array(ascending))

    def close(self) -> None:
        """Ends its threads."""
        self._shards.store.close()
        self._fetching.shutdown(wait=False, cancel_futures=True)
        self._shuffling.shutdown(wait=False, cancel_futures=True)

    def _lane(self, epoch: int, number: int) -> Lane:
        known = self._known[number]
        if epoch not in known:
            known[epoch] = self._order.lane(epoch, number)
            for old in [e for e in known if e < epoch]:
                del known[old]
        return known[epoch]

    def _ask(self, number: int, key: Key) -> None:
        """Starts to read a block, unless that was done."""
        epoch, block = key
        if key in self._blocks[number]:
            return
        lane = self._lane(epoch, number)
        pieces = range(int(lane.edges[block]), int(lane.edges[block + 1]))
        fetched = [self._fetching.submit(self._fetch, int(lane.groups[i]), int(lane.first[i]), int(lane.stop[i])) for i in pieces]
        self._blocks[number][key] = self._shuffling.submit(_shuffle, fetched, lane, block)

    def _ask_next(self, lane: Lane, key: Key) -> None:
        epoch, block = key
        if block + 2 < len(lane.edges):
            self._ask(lane.number, (epoch, block + 1))
        elif epoch < self._last_epoch:
            self._known[lane.number].setdefault(epoch + 1, self._order.lane(epoch + 1, lane.number))
            self._ask(lane.number, (epoch + 1, 0))

    def _forget(self, number: int, key: Key) -> None:
        for old in [k for k in self._blocks[number] if k < key]:
            del self._blocks[number][old]

    def _fetch(self, group: int, first: int, stop: int) -> pa.Table:
        return self._shards.fetch(group).slice(first, stop - first)


def _parts(lane: Lane, row: int, end: int) -> list[tuple[int, int, int]]:
    """(block, first, stop) of the lane's rows [row, end), block by block."""
    parts = []
    while row < end:
        block = lane.block_of(row)
        upto = min(end, int(lane.starts[block + 1]))
        parts.append((block, row, upto))
        row = upto
    return parts


def _shuffle(fetched: list[Future[pa.Table]], lane: Lane, block: int) -> pa.Table:
    together = pa.concat_tables([future.result() for future in fetched]).combine_chunks()
    return together.take(pa.array(lane.permutation(block)))
