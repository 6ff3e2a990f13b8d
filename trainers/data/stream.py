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

from trainers.data.columns import Rows, lengths, unpack
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
        table = self._change_hands(position, *self._reader.rows(position))
        return unpack(table, np.argsort(-lengths(table), kind="stable"))

    def close(self) -> None:
        """Stops reading ahead."""
        self._reader.close()

    def _change_hands(self, position: int, slots: Ints, table: pa.Table) -> pa.Table:
        group = self._group
        if group.world_size == 1:
            return table
        _, first, stop = self.order.span(position)
        mine = np.zeros(stop - first)
        mine[slots] = lengths(table)
        hands = deal(np.array(group.sum(*mine), dtype=np.int64), group.world_size)
        parts = [np.flatnonzero(np.isin(slots, hand)) for hand in hands]
        given = [b"" if rank == group.rank or not len(rows) else _pack(table.take(pa.array(rows))) for rank, rows in enumerate(parts)]
        tables = [pa.ipc.open_stream(pa.py_buffer(data)).read_all() for data in group.exchange(given) if data]
        kept = parts[group.rank]
        readers = self.order.readers(first, stop, group.world_size)[hands[group.rank]]
        came = np.concatenate([slots[kept], *(hands[group.rank][readers == rank] for rank in range(group.world_size) if rank != group.rank)])
        return pa.concat_tables([table.take(pa.array(kept)), *tables]).take(pa.array(np.argsort(came)))


def longest_first(table: pa.Table) -> pa.Table:
    """The rows by length, equal ones in the order they came."""
    return table.take(pa.array(np.argsort(-lengths(table), kind="stable")))


def micro_batches(rows: Rows, size: int, count: int) -> Iterator[Rows]:
    """`count` micro batches of at most `size` rows, the last ones possibly empty."""
    return ({name: values[i * size : (i + 1) * size] for name, values in rows.items()} for i in range(count))


def in_batches(tables: Iterator[pa.Table], size: int, count: int) -> Iterator[Rows]:
    """`count` batches of `size` rows from tables of any size, each put in order of length; then empty ones."""
    left: pa.Table | None = None
    made = 0
    for table in chain(map(longest_first, tables), repeat(None)):
        left = table if left is None else left if table is None else pa.concat_tables([left, table])
        if left is None:
            return
        while made < count and (left.num_rows >= size or table is None):
            yield unpack(left.slice(0, size))
            left, made = left.slice(size), made + 1
        if made == count:
            return


def accumulation(global_batch_size: int, world_size: int, micro_batch_size: int) -> int:
    """Micro batches a worker makes of one global batch: enough for the largest share."""
    largest_share = (global_batch_size + world_size - 1) // world_size
    return (largest_share + micro_batch_size - 1) // micro_batch_size


def _pack(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue().to_pybytes()
