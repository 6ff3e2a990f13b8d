"""Prepared rows at rest: Parquet shards of small row groups, and an index that says where each row group lies.

A reader needs the index (one small object) and then a range of bytes a row group. Every range carries a checksum
(XXH3, 64 bits), so that a changed, cut or damaged object is noticed wherever it lies.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import xxhash
from numpy.typing import NDArray

from trainers.data.cache import Cache
from trainers.data.order import Ints, share
from trainers.data.store import Damaged, Store

GROUP_BYTES = 4 << 20
"""Arrow bytes of a row group; compressed it comes to 2–4 MB."""
CODEC = "lz4"
"""Decoding costs a third of zstd's; small integers leave zstd little to gain."""
GROUPS_A_SHARD = 32
INDEX = "index.parquet"


@dataclass(frozen=True, eq=False)
class Index:
    """Where the row groups of a split lie. Arrays have one element a row group, in storage order."""

    files: list[str]
    file: Ints
    """Which of `files` it lies in."""
    group: Ints
    """Its number in that file."""
    offset: Ints
    length: Ints
    """Bytes [offset, offset + length) of the file hold it."""
    rows: Ints
    memory: Ints
    """Arrow bytes that it takes when read."""
    checksum: NDArray[np.uint64]
    tail: Ints
    """Where the file's footer begins."""
    tail_length: Ints
    tail_checksum: NDArray[np.uint64]

    @classmethod
    def read(cls, store: Store, split: str) -> Index:
        """The index of a split."""
        return cls.of(parquet.read_table(pa.BufferReader(store.whole(INDEX)), filters=[("split", "=", split)]))

    @classmethod
    def of(cls, table: pa.Table) -> Index:
        """From rows as `write` gives them."""
        names = table.column("file").combine_chunks().dictionary_encode()
        plain = {name: table.column(name).to_numpy() for name in _COLUMNS}
        return cls(files=names.dictionary.to_pylist(), file=names.indices.to_numpy().astype(np.int64), **cast(Any, plain))

    def __len__(self) -> int:
        return len(self.rows)


_COLUMNS = ["group", "offset", "length", "rows", "memory", "checksum", "tail", "tail_length", "tail_checksum"]
SCHEMA = pa.schema([("split", pa.string()), ("file", pa.string()), *((name, pa.uint64() if "checksum" in name else pa.int64()) for name in _COLUMNS)])


def write(folder: Path, split: str, table: pa.Table, prefix: str = "") -> pa.Table:
    """Writes rows of a split as shards `folder`/`split`/`prefix`NNNNN.parquet; returns their part of the index (`SCHEMA`)."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    cuts = group_cuts(table)
    entries: list[dict[str, Any]] = []
    for shard, first in enumerate(range(0, len(cuts) - 1, GROUPS_A_SHARD)):
        name = f"{split}/{prefix}{shard:05d}.parquet"
        bounds = cuts[first : first + GROUPS_A_SHARD + 1]
        groups = [table.slice(a, b - a) for a, b in itertools.pairwise(bounds)]
        with parquet.ParquetWriter(folder / name, table.schema, compression=CODEC, use_dictionary=False, write_statistics=False) as writer:
            for group in groups:
                writer.write_table(group, row_group_size=group.num_rows)
        entries += [{"split": split, **entry} for entry in _entries(folder / name, name, [group.nbytes for group in groups])]
    return pa.Table.from_pylist(entries, schema=SCHEMA)


def group_cuts(table: pa.Table) -> list[int]:
    """Row numbers at which row groups of about `GROUP_BYTES` begin, and the number of rows."""
    if not table.num_rows:
        return [0]
    many = max(1, round(table.nbytes / GROUP_BYTES))
    sizes = sum(np.diff(_offsets(column)) if pa.types.is_binary(column.type) else 4 for column in table.columns)
    ends = np.cumsum(np.broadcast_to(sizes, table.num_rows))
    cuts = np.searchsorted(ends, ends[-1] * np.arange(1, many) / many, "left") + 1
    return [0, *sorted({int(cut) for cut in cuts if 0 < cut < table.num_rows}), table.num_rows]


def _offsets(column: pa.ChunkedArray) -> Ints:
    array = column.combine_chunks()
    return np.frombuffer(array.buffers()[1], np.int32, len(array) + 1, 4 * array.offset).astype(np.int64)


def _entries(path: Path, name: str, memory: list[int]) -> Iterator[dict[str, Any]]:
    data = memoryview(cast("Any", np.memmap(path, mode="r")))
    size = len(data)
    footer = int.from_bytes(bytes(data[-8:-4]), "little") + 8  # footer, its length, "PAR1"
    tail = {"tail": size - footer, "tail_length": footer, "tail_checksum": xxhash.xxh3_64_intdigest(data[size - footer :])}
    metadata = parquet.read_metadata(path)
    for number, bytes_ in enumerate(memory):
        columns = [metadata.row_group(number).column(i) for i in range(metadata.num_columns)]
        first = min(c.dictionary_page_offset or c.data_page_offset for c in columns)
        length = sum(c.total_compressed_size for c in columns)
        where = {"group": number, "offset": first, "length": length, "rows": metadata.row_group(number).num_rows, "memory": bytes_}
        yield {"file": name, **where, "checksum": xxhash.xxh3_64_intdigest(data[first : first + length]), **tail}


class Shards:
    """Reads row groups of a split by number. Safe to use from many threads."""

    def __init__(self, store: Store, index: Index, cache: Cache | None = None) -> None:
        self.store, self.cache = store, cache
        self.index = index
        self._footer = lru_cache(maxsize=256)(self._read_footer)  # about 0.35% of a row group each

    @property
    def total(self) -> int:
        """Rows of the split."""
        return int(self.index.rows.sum())

    @cached_property
    def schema(self) -> pa.Schema:
        """Columns of the rows."""
        return parquet.ParquetFile(pa.BufferReader(b""), metadata=self._metadata(0)).schema_arrow

    def fetch(self, number: int) -> pa.Table:
        """The rows of a row group.

        Raises:
            StorageError: it is gone, forbidden, out of reach for too long, or not what was prepared.
        """
        at = self.index
        footer, file = self._metadata(number), int(at.file[number])
        first, length = int(at.offset[number]), int(at.length[number])
        data = self._bytes(at.files[file], first, length, int(at.checksum[number]))
        source = pa.PythonFile(_Range(data, first), mode="r")
        return parquet.ParquetFile(source, metadata=footer, pre_buffer=False).read_row_group(int(at.group[number]), use_threads=False)

    def table(self) -> pa.Table:
        """All rows, in storage order; for splits that fit into memory."""
        return pa.concat_tables(self.part(0, 1)).combine_chunks()

    def part(self, rank: int, world_size: int, threads: int = 4) -> Iterator[pa.Table]:
        """Rows [N·rank//world_size, N·(rank+1)//world_size) in storage order, a row group at a time, a few read ahead; one table at least."""
        mine, ends = share(self.total, rank, world_size), np.cumsum(self.index.rows)
        numbers = [i for i, end in enumerate(ends.tolist()) if end > mine.start and end - int(self.index.rows[i]) < mine.stop]
        if not numbers:
            yield self.schema.empty_table()
        with ThreadPoolExecutor(threads, "part") as pool:
            waiting = deque(pool.submit(self.fetch, i) for i in numbers[:threads])
            for turn, i in enumerate(numbers):
                table = waiting.popleft().result()
                if turn + threads < len(numbers):
                    waiting.append(pool.submit(self.fetch, numbers[turn + threads]))
                begin = int(ends[i]) - table.num_rows
                yield table.slice(max(0, mine.start - begin), min(table.num_rows, mine.stop - begin) - max(0, mine.start - begin))

    def _metadata(self, number: int) -> Any:
        at = self.index
        return self._footer(int(at.file[number]), int(at.tail[number]), int(at.tail_length[number]), int(at.tail_checksum[number]))

    def _read_footer(self, file: int, first: int, length: int, checksum: int) -> Any:
        data = self._bytes(self.index.files[file], first, length, checksum)
        return parquet.read_metadata(pa.BufferReader(b"PAR1" + bytes(data)))

    def _bytes(self, path: str, first: int, length: int, checksum: int) -> memoryview:
        def fetch() -> memoryview:
            return self.store.get(path, first, length, _matches(checksum))

        if self.cache is None:
            return fetch()
        return self.cache.get(f"{self.store.name(path)} {first} {length} {checksum:x}", fetch, _matches(checksum))


def _matches(checksum: int) -> Any:
    def check(data: memoryview) -> None:
        if xxhash.xxh3_64_intdigest(data) != checksum:
            raise Damaged("its bytes are not those that were prepared: it was changed or damaged; prepare the data again")

    return check


class _Range:
    """A file of which only one range of bytes is here, as pyarrow wants to read it."""

    closed = False

    def __init__(self, data: memoryview, first: int) -> None:
        self._data, self._first, self._at = data, first, 0

    def seek(self, offset: int, whence: int = 0) -> int:
        """To an absolute or relative place; there is no end to seek from."""
        self._at = offset + (self._at if whence == 1 else 1 << 60 if whence == 2 else 0)
        return self._at

    def tell(self) -> int:
        """The place in the whole file."""
        return self._at

    def read(self, size: int = -1) -> memoryview:
        """From the range; asking for anything outside it is a bug."""
        start = self._at - self._first
        if start < 0 or size < 0 or start + size > len(self._data):
            raise ValueError(f"[{self._at}, +{size}) is outside the range at {self._first}, {len(self._data)} bytes long")
        self._at += size
        return self._data[start : start + size]

    def close(self) -> None:
        """Nothing to close."""

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True
