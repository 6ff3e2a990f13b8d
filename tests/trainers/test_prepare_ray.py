"""Preparing a source that is not small: on Ray Data, killed in the middle, and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import psutil
import pytest
import tiny
import yaml

from trainers.data.prepare import SMALL_BYTES, prepare
from trainers.joblint import load_job
from trainers.model_source import locate

pytestmark = pytest.mark.cluster

DEADLINE_S = 120


def wait(condition: object, process: subprocess.Popen[str]) -> None:
    """Until a condition holds, while the process lives."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():  # type: ignore[operator]
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_preparation_goes_on_where_it_was(tmp_path: Path) -> None:
    draw = Random(0)
    path = tmp_path / "rows.jsonl"
    with path.open("w") as lines:
        while lines.tell() <= SMALL_BYTES:
            label = draw.choice("abc")
            lines.write(json.dumps({"text": f"{label} {draw.randbytes(1500).hex()}", "label": label}) + "\n")
    job_file = tmp_path / "job.yaml"
    job_file.write_text(yaml.safe_dump({"task": "text-classification", "model": str(tiny.bert(tmp_path / "model")), "data": {"train": str(path)}}))
    command = [sys.executable, "-m", "launcher.cli.main", "prepare", str(job_file), "--storage", str(tmp_path / "storage")]

    def done(pattern: str) -> list[Path]:
        return sorted((tmp_path / "storage").rglob(pattern))

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        wait(lambda: done("scan/*.json"), process)
        started = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
    assert not done("manifest.json")
    scanned = {marker: marker.stat().st_mtime_ns for marker in done("scan/*.json")}

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        wait(lambda: done("verdicts"), process)  # scanning is over
        assert {marker: marker.stat().st_mtime_ns for marker in scanned} == scanned
        said, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, said
    _, alive = psutil.wait_procs(started, timeout=60)
    assert started and not alive, "Ray went with the one that was killed"
    (manifest,) = done("manifest.json")
    job, _ = load_job(job_file)
    alone = prepare(job, locate(job.model), tmp_path / "other", lambda text: None)
    assert json.loads(manifest.read_text()) == alone.manifest and not done("work-*")
