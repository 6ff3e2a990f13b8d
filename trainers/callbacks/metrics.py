"""metrics.jsonl: one line a step, an evaluation, a stage. The driver's progress display reads it as it grows.

The file is opened for appending and flushed after each line: a crash loses no step that was taken.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from trainers.callbacks import Callback


class Metrics(Callback):
    """Writes the records to `path`."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def stage(self, text: str) -> None:
        """A line that says what the run is doing now."""
        self._write({"kind": "stage", "text": text, "time": time.time()})

    def start(self, facts: dict[str, Any]) -> None:
        self._write({"kind": "start", "time": time.time(), **facts})

    def step(self, record: dict[str, Any]) -> None:
        self._write(record)

    def evaluation(self, record: dict[str, Any]) -> None:
        self._write(record)

    def close(self) -> None:
        self._file.close()

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
