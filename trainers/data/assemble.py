"""From the token rows of one partition to shards: packed, in an order of no meaning, with what the manifest says of them."""

from __future__ import annotations

import base64
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash

from trainers.data import packing, shards
from trainers.data.columns import View, end_to_end
from trainers.data.encode import Section
from trainers.data.order import Ints
from trainers.data.split import SPLITS
from trainers.data.store import Store


class Partition(NamedTuple):
    """Token rows that lie in several objects of the work store, in the order of the source."""

    split: int
    number: int
    sections: list[Section]


@dataclass(frozen=True)
class Assembled:
    """What was made of a partition."""

    split: int
    index: pa.Table
    """`shards.SCHEMA`."""
    lengths: Ints
    """Rows by their number of tokens."""
    labels: Ints
    """Rows by label; empty for tasks without."""
    digest: str
    """XXH3 (128 bits) of the rows."""


@dataclass(frozen=True)
class Assemble:
    """Writes the shards of a partition into `target`; one that is done is in `work`, and not made again.

    Args:
        capacity: tokens of a row that documents are laid into end to end; None: they are not.
        labels: how many there are.
    """

    work: Store
    target: Store
    capacity: int | None
    labels: int

    def __call__(self, partition: Partition) -> Assembled:
        """Makes the shards of a partition, unless they are there."""
        name = f"done/{SPLITS[partition.split]}-{partition.number:05d}.json"
        if not self.work.has(name):
            self.work.put(name, json.dumps(self._make(partition)).encode())
        found = json.loads(bytes(self.work.whole(name)))
        index = pa.ipc.open_stream(base64.b64decode(found["index"])).read_all()
        return Assembled(partition.split, index, np.array(found["lengths"], np.int64), np.array(found["labels"], np.int64), found["digest"])

    def _make(self, partition: Partition) -> dict[str, Any]:
        table = pa.concat_tables(pa.ipc.open_stream(pa.py_buffer(self.work.get(*where))).read_all() for where in partition.sections).combine_chunks()
        if self.capacity is not None:
            table = end_to_end(table, packing.pack(View.of(table).lengths().tolist(), self.capacity))
        random = np.random.Generator(np.random.Philox(key=[partition.split, partition.number]))
        table = table.take(pa.array(random.permutation(table.num_rows))).combine_chunks()
        with tempfile.TemporaryDirectory(prefix="muster-") as folder:
            index = shards.write(Path(folder), SPLITS[partition.split], table, f"{partition.number:05d}-")
            for file in index.column("file").unique().to_pylist():
                self.target.put(file, Path(folder) / file)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, index.schema) as stream:
            stream.write_table(index)
        view, digest = View.of(table), xxhash.xxh3_128()
        for column in table.itercolumns():
            for buffer in column.chunk(0).buffers():
                digest.update(memoryview(buffer) if buffer else b"")
        return {
            "index": base64.b64encode(sink.getvalue()).decode(),
            "lengths": np.bincount(view.lengths()).tolist(),
            "labels": np.bincount(view.numbers["label"], minlength=self.labels).tolist() if "label" in view.numbers else [],
            "digest": digest.hexdigest(),
        }
