"""Reads a worker's lanes ahead of the loop: blocks of row groups, each fetched, decoded and shuffled once, in threads.

A worker holds, for each of its lanes, the block it reads from and the next ones (`Order.blocks_ahead`): at most twice its
part of the shuffle window, or two blocks a lane where that is more. Position is what the loop has consumed, never what was
read ahead, so nothing is lost or repeated by stopping.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from trainers.data.columns import View
from trainers.data.order import Ints, Lane, Order
from trainers.data.shards import Shards

THREADS = 16
"""Requests in flight."""

CHUNK_BYTES = 2 << 20
"""Rows of several global batches are put into the order of their slots at once, up to about so many bytes."""

Key = tuple[int, int]
"""(epoch, block): blocks of a lane in the order they are read."""


@dataclass(frozen=True)
class _Chunk:
    """A worker's rows of the global batches [first, stop): batch i of them is rows [cuts[i], cuts[i + 1])."""

    first: int
    stop: int
    slots: Ints
    view: View
    cuts: list[int]


class Reader:
    """The rows of some lanes, one global batch after the other.

    Args:
        lanes: numbers of the lanes to read.
        end: the position behind the last global batch of the run: nothing behind it is read ahead.
    """

    def __init__(self, shards: Shards, order: Order, lanes: range, end: int) -> None:
        self._shards, self._order, self._lanes, self._end = shards, order, lanes, end
        self._fetching = ThreadPoolExecutor(THREADS, "fetch")
        self._shuffling = ThreadPoolExecutor(1, "shuffle")
        self._dealing = ThreadPoolExecutor(1, "deal")
        self._known: dict[int, dict[int, Lane]] = {number: {} for number in lanes}
        self._blocks: dict[int, dict[Key, Future[View]]] = {number: {} for number in lanes}
        batch_bytes = order.group_bytes * len(order.rows) / order.batches * len(lanes) / order.lanes
        self._most = max(1, int(CHUNK_BYTES / max(1.0, batch_bytes)))
        self._size = 1
        self._begun = False
        self._chunk: _Chunk | None = None
        self._next: tuple[int, int, Future[_Chunk]] | None = None

    def rows(self, position: int) -> tuple[Ints, View]:
        """This worker's rows of the global batch at `position`: their slots in it, ascending, and the rows.

        Raises:
            StorageError: a row group could not be read.
        """
        chunk = self._chunk
        if chunk is None or not chunk.first <= position < chunk.stop:
            chunk = self._chunk = self._turn(position)
        a, b = chunk.cuts[position - chunk.first : position - chunk.first + 2]
        return chunk.slots[a:b], chunk.view.take(slice(a, b))

    def close(self) -> None:
        """Ends its threads; those that wait for the store end when that is closed."""
        for pool in (self._dealing, self._shuffling, self._fetching):
            pool.shutdown(wait=False, cancel_futures=True)

    def _turn(self, position: int) -> _Chunk:
        """The chunk that begins at `position`; starts to make the one behind it."""
        if self._next is None or self._next[0] != position:
            self._size = 1  # the first batch comes as soon as it can; then chunks grow
            self._next = self._start(position)
        _, stop, future = self._next
        chunk = future.result()
        self._size = min(2 * self._size, self._most)
        self._next = self._start(stop) if stop < self._end else None
        return chunk

    def _start(self, first: int) -> tuple[int, int, Future[_Chunk]]:
        epoch_end = (first // self._order.batches + 1) * self._order.batches
        stop = max(first + 1, min(first + self._size, epoch_end, self._end))
        return first, stop, self._dealing.submit(self._make, first, stop)

    def _make(self, first: int, stop: int) -> _Chunk:
        """The rows of the global batches [first, stop), of one epoch, in the order of their slots."""
        epoch, low, _ = self._order.span(first)
        high = self._order.span(stop - 1)[2]
        wanted = [(self._lane(epoch, number), *self._order.wanted(number, low, high)) for number in self._lanes]
        parts = [(lane, *part) for lane, row, end in wanted for part in _parts(lane, row, end)]
        for lane, block, _, _ in parts:
            self._ask(lane.number, (epoch, block))
        if self._begun:
            self._read_ahead(epoch, parts)
        places, views = [np.empty(0, np.int64)], [View.of(self._shards.schema.empty_table())]
        for lane, block, row, end in parts:
            start = int(lane.starts[block])
            views.append(self._blocks[lane.number][epoch, block].result().take(slice(row - start, end - start)))
            places.append(np.arange(row, end) * self._order.lanes + lane.number - low)
            self._forget(lane.number, (epoch, block))
        if not self._begun:  # the first batch shares the link with nothing
            self._read_ahead(epoch, parts)
            self._begun = True
        dealt = np.concatenate(places)
        ascending = np.argsort(dealt)
        dealt, size = dealt[ascending], self._order.global_batch_size
        cuts = np.searchsorted(dealt, np.arange(stop - first + 1) * size).tolist()
        return _Chunk(first, stop, dealt % size, View.join(views).take(ascending), cuts)

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

    def _read_ahead(self, epoch: int, parts: list[tuple[Lane, int, int, int]]) -> None:
        for lane, block, _, _ in parts:
            self._ask_next(lane, (epoch, block))

    def _ask_next(self, lane: Lane, key: Key) -> None:
        for _ in range(self._order.blocks_ahead):
            epoch, block = key
            if block + 2 < len(lane.edges):
                key = epoch, block + 1
            elif (epoch + 1) * self._order.batches < self._end:
                key = epoch + 1, 0
                lane = self._known[lane.number].setdefault(epoch + 1, self._order.lane(epoch + 1, lane.number))
            else:
                return
            self._ask(lane.number, key)

    def _forget(self, number: int, key: Key) -> None:
        for old in [k for k in self._blocks[number] if k < key]:
            del self._blocks[number][old]

    def _fetch(self, group: int, first: int, stop: int) -> View:
        return View.of(self._shards.fetch(group).slice(first, stop - first))


def _parts(lane: Lane, row: int, end: int) -> list[tuple[int, int, int]]:
    """(block, first, stop) of the lane's rows [row, end), block by block."""
    parts = []
    while row < end:
        block = lane.block_of(row)
        upto = min(end, int(lane.starts[block + 1]))
        parts.append((block, row, upto))
        row = upto
    return parts


def _shuffle(fetched: list[Future[View]], lane: Lane, block: int) -> View:
    return View.join([future.result() for future in fetched]).take(lane.permutation(block))
