"""From prepared row groups to the micro batches of one worker, one global batch at a time.

Each worker reads its lanes (`trainers.data.reader`). Then the rows of the global batch change hands, so that the workers
finish together (`trainers.data.deal`): who computes a row changes neither the loss nor the next batch. Every worker makes
the same number of micro batches of every global batch, because sharded workers call collectives in step; a worker that
runs out of rows gets empty ones, which add nothing to the loss. Rows go by length, which saves padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, repeat

import numpy as np
import pyarrow as pa

from trainers.data.columns import Rows, View, pack
from trainers.data.deal import deal
from trainers.data.order import Ints, Order, share
from trainers.data.reader import Reader
from trainers.data.shards import Shards
from trainers.distributed import Group


class Stream:
    """The training rows of a run, from any position.

    Args:
        end: the position behind the run's last global batch.
    """

    def __init__(self, shards: Shards, order: Order, group: Group, end: int) -> None:
        self.order, self._group = order, group
        lanes = share(order.lanes, group.rank, group.world_size)
        self._reader = Reader(shards, order, range(lanes.start, lanes.stop), end)

    def batch(self, position: int) -> Rows:
        """This worker's rows of the global batch at `position`, the longest first; equal ones by their slot."""
        view = self._change_hands(position, *self._reader.rows(position))
        return _longest_first(view).rows()

    def close(self) -> None:
        """Stops reading ahead."""
        self._reader.close()

    def _change_hands(self, position: int, slots: Ints, view: View) -> View:
        group = self._group
        if group.world_size == 1:
            return view
        _, first, stop = self.order.span(position)
        mine = np.zeros(stop - first)
        mine[slots] = view.lengths()
        hands = deal(np.array(group.sum(*mine), dtype=np.int64), group.world_size)
        parts = [np.flatnonzero(np.isin(slots, hand)) for hand in hands]
        given = [b"" if rank == group.rank or not len(rows) else _to_bytes(view.take(rows)) for rank, rows in enumerate(parts)]
        others = [_from_bytes(data) for data in group.exchange(given) if data]
        kept = parts[group.rank]
        readers = self.order.readers(first, stop, group.world_size)[hands[group.rank]]
        came = np.concatenate([slots[kept], *(hands[group.rank][readers == rank] for rank in range(group.world_size) if rank != group.rank)])
        return View.join([view.take(kept), *others]).take(np.argsort(came))


def micro_batches(rows: Rows, size: int, count: int) -> Iterator[Rows]:
    """`count` micro batches of at most `size` rows, the last ones possibly empty."""
    return ({name: values[i * size : (i + 1) * size] for name, values in rows.items()} for i in range(count))


def in_batches(tables: Iterator[pa.Table], size: int, count: int) -> Iterator[Rows]:
    """`count` batches of `size` rows from tables of any size, each put in order of length; then empty ones."""
    left: View | None = None
    made = 0
    for view in chain((_longest_first(View.of(table)) for table in tables), repeat(None)):
        left = view if left is None else left if view is None else View.join([left.trimmed(), view])
        if left is None:
            return
        while made < count and (len(left) >= size or view is None):
            yield left.take(slice(0, size)).rows()
            left, made = left.take(slice(size, None)), made + 1
        if made == count:
            return


def accumulation(global_batch_size: int, world_size: int, micro_batch_size: int) -> int:
    """Micro batches a worker makes of one global batch: enough for the largest share."""
    largest_share = (global_batch_size + world_size - 1) // world_size
    return (largest_share + micro_batch_size - 1) // micro_batch_size


def _longest_first(view: View) -> View:
    """The rows by length, equal ones in the order they came."""
    return view.take(np.argsort(-view.lengths(), kind="stable"))


def _to_bytes(view: View) -> bytes:
    table = pack(view.rows(), list(view.flats))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _from_bytes(data: bytes) -> View:
    return View.of(pa.ipc.open_stream(pa.py_buffer(data)).read_all())
