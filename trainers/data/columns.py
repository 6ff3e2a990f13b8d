"""Rows of numbers as Arrow columns and back.

A column of lists (tokens, flags) is stored as the bytes of the smallest unsigned integers that hold it, one binary value a
row; its dtype stands in the schema. A Parquet list column costs ten times the CPU to read: its nesting is decoded value by
value. A column of plain numbers is int32.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainers.data.order import Ints

Rows = dict[str, list[Any]]
"""Columns of the same length: lists of numbers, or of int32 arrays."""

_DTYPES = b"muster.dtypes"


def pack(columns: dict[str, list[Any]], lists: Sequence[str]) -> pa.Table:
    """The columns as a table; those named in `lists` hold a list of whole numbers (0 to 2^32 - 1) a row."""
    arrays, dtypes = {}, {}
    for name, values in columns.items():
        if name not in lists:
            arrays[name] = pa.array(values, pa.int32())
            continue
        flat = np.concatenate([np.zeros(0, np.int64), *(np.asarray(value, np.int64) for value in values)])
        dtype = np.min_scalar_type(int(flat.max())) if len(flat) else np.dtype(np.uint8)
        ends = np.cumsum([0, *map(len, values)]) * dtype.itemsize
        buffers = [None, pa.py_buffer(ends.astype(np.int64)), pa.py_buffer(flat.astype(dtype))]
        arrays[name] = pa.Array.from_buffers(pa.large_binary(), len(values), buffers).cast(pa.binary())
        dtypes[name] = dtype.str
    table = pa.table(arrays)
    return table.replace_schema_metadata({_DTYPES: json.dumps(dtypes)})


def unpack(table: pa.Table, order: Ints | None = None) -> Rows:
    """The rows, in this order of them (default: as they stand)."""
    dtypes, rows = _dtypes(table), {}
    places = range(table.num_rows) if order is None else order.tolist()
    for name in table.column_names:
        array = _whole(table.column(name))
        if name not in dtypes:
            values = array.to_numpy().tolist()
            rows[name] = [values[i] for i in places]
            continue
        ends, flat = _bytes(array)
        dtype = dtypes[name]
        numbers = flat[ends[0] : ends[-1]].view(dtype).astype(np.int32)
        bounds = ((ends - ends[0]) // dtype.itemsize).tolist()
        rows[name] = [numbers[bounds[i] : bounds[i + 1]] for i in places]
    return rows


def lengths(table: pa.Table, name: str = "input_ids") -> Ints:
    """Numbers in each row's list, shape `[rows]`."""
    ends, _ = _bytes(_whole(table.column(name)))
    return (np.diff(ends) // _dtypes(table)[name].itemsize).astype(np.int64)


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
