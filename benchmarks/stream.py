"""Claims `stream-…`: shuffled, resumable streaming of token rows from a real S3 server, against the same bytes fetched raw.

SeaweedFS (PyPI) on the loopback, behind a proxy process that delays each request's first byte as a distant bucket does.

- `stream-ceiling`: an epoch of shuffled batches at 50 ms, in MB/s of what was fetched, against raw parallel GETs of the same
  row groups and of the whole objects, whichever is faster (nothing decoded, nothing kept).
- `stream-latency`: the epoch at 50 ms against the epoch at 0 ms.
- `stream-first-batch`, `stream-resume`: seconds from opening the stream to its first batch, at the beginning and at three
  later positions, as a share of the 0.5 and 0.3 s allowed; the index is there.
- `stream-cpu`: CPU seconds of this process for a gigabyte fetched, as a share of the 2 s allowed.
- `…-short`: the same for rows of 16 to 512 tokens, as texts to classify have them; without it rows are packed, 1,848 to 2,048 tokens.
- `stream-wait`: the share of a real run's step time that its workers waited for data at 50 ms, as a share of the 1% allowed.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import common
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from common import ROOT, say

sys.path.insert(0, str(ROOT))

from tests.lab import s3
from trainers.data import shards
from trainers.data.columns import pack
from trainers.data.order import Order
from trainers.data.shards import Index, Shards
from trainers.data.store import Store
from trainers.data.stream import Stream
from trainers.distributed import Group

SHAPES = {"": (1848, 2048, 32), "-short": (16, 512, 256)}
"""Shortest and longest row in tokens, and rows of a global batch: packed rows, and texts to classify."""
WINDOW_BYTES = 64 * 2**20
THREADS = 16
ALONE = Group(0, 1, "cpu")  # type: ignore[arg-type]
URL = "s3://test/stream"


@contextlib.contextmanager
def distant(server: s3.Server, delay_ms: float) -> Iterator[dict[str, str]]:
    """A proxy in a process of its own; what AWS clients must have in their environment to go through it."""
    command = [sys.executable, str(ROOT / "tests" / "lab" / "s3.py"), str(server.port), str(delay_ms)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield server.environment(int(process.stdout.readline()))
        finally:
            process.kill()


def tokens(megabytes: int, shortest: int, longest: int) -> pa.Table:
    """Rows of tokens of a vocabulary of 32,000, as often as words are used (Zipf); `megabytes` in memory."""
    random = np.random.default_rng(0)
    count = megabytes * 2**20 // (shortest + longest)  # 2 bytes a token
    lengths = random.integers(shortest, longest + 1, count)
    weights = 1 / np.arange(1, 32_001)
    drawn = random.choice(32_000, int(lengths.sum()), p=weights / weights.sum()).astype(np.uint16)
    return pack({"input_ids": np.split(drawn, np.cumsum(lengths)[:-1]), "label": list(range(count))}, ["input_ids"])


def put_set(url: str, rows: pa.Table) -> None:
    """Writes the shards into the bucket."""
    with TemporaryDirectory() as folder:
        index = shards.write(Path(folder), "train", rows)
        parquet.write_table(index, Path(folder) / shards.INDEX)
        store = Store(url)
        for path in Path(folder).rglob("*.parquet"):
            store.put(str(path.relative_to(folder)), path)


class Opened:
    """The set as it is seen through one proxy."""

    def __init__(self, url: str, environment: dict[str, str], batch: int) -> None:
        os.environ.update(environment)
        self.store = Store(url)
        self.index = Index.read(self.store, "train")
        self.order = Order(self.index.rows, batch, 0, float(self.index.memory.mean()), WINDOW_BYTES)
        self.fetched = float(sum(self.index.length))

    def stream(self) -> Stream:
        """From the bucket, alone."""
        return Stream(Shards(self.store, self.index), self.order, ALONE, self.order.batches)


def epoch(opened: Opened) -> tuple[float, float]:
    """(MB/s, CPU seconds a GB) of an epoch of shuffled batches."""
    stream, began, cpu = opened.stream(), time.perf_counter(), time.process_time()
    rows = sum(len(stream.batch(position)["label"]) for position in range(opened.order.batches))
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    stream.close()
    assert rows == opened.order.total
    return opened.fetched / 1e6 / seconds, cpu / (opened.fetched / 1e9)


def first_batch(opened: Opened, position: int) -> float:
    """Seconds from opening the stream to the batch at `position`."""
    began = time.perf_counter()
    stream = opened.stream()
    stream.batch(position)
    seconds = time.perf_counter() - began
    stream.close()
    return seconds


def raw(opened: Opened, whole: bool) -> float:
    """MB/s of parallel GETs: of every row group, or of every object."""
    at, store = opened.index, opened.store
    ranges = [(at.files[int(f)], int(o), int(n)) for f, o, n in zip(at.file, at.offset, at.length, strict=True)]

    def get(item: tuple[str, int, int]) -> int:
        return len(store.whole(item[0]) if whole else store.get(*item))

    began = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        size = sum(pool.map(get, {path: (path, 0, 0) for path, _, _ in ranges}.values() if whole else ranges))
    return size / 1e6 / (time.perf_counter() - began)


def waiting(server: s3.Server, near: dict[str, str], far: dict[str, str]) -> float:
    """Share of the steps' time that a run's workers waited for rows of the bucket, after the first step."""
    job = common.classification(40)
    job["data"] |= {"prepared": f"{URL}-run"}
    os.environ.update(near)
    common.inputs(job, "stream-run")
    os.environ.update(far)
    steps = common.muster(job, "stream-run", 300).steps()[1:]
    return float(sum(step["data_s"] for step in steps) / sum(step["step_s"] for step in steps))


def measure(shape: str, near: dict[str, str], far: dict[str, str], megabytes: int, turns: int) -> tuple[list[dict[str, Any]], dict[str, list[Any]]]:
    """The claims about rows of one shape, and what was measured."""
    shortest, longest, batch = SHAPES[shape]
    os.environ.update(near)
    say(f"writing {megabytes} MB of rows into the bucket …")
    put_set(f"{URL}{shape}", tokens(megabytes, shortest, longest))
    here, there = Opened(f"{URL}{shape}", near, batch), Opened(f"{URL}{shape}", far, batch)
    size = here.fetched / len(here.index) / 1e6
    say(f"{len(here.index)} row groups of {size:.2f} MB; {here.order.lanes} lanes, {here.order.groups_a_block} row groups a block")
    sides: dict[str, Callable[[], Any]] = {
        "ranges at 50 ms": lambda: raw(there, False),
        "objects at 50 ms": lambda: raw(there, True),
        "stream at 50 ms": lambda: epoch(there),
        "stream at 0 ms": lambda: epoch(here),
        "first batch at 50 ms": lambda: first_batch(there, 0),
        **{f"resume at {share:.0%}": lambda share=share: first_batch(there, int(there.order.batches * share)) for share in (0.1, 0.5, 0.9)},
    }
    found: dict[str, list[Any]] = {name: [] for name in sides}
    for turn in range(turns):
        for name, side in sides.items():
            found[name].append(side())
            say(f"turn {turn + 1} of {turns}: {name}: {found[name][-1]}")
    speeds = {name: median(value[0] if isinstance(value, tuple) else value for value in values) for name, values in found.items()}
    cpu = median(value[1] for value in found["stream at 50 ms"])
    ceiling = max(speeds["ranges at 50 ms"], speeds["objects at 50 ms"])
    far_speed, near_speed, first = speeds["stream at 50 ms"], speeds["stream at 0 ms"], speeds["first batch at 50 ms"]
    resume = max(value for name, value in speeds.items() if name.startswith("resume"))
    conditions = f"rows of {shortest} to {longest} tokens; medians of {turns}; {megabytes} MB, SeaweedFS and proxy on this machine; {common.machine()}"
    claims = [
        common.claim(f"stream-ceiling{shape}", far_speed / ceiling, ">=", 0.7, f"{far_speed:.0f} against {ceiling:.0f} MB/s at 50 ms; {conditions}"),
        common.claim(f"stream-latency{shape}", far_speed / near_speed, ">=", 0.9, f"{far_speed:.0f} MB/s at 50 ms, {near_speed:.0f} at 0 ms; {conditions}"),
        common.claim(f"stream-first-batch{shape}", first / 0.5, "<=", 1.0, f"{first:.2f} s of 0.5 s allowed, at 50 ms; {conditions}"),
        common.claim(f"stream-resume{shape}", resume / 0.3, "<=", 1.0, f"{resume:.2f} s of 0.3 s allowed, the slowest of three positions; {conditions}"),
        common.claim(f"stream-cpu{shape}", cpu / 2.0, "<=", 1.0, f"{cpu:.2f} CPU s per GB fetched, of 2 allowed; {conditions}"),
    ]
    return claims, {f"{name}{shape}": values for name, values in found.items()}


def main() -> None:
    options = common.arguments(__doc__ or "")
    turns, megabytes = (1, 400) if options.quick else (5, 800)
    claims, measured = [], {}
    with TemporaryDirectory() as folder, s3.server(Path(folder) / "weed") as server, distant(server, 0) as near, distant(server, 50) as far:
        for shape in SHAPES:
            made, found = measure(shape, near, far, megabytes, turns)
            claims += made
            measured |= found
        share = waiting(server, near, far)
        about = f"{share:.2%} of the steps' time, of 1% allowed, at 50 ms; MiniLM, 2 workers; {common.machine()}"
        claims.append(common.claim("stream-wait", share / 0.01, "<=", 1.0, about))
    common.write(options.json, claims, measured)


if __name__ == "__main__":
    main()
