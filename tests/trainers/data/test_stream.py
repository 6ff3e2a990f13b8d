"""Streaming from shards: whoever reads, and from wherever, the global batches are those of the order."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.data import shards
from trainers.data.cache import Cache
from trainers.data.columns import View, pack
from trainers.data.order import Order
from trainers.data.shards import Index, Shards
from trainers.data.store import StorageError, Store
from trainers.data.stream import Stream, accumulation, in_batches, micro_batches
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
    table = pack({"input_ids": [np.full(n, i) for i, n in enumerate(sizes)], "label": list(range(rows))}, ["input_ids"])
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
                batch = stream.batch(position)
                assert all(set(row.tolist()) == {number} for row, number in zip(batch["input_ids"], batch["label"], strict=True))
                sizes = [len(row) for row in batch["input_ids"]]
                assert sizes == sorted(sizes, reverse=True)
                read.append(batch["label"])
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
    assert [[stream.batch(i)["label"]] for i in range(order.batches)] == first
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
    made = list(micro_batches({"label": list(range(batch // world))}, micro, count))
    assert len(made) == count and [label for part in made for label in part["label"]] == list(range(batch // world))


@given(st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=5), max_size=20), st.integers(0, 30), st.integers(0, 30), st.sampled_from([1, 255, 2**16, 2**32]))
def test_columns_come_back_as_they_went(values: list[list[int]], a: int, b: int, bound: int) -> None:
    values = [[v % bound for v in row] for row in values]
    table = pack({"input_ids": values, "label": list(range(len(values)))}, ["input_ids"])
    part = table.slice(min(a, len(values)), b)
    expected = values[a : a + b]
    view = View.of(part)
    assert [row.tolist() for row in view.rows()["input_ids"]] == expected and view.lengths().tolist() == [len(row) for row in expected]
    backwards = view.take(slice(None, None, -1)).rows()
    assert [row.tolist() for row in backwards["input_ids"]] == expected[::-1] and backwards["label"] == list(range(len(values)))[a : a + b][::-1]
    order = np.random.default_rng(a).permutation(len(values) + len(expected))
    joined = View.join([View.of(table), view]).take(order)
    both = [*values, *expected]
    assert [row.tolist() for row in joined.rows()["input_ids"]] == [both[i] for i in order]
    fewer = joined.take(joined.table == 1).trimmed()
    assert sorted(row.tolist() for row in fewer.rows()["input_ids"]) == sorted(expected) and fewer.tables == (len(expected) > 0)


def test_row_groups_have_the_size_they_should() -> None:
    table = pack({"input_ids": [np.full(500, 30_000)] * 20_000, "label": [1] * 20_000}, ["input_ids"])
    cuts = shards.group_cuts(table)
    sizes = [table.slice(a, b - a).nbytes for a, b in itertools.pairwise(cuts)]
    assert cuts[0] == 0 and cuts[-1] == 20_000 and all(abs(size / shards.GROUP_BYTES - 1) < 0.05 for size in sizes)


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
