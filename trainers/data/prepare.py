"""From the user's rows to token rows, once: read, clean, split, tokenise, write Parquet and a manifest.

The prepared set lies in `<storage>/prepared/<hash of source and settings>`, so an unchanged source costs nothing the
second time and a changed one prepares anew. It is built beside and renamed whole: a killed preparation leaves nothing
that looks finished. Columns: `input_ids` and what the task adds (`trainers.data.columns`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from numpy.typing import NDArray

from trainers import tasks
from trainers.data import shards, source
from trainers.data.cache import Cache
from trainers.data.columns import pack
from trainers.data.facts import MISSING, UNREADABLE, Facts
from trainers.data.files import File, files
from trainers.data.order import Order
from trainers.data.rows import Example
from trainers.data.scan import Scan, check_schemas
from trainers.data.shards import Index, Shards
from trainers.data.split import REASONS, SPLITS, Verdicts, decide
from trainers.data.store import StorageError, Store, is_remote
from trainers.errors import UserError
from trainers.job import Job
from trainers.model_source import ModelSource
from trainers.runfolder import write_json

MANIFEST = "manifest.json"
DROPPED = "dropped.jsonl"
"""One object a row that cleaning left out (`Dropped`)."""
VERSION = 3
"""Raised when the same source and settings would give other rows."""

Say = Callable[[str], None]


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


class Prepared:
    """A prepared set: its folder and its manifest (`labels`, `rows` by split, `dropped` by reason, `hash`, …)."""

    def __init__(self, location: str | Path) -> None:
        self.location = str(location)
        self.manifest: dict[str, Any] = json.loads(bytes(self.store.whole(MANIFEST)))
        self.labels: list[str] = self.manifest["labels"]
        self.rows: dict[str, int] = self.manifest["rows"]

    @cached_property
    def store(self) -> Store:
        """Where its objects lie."""
        return Store(self.location)

    @property
    def path(self) -> Path:
        """Its folder, where it is on this machine."""
        return Path(self.location)

    def shards(self, split: str, cache: Cache | None = None) -> Shards:
        """The rows of one of `SPLITS`."""
        return Shards(self.store, Index.read(self.store, split), cache)

    def order(self, job: Job) -> Order:
        """The order of its training rows under a job."""
        index = self.shards("train").index
        return Order(index.rows, job.train.global_batch_size, job.seed, float(index.memory.mean()), job.data.shuffle_window * 2.0**20)


def prepare(job: Job, model: ModelSource, storage: Path, say: Say) -> Prepared:
    """The job's prepared set, made now if need be; `say` hears what is being done.

    Raises:
        UserError: missing files or columns, no rows, a label that training has never seen, texts longer than the model.
    """
    paths = {name: files(specs) for name in SPLITS if (specs := getattr(job.data, name)) is not None}
    target = f"{job.data.prepared or storage / 'prepared'}/{_address(job, model, paths)}"
    try:
        if not _is_there(target):
            _build(job, model, paths, target, say)
        return Prepared(target)
    except StorageError as error:
        raise UserError(str(error), key="data.prepared") from None


def _build(job: Job, model: ModelSource, paths: dict[str, list[File]], target: str, say: Say) -> None:
    say("reading data")
    found = {name: [piece for file in listed for piece in source.pieces(file)] for name, listed in paths.items()}
    pieces = [(SPLITS.index(name), piece) for name in SPLITS for piece in found.get(name, [])]
    columns = {name: dict.fromkeys(c for file in listed for c in source.beginning(file, job.data.on_bad_row).column_names) for name, listed in paths.items()}
    scan = Scan(job, {SPLITS.index(name): list(known) for name, known in columns.items()})
    scanned = [scan(split, piece) for split, piece in pieces]
    for name, listed in paths.items():
        if not any(len(part.facts) for (split, _), part in zip(pieces, scanned, strict=True) if split == SPLITS.index(name)):
            raise UserError(f"{listed[0]}{f' and {len(listed) - 1} more' if listed[1:] else ''}: there are no rows", key=f"data.{name}")
        check_schemas([(piece.file, part.schema) for (split, piece), part in zip(pieces, scanned, strict=True) if split == SPLITS.index(name)], name)
    facts = Facts.join([part.facts for part in scanned])
    rows = [len(part.facts) for part in scanned]
    origin = np.repeat(np.array([split for split, _ in pieces], np.uint8), rows)
    _check_rows(job, facts, origin, next((part.problem for part in scanned if part.problem), ""))
    shares = {name: 0.0 if name in paths else getattr(job.data.split, name) for name in ("validation", "test")}
    verdicts = decide(facts, origin, job.data.clean, **shares)
    labels = _check(facts, origin, verdicts, shares)

    say("tokenising")
    from trainers.model import load_config, load_tokenizer, longest

    tokenizer = load_tokenizer(model)
    bound = longest(load_config(model))
    if isinstance(job.data.max_length, int) and bound and job.data.max_length > bound:
        raise UserError(f"{job.data.max_length} tokens are more than the model can position; at most {bound}", key="data.max_length")
    max_length = job.data.max_length if isinstance(job.data.max_length, int) else min(512, bound or 512)
    task = tasks.get(job.task)
    encoder = task.Encoder(tokenizer, job.data, max_length, labels)
    kept: dict[str, list[Example]] = {name: [] for name in SPLITS}
    dropped: list[Dropped] = []
    before: Counter[str] = Counter()
    for (split, piece), own in zip(pieces, np.split(verdicts, np.cumsum(rows)[:-1]), strict=True):
        for example, verdict in zip(scan.examples(split, piece), own.tolist(), strict=True):
            before[piece.file.address] += 1
            if verdict < len(SPLITS):
                kept[SPLITS[verdict]].append(example)
            else:
                content = example.problem.message if example.problem else example.content
                dropped.append(Dropped(SPLITS[split], piece.file.address, before[piece.file.address], REASONS[verdict - len(SPLITS)], content))
    encoded = {name: encoder(examples) for name, examples in kept.items()}
    for name, columns_ in encoded.items():
        if kept[name] and not columns_["input_ids"]:
            raise UserError(f"none of the {len(kept[name])} {name} rows has anything to learn within {max_length} tokens", key="data.max_length")
    reasons = Counter(row.reason for row in dropped)
    manifest = {
        "version": VERSION,
        "task": job.task,
        "labels": labels,
        "max_length": max_length,
        "pad_token_id": tokenizer.pad_token_id or 0,
        "rows": {name: len(rows["input_ids"]) for name, rows in encoded.items()},
        "examples": {name: len(examples) for name, examples in kept.items()},
        "tokens": {name: sum(map(len, rows["input_ids"])) for name, rows in encoded.items()},
        "longest": {name: max(map(len, rows["input_ids"]), default=0) for name, rows in encoded.items()},
        "lengths": {name: _quantiles([len(row) for row in rows["input_ids"]]) for name, rows in encoded.items()},
        "label_counts": {name: np.bincount(rows["label"], minlength=len(labels)).tolist() for name, rows in encoded.items() if "label" in rows},
        "dropped": dict(reasons.most_common()),
        "cut": encoder.counts["cut"],
    }
    if unlearnable := encoder.counts.get("nothing to learn", 0):
        manifest["dropped"]["nothing to learn"] = unlearnable
    say("writing the prepared rows")
    _write(target, encoded, dropped, manifest)


def _check_rows(job: Job, facts: Facts, origin: NDArray[np.uint8], first: str) -> None:
    """Refuses more rows that cannot be read, or lack something, than the job allows."""
    bad, bound = int((facts.state == UNREADABLE).sum()), job.data.max_bad_rows
    if bad > bound * len(facts):
        raise UserError(f"{bad} of {len(facts)} rows cannot be read, more than the share {bound}; the first: {first}", key="data.max_bad_rows")
    lacking = np.flatnonzero(facts.state == MISSING)
    if job.data.clean.missing == "error" and len(lacking):
        split = origin[lacking[0]]
        number = int((origin[: lacking[0]] == split).sum()) + 1
        raise UserError(f"row {number} of the {SPLITS[split]} data has no text or label", key=f"data.{SPLITS[split]}")


def _check(facts: Facts, origin: NDArray[np.uint8], verdicts: Verdicts, shares: dict[str, float]) -> list[str]:
    """The labels, in the order of their numbers; refuses what cannot be trained on, or tested."""
    kept = {name: np.unique(facts.label[verdicts == i], return_counts=True) for i, name in enumerate(SPLITS)}
    if not len(kept["train"][0]):
        raise UserError(f"of {len(facts)} rows none is left to train on after cleaning and splitting", key="data.train")
    learnt = kept["train"][0]
    labels = sorted((facts.labels[i] for i in learnt if i >= 0), key=_natural)
    if len(labels) == 1:
        raise UserError(f"every row has the label {labels[0]!r}; there is nothing to tell apart", key="data.label")
    for i, name in enumerate(SPLITS[1:], 1):
        given = int((origin == i).sum())
        if given and not len(kept[name][0]):
            raise UserError(f"of {given} rows none is left after cleaning", key=f"data.{name}")
        if shares[name] and not len(kept[name][0]):
            count = int(kept["train"][1].sum())
            raise UserError(f"{shares[name]} of {count} rows is none; give data.{name}, more rows, or 0 to do without", key=f"data.split.{name}")
        unseen = ~np.isin(kept[name][0], learnt)
        if unseen.any():
            label, count = facts.labels[kept[name][0][unseen][0]], int(kept[name][1][unseen].sum())
            raise UserError(f"the label {label!r} never occurs in training ({count} rows with {unseen.sum()} such labels)", key=f"data.{name}")
    return labels


def _is_there(target: str) -> bool:
    return Store(target).has(MANIFEST) if is_remote(target) else (Path(target) / MANIFEST).is_file()


def _write(target: str, columns: dict[str, dict[str, list[Any]]], dropped: list[Dropped], manifest: dict[str, Any]) -> None:
    here = Path(tempfile.mkdtemp(prefix="muster-")) / "set" if is_remote(target) else Path(target)
    partial = here.with_name(f".{here.name}.{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        digest = hashlib.blake2b(digest_size=16)
        parts = []
        for name, rows in columns.items():
            table = _mixed(pack(rows, ("input_ids", "supervised", "documents")))
            for column in table.column_names:
                for chunk in table.column(column).chunks:
                    for buffer in chunk.buffers():
                        digest.update(memoryview(buffer) if buffer else b"")
            parts.append(shards.write(partial, name, table))
        parquet.write_table(pa.concat_tables(parts), partial / shards.INDEX, compression="zstd")
        with (partial / DROPPED).open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(row._asdict(), ensure_ascii=False) + "\n" for row in dropped)
        write_json(partial / MANIFEST, {**manifest, "hash": digest.hexdigest()})
        if is_remote(target):
            _upload(partial, Store(target))
        elif not here.exists():
            partial.rename(here)
    except OSError as error:
        raise UserError(f"cannot write to {here.parent}: {error.strerror}; choose another folder", where="--storage") from None
    finally:
        shutil.rmtree(here.parent if is_remote(target) else partial, ignore_errors=True)


def _upload(folder: Path, store: Store) -> None:
    """Puts a set into a bucket, its manifest last: without one there is no set."""
    objects = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: store.put(name, folder / name), objects))
    store.put(MANIFEST, folder / MANIFEST)


def _mixed(table: pa.Table) -> pa.Table:
    """The rows in an order of no meaning, the same every time: sorted sources are mixed before the first epoch is."""
    return table.take(pa.array(np.random.Generator(np.random.Philox(key=VERSION)).permutation(table.num_rows))).combine_chunks()


def _address(job: Job, model: ModelSource, paths: dict[str, list[File]]) -> str:
    """A hash of everything that decides the rows: files (size and time), data settings, task, tokenizer."""
    facts = {
        "version": VERSION,
        "task": job.task,
        "data": job.data.model_dump(mode="json", exclude={"shuffle_window", "prepared", "cache"}),
        "files": [(name, f.address, f.size, f.stamp) for name, found in paths.items() for f in found],
        "model": (model.path, model.gguf_file, model.signature()),
    }
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()


def _quantiles(lengths: list[int]) -> dict[str, int]:
    """Token counts that 5%, 50% and 95% of the rows do not exceed."""
    return {f"p{q}": int(np.percentile(lengths, q, method="higher")) for q in (5, 50, 95)} if lengths else {}


def _natural(label: str) -> tuple[int, int, str]:
    """Whole numbers in order of size, then everything else in order of spelling."""
    return (0, int(label), label) if label.lstrip("-").isdecimal() and label.isascii() else (1, 0, label)
