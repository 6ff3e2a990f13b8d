"""Streaming from shards: whoever reads, and from wherever, the global batches are those of the order."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.data import shards
from trainers.data.cache import Cache
from trainers.data.order import Order
from trainers.data.shards import Index, Shards
from trainers.data.store import StorageError, Store
from trainers.data.stream import Stream, accumulation, in_batches, lengths, micro_batches
from trainers.distributed import Group

pytestmark = pytest.mark.unit


class Threads:
    """The collectives of `Group` between threads of this process."""

    def __init__(self, world_size: int) -> None:
        self.world_size, self.device = world_size, torch.device("cpu")
        self._barrier, self._given = threading.Barrier(world_size), [None] * world_size

    def of(self, rank: int) -> Any:
        """The group as one rank sees it."""
        outer = self

        class Rank(Group):
            def _all(self, value: Any) -> list[Any]:
                outer._given[self.rank] = value
                outer._barrier.wait()
                found = list(outer._given)
                outer._barrier.wait()
                return found

            def sum(self, *values: float) -> list[float]:
                return np.sum(self._all(values), axis=0).tolist()

            def exchange(self, parts: list[bytes]) -> list[bytes]:
                return [given[self.rank] for given in self._all(parts)]

        return Rank(rank, self.world_size, self.device)


def write(folder: Path, rows: int, group_bytes: int = 400, seed: int = 0) -> Shards:
    """A split of rows of one to nine tokens, the first of which is the row's number."""
    sizes = np.random.default_rng(seed).integers(1, 10, rows)
    table = pa.table({"input_ids": pa.array([np.full(n, i, np.int32) for i, n in enumerate(sizes)], pa.list_(pa.int32())), "label": pa.array(range(rows))})
    before, shards.GROUP_BYTES = shards.GROUP_BYTES, group_bytes
    try:
        parquet.write_table(shards.write(folder, "train", table), folder / shards.INDEX)
    finally:
        shards.GROUP_BYTES = before
    store = Store(str(folder), budget_s=0.5)
    return Shards(store, Index.read(store, "train"))


def consume(found: Shards, order: Order, world: int, positions: range) -> list[list[list[int]]]:
    """Rows by position and rank, read by `world` threads."""
    group = Threads(world)

    def run(rank: int) -> list[list[int]]:
        stream = Stream(Shards(Store(found.store.url), found.index, found.cache), order, group.of(rank), positions.stop)
        try:
            read = []
            for position in positions:
                table = stream.batch(position)
                assert all(row == [number] * len(row) for row, number in zip(table["input_ids"].to_pylist(), table["label"].to_pylist(), strict=True))
                assert sorted(lengths(table), reverse=True) == lengths(table).tolist()
                read.append(table["label"].to_pylist())
            return read
        finally:
            stream.close()

    with ThreadPoolExecutor(world) as pool:
        by_rank = list(pool.map(run, range(world)))
    return [[rows[i] for rows in by_rank] for i in range(len(positions))]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Shards]:
    return {rows: write(tmp_path_factory.mktemp(f"rows-{rows}"), rows) for rows in (1, 3, 7, 60, 997)}


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([1, 3, 7, 60, 997]), st.sampled_from([1, 4, 30, 128]), st.sampled_from([1, 2, 3, 8]), st.sampled_from([1, 2000, 10**9]), st.integers(0, 2)
)
def test_every_global_batch_is_the_orders_on_any_number_of_workers(written: Any, rows: int, batch: int, world: int, window: int, start: int) -> None:
    found = written[rows]
    order = Order(found.index.rows, batch, 7, float(found.index.memory.mean()), window)
    first = start * order.batches // 2
    read = consume(found, order, world, range(first, min(first + 30, 2 * order.batches + 1)))
    for position, hands in enumerate(read, first):
        assert sorted(row for hand in hands for row in hand) == sorted(order.batch(position).tolist())
        assert max(map(len, hands)) - min(map(len, hands)) <= 1


def test_an_epoch_goes_on_with_other_numbers_of_workers_where_it_stopped(written: Any) -> None:
    order = Order(written[997].index.rows, 30, 1, float(written[997].index.memory.mean()), 2000)
    assert order.lanes > 3 and order.batches == 34
    seen = []
    for world, part in ((1, range(7)), (3, range(7, 20)), (8, range(20, 21)), (2, range(21, 34))):
        seen += [row for hands in consume(written[997], order, world, part) for hand in hands for row in hand]
    assert sorted(seen) == list(range(997))


def test_row_groups_are_fetched_once_by_all_readers_together(written: Any) -> None:
    found = written[997]
    order = Order(found.index.rows, 5, 1, float(found.index.memory.mean()), 10**9)
    fetched: list[int] = []
    original = Shards.fetch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shards, "fetch", lambda self, number: (fetched.append(number), original(self, number))[1])
        consume(found, order, 3, range(order.batches))
    assert set(fetched) == set(range(len(found.index))) and len(fetched) <= 1.1 * len(found.index) + order.lanes


def test_a_cached_epoch_needs_the_bucket_no_more(tmp_path: Path) -> None:
    found = write(tmp_path / "set", 200)
    cache = Cache(tmp_path / "cache", 1e6)
    order = Order(found.index.rows, 16, 1)
    first = consume(Shards(found.store, found.index, cache), order, 1, range(order.batches))
    for file in found.index.files:
        (tmp_path / "set" / file).unlink()
    stream = Stream(Shards(Store(found.store.url), found.index, cache), order, Threads(1).of(0), order.batches)
    assert [[stream.batch(i)["label"].to_pylist()] for i in range(order.batches)] == first
    stream.close()


def test_the_parts_of_a_held_out_split_are_all_of_it(written: Any) -> None:
    for rows, found in written.items():
        for world in (1, 2, 5):
            calls = -(-rows // (world * 4))
            parts = [list(in_batches(found.part(rank, world), 4, calls)) for rank in range(world)]
            assert {len(part) for part in parts} == {calls}, "all workers make the same number of calls"
            assert all(len(batch["label"]) <= 4 for part in parts for batch in part)
            assert sorted(label for part in parts for batch in part for label in batch["label"]) == list(range(rows))


@given(st.integers(1, 50), st.integers(1, 9), st.integers(1, 9))
def test_all_workers_make_the_same_number_of_micro_batches(batch: int, world: int, micro: int) -> None:
    count = accumulation(batch, world, micro)
    assert (count - 1) * micro < -(-batch // world) <= count * micro
    table = pa.table({"label": pa.array(range(batch // world))})
    made = list(micro_batches(table, micro, count))
    assert len(made) == count and [label for part in made for label in part["label"]] == list(range(batch // world))


def test_row_groups_have_the_size_they_should() -> None:
    table = pa.table({"input_ids": pa.array([np.zeros(500, np.int32)] * 10_000, pa.list_(pa.int32()))})
    cuts = shards.group_cuts(table)
    sizes = [table.slice(a, b - a).nbytes for a, b in itertools.pairwise(cuts)]
    assert cuts[0] == 0 and cuts[-1] == 10_000 and all(abs(size / shards.GROUP_BYTES - 1) < 0.05 for size in sizes)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "other"])
def test_what_is_not_what_was_prepared_is_never_read(tmp_path: Path, damage: str) -> None:
    found = write(tmp_path, 200)
    file = tmp_path / found.index.files[0]
    data = bytearray(file.read_bytes())
    last = len(found.index) - 1
    if damage == "flip":
        data[int(found.index.offset[last]) + 5] ^= 1
        file.write_bytes(data)
    elif damage == "cut":
        file.write_bytes(data[: int(found.index.offset[last]) + 5])
    elif damage == "gone":
        file.unlink()
    else:
        write(tmp_path, 200, seed=1)
    with pytest.raises(StorageError, match=r"train/00000\.parquet") as raised:
        found.fetch(last)
    assert "prepare the data again" in str(raised.value) or damage == "cut"
