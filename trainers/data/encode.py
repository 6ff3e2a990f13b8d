"""From a part of the source to token rows, dealt at random to partitions that each fit into memory.

A part's token rows go into a few objects of the work store, and last a list of what lies where: a part that has one is done.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from trainers import tasks
from trainers.data.columns import pack
from trainers.data.order import Ints
from trainers.data.rows import Example
from trainers.data.scan import Part, Scan
from trainers.data.split import REASONS, SPLITS
from trainers.model_source import ModelSource

VERDICTS = "verdicts"
"""Object of the work store: what becomes of each row of the source, a byte a row (`trainers.data.split.Verdicts`)."""
CHUNK_BYTES = 64 << 20
"""Bytes of token rows that are gathered before they are written out."""


class Rows(NamedTuple):
    """A part, and which rows of the source it holds."""

    part: Part
    first: int
    """The number of its first row in the whole source."""
    first_in_file: int
    """The same in its file, from 1."""
    many: int
    """How many rows it holds."""


class Dropped(NamedTuple):
    """A row that was left out."""

    split: str
    file: str
    row: int
    """Its number in the file, from 1; rows of csv that could not be read are counted last."""
    reason: str
    """One of `REASONS`."""
    content: str
    """What the row says; for an unreadable one, what is wrong with it."""


class Section(NamedTuple):
    """Bytes [offset, offset + length) of an object."""

    object: str
    offset: int
    length: int


@dataclass(frozen=True)
class Encoded:
    """What became of a part."""

    sections: dict[tuple[int, int], list[Section]]
    """By (split, partition), token rows as Arrow streams."""
    dropped: list[Section]
    """Lines of JSON, each a `Dropped`."""
    rows: list[int]
    """Token rows by split."""
    counts: dict[str, int]
    """The encoder's."""


@dataclass(frozen=True)
class Encode:
    """Tokenises parts of the source. Partitions are drawn from a stream of random numbers a part, so the result is the same every time."""

    scan: Scan
    model: ModelSource
    labels: list[str]
    max_length: int
    partitions: tuple[int, ...]
    """Number of partitions by split."""

    def __call__(self, rows: Rows) -> Encoded:
        """Makes the token rows of a part, unless they are there."""
        work, name = self.scan.work, f"rows/{rows.part.number:05d}"
        if not work.has(f"{name}.json"):
            work.put(f"{name}.json", json.dumps(self._make(rows, name)).encode())
        found = json.loads(bytes(work.whole(f"{name}.json")))
        sections: dict[tuple[int, int], list[Section]] = defaultdict(list)
        for split, partition, *where in found["sections"]:
            sections[split, partition].append(Section(*where))
        return Encoded(sections, [Section(*where) for where in found["dropped"]], found["rows"], found["counts"])

    def _make(self, rows: Rows, name: str) -> dict[str, Any]:
        job = self.scan.job
        encoder = tasks.get(job.task).Encoder(tokenizer(self.model), job.data, self.max_length, self.labels)
        verdicts = np.frombuffer(self.scan.work.get(VERDICTS, rows.first, rows.many), np.uint8) if rows.many else np.zeros(0, np.uint8)
        draw = np.random.Generator(np.random.Philox(key=rows.part.number))
        out = _Writer(self.scan, name)
        kept, done = [0] * len(SPLITS), 0
        for examples in self.scan.examples(rows.part):
            fates = verdicts[done : done + len(examples)]
            out.drop([_dropped(rows, done + i, examples[i], int(fates[i])) for i in np.flatnonzero(fates >= len(SPLITS)).tolist()])
            for split in range(len(SPLITS)):
                mine = [examples[i] for i in np.flatnonzero(fates == split).tolist()]
                table = pack(encoder(mine), encoder.dtypes)
                kept[split] += table.num_rows
                out.rows(split, table, draw.integers(self.partitions[split], size=table.num_rows))
            done += len(examples)
        out.flush()
        return {"sections": out.sections, "dropped": out.dropped, "rows": kept, "counts": encoder.counts}


class _Writer:
    """Gathers what a part gives, and writes it out as objects `name`-NNN of the work store."""

    def __init__(self, scan: Scan, name: str) -> None:
        self.sections: list[tuple[Any, ...]] = []
        self.dropped: list[Section] = []
        self._work, self._name, self._objects = scan.work, name, 0
        self._clear()

    def rows(self, split: int, table: pa.Table, to: Ints) -> None:
        """Rows of a split, each with the number of its partition."""
        if not table.num_rows:
            return
        ordered = table.take(pa.array(np.argsort(to, kind="stable")))
        counts = np.bincount(to)
        starts = np.cumsum(counts) - counts
        for partition in np.flatnonzero(counts).tolist():
            self._tables[split, partition].append(ordered.slice(int(starts[partition]), int(counts[partition])))
        self._held += table.nbytes
        if self._held > CHUNK_BYTES:
            self.flush()

    def drop(self, rows: list[Dropped]) -> None:
        """Rows that are left out."""
        lines = "".join(json.dumps(row._asdict(), ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "replace")
        self._lines.append(lines)
        self._held += len(lines)

    def flush(self) -> None:
        """Writes an object of all that was gathered."""
        name, at, parts = f"{self._name}-{self._objects:03d}", 0, []
        for key, tables in sorted(self._tables.items()):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, tables[0].schema) as stream:
                for table in tables:
                    stream.write_table(table)
            parts.append(sink.getvalue().to_pybytes())
            self.sections.append((*key, *Section(name, at, len(parts[-1]))))
            at += len(parts[-1])
        if lines := b"".join(self._lines):
            self.dropped.append(Section(name, at, len(lines)))
        self._work.put(name, b"".join([*parts, lines]))
        self._objects += 1
        self._clear()

    def _clear(self) -> None:
        self._tables: dict[tuple[int, int], list[pa.Table]] = defaultdict(list)
        self._lines: list[bytes] = []
        self._held = 0


def _dropped(rows: Rows, number: int, example: Example, fate: int) -> Dropped:
    content = example.problem.message if example.problem else example.content
    return Dropped(SPLITS[rows.part.split], rows.part.piece.file.address, rows.first_in_file + number, REASONS[fate - len(SPLITS)], content)


@lru_cache(maxsize=1)
def tokenizer(model: ModelSource) -> Any:
    """The model's tokenizer, loaded once a process."""
    from trainers.model import load_tokenizer

    return load_tokenizer(model)
