"""Rows of numbers as Arrow columns and back.

A column of lists (tokens, flags) is stored as the bytes of the smallest unsigned integers that hold it, one binary value a
row; its dtype stands in the schema. A Parquet list column costs ten times the CPU to read: its nesting is decoded value by
value. A column of plain numbers is int32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainers.data.order import Ints

Rows = dict[str, list[Any]]
"""Columns of the same length: whole numbers, or arrays of them (of any unsigned dtype; not to be written to)."""

_DTYPES = b"muster.dtypes"


@dataclass(frozen=True, eq=False)
class View:
    """Rows that lie in one or several tables, by reference: putting them into another order moves no token.

    Arrays have one element a row, but for `flats`.
    """

    flats: dict[str, list[NDArray[Any]]]
    """Of each list column: all values of each table, one row behind the other."""
    table: Ints
    """Which of the tables a row lies in."""
    first: dict[str, Ints]
    """Where a row's list begins in that table's values."""
    stop: dict[str, Ints]
    numbers: dict[str, Ints]
    """The other columns."""

    @classmethod
    def of(cls, table: pa.Table) -> View:
        """The rows of a table as `pack` makes them."""
        dtypes, flats, first, stop, numbers = _dtypes(table), {}, {}, {}, {}
        for name in table.column_names:
            array = _whole(table.column(name))
            if name in dtypes:
                ends, data = _bytes(array)
                size = dtypes[name].itemsize
                flats[name] = [data[ends[0] : ends[-1]].view(dtypes[name])]
                bounds = (ends.astype(np.int64) - ends[0]) // size
                first[name], stop[name] = bounds[:-1], bounds[1:]
            else:
                numbers[name] = array.to_numpy()
        return cls(flats, np.zeros(table.num_rows, np.int64), first, stop, numbers)

    @classmethod
    def join(cls, views: Sequence[View]) -> View:
        """The rows of one behind those of the other; at least one view, all with the same columns."""
        if len(views) == 1:
            return views[0]

        def joined(parts: Sequence[dict[str, Ints]]) -> dict[str, Ints]:
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

        flats = {name: [flat for view in views for flat in view.flats[name]] for name in views[0].flats}
        before = np.cumsum([0, *(view.tables for view in views)])
        table = np.concatenate([view.table + n for view, n in zip(views, before[:-1], strict=True)])
        return cls(flats, table, joined([v.first for v in views]), joined([v.stop for v in views]), joined([v.numbers for v in views]))

    @property
    def tables(self) -> int:
        """How many tables its rows may lie in."""
        return max((len(flats) for flats in self.flats.values()), default=0)

    def __len__(self) -> int:
        return len(self.table)

    def take(self, order: Ints | slice) -> View:
        """These of the rows, in this order."""

        def taken(arrays: dict[str, Ints]) -> dict[str, Ints]:
            return {name: array[order] for name, array in arrays.items()}

        return View(self.flats, self.table[order], taken(self.first), taken(self.stop), taken(self.numbers))

    def trimmed(self) -> View:
        """The same rows, without the tables that none of them lies in."""
        used, table = np.unique(self.table, return_inverse=True)
        flats = {name: [flats[i] for i in used.tolist()] for name, flats in self.flats.items()}
        return View(flats, table, self.first, self.stop, self.numbers)

    def lengths(self, name: str = "input_ids") -> Ints:
        """Numbers in each row's list, shape `[rows]`."""
        return self.stop[name] - self.first[name]

    def rows(self) -> Rows:
        """The rows; lists are views of the tables' memory."""
        tables = self.table.tolist()
        rows: Rows = {name: values.tolist() for name, values in self.numbers.items()}
        for name, flats in self.flats.items():
            places = zip(tables, self.first[name].tolist(), self.stop[name].tolist(), strict=True)
            rows[name] = [flats[table][a:b] for table, a, b in places]
        return rows


def pack(columns: dict[str, list[Any]], lists: Sequence[str] | Mapping[str, np.dtype]) -> pa.Table:
    """The columns as a table.

    Args:
        lists: those that hold a list of whole numbers (0 to 2^32 - 1) a row; their dtypes, or the smallest that will do.
    """
    arrays, dtypes = {}, {}
    for name, values in columns.items():
        if name not in lists:
            arrays[name] = pa.array(values, pa.int32())
            continue
        parts = (value if isinstance(value, np.ndarray) else np.asarray(value, np.int64) for value in values)
        flat = np.concatenate([np.zeros(0, np.uint8), *parts])
        dtype = lists[name] if isinstance(lists, Mapping) else np.min_scalar_type(int(flat.max())) if len(flat) else np.dtype(np.uint8)
        ends = np.cumsum([0, *map(len, values)]) * dtype.itemsize
        buffers = [None, pa.py_buffer(ends.astype(np.int64)), pa.py_buffer(flat.astype(dtype))]
        arrays[name] = pa.Array.from_buffers(pa.large_binary(), len(values), buffers).cast(pa.binary())
        dtypes[name] = dtype.str
    table = pa.table(arrays)
    return table.replace_schema_metadata({_DTYPES: json.dumps(dtypes)})


def end_to_end(table: pa.Table, groups: Sequence[Sequence[int]]) -> pa.Table:
    """One row a group: the lists of the group's rows behind one another. Every column must hold lists, as `pack` makes them."""
    rows = np.fromiter((row for group in groups for row in group), np.int64)
    bounds = np.cumsum([0, *map(len, groups)])
    arrays = []
    for column in table.take(pa.array(rows)).columns:
        ends, data = _bytes(_whole(column))
        buffers = [None, pa.py_buffer(ends[bounds]), pa.py_buffer(data)]
        arrays.append(pa.Array.from_buffers(pa.binary(), len(groups), buffers))
    return pa.Table.from_arrays(arrays, schema=table.schema)


def _dtypes(table: pa.Table) -> dict[str, np.dtype]:
    return _parsed(table.schema.metadata[_DTYPES])


@lru_cache(maxsize=64)
def _parsed(text: bytes) -> dict[str, np.dtype]:
    return {name: np.dtype(dtype) for name, dtype in json.loads(text).items()}


def _whole(column: pa.ChunkedArray) -> Any:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _bytes(array: pa.BinaryArray) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Where each value ends in the bytes, with a beginning in front, `[rows + 1]`; and the bytes."""
    _, ends, data = array.buffers()
    if not len(array):
        return np.zeros(1, np.int32), np.zeros(0, np.uint8)
    here = np.frombuffer(ends, np.int32, len(array) + 1, 4 * array.offset)
    return here, np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
