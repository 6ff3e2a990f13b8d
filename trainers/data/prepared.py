"""A prepared set: shards, their index, and a manifest, under an address that is the hash of source and settings."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from trainers.data.cache import Cache
from trainers.data.order import Order
from trainers.data.shards import Index, Shards
from trainers.data.store import Store, is_remote
from trainers.job import Job

MANIFEST = "manifest.json"
"""Written last: without it there is no set."""
DROPPED = "dropped.jsonl"
"""One object a row that cleaning left out (`trainers.data.encode.Dropped`)."""


class Prepared:
    """A prepared set: where it is and its manifest (`labels`, `rows` by split, `dropped` by reason, `hash`, …)."""

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
        """The rows of a split: `train`, `validation` or `test`."""
        return Shards(self.store, Index.read(self.store, split), cache)

    def order(self, job: Job) -> Order:
        """The order of its training rows under a job."""
        index = self.shards("train").index
        return Order(index.rows, job.train.global_batch_size, job.seed, float(index.memory.mean()), job.data.shuffle_window * 2.0**20)


def is_there(location: str) -> bool:
    """Whether there is a whole prepared set."""
    return Store(location).has(MANIFEST) if is_remote(location) else (Path(location) / MANIFEST).is_file()
