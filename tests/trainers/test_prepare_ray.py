"""Preparing a source that is not small: on Ray Data, killed in the middle, and gone on with."""

from __future__ import annotations

import json
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

from trainers import embedded
from trainers.data.prepare import SMALL_BYTES, prepare
from trainers.errors import UserError
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

    def begun() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    with begun() as process:
        wait(lambda: done("scan/*.json"), process)
        interrupted = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130 and "Traceback" not in said, said
    assert said.splitlines()[-1] == "muster: stopped; what was prepared so far is kept, and the same command goes on from there"
    assert interrupted and not psutil.wait_procs(interrupted, timeout=5)[1], "it took Ray with it"
    scanned = {marker: marker.stat().st_mtime_ns for marker in done("scan/*.json")}

    with begun() as process:
        wait(lambda: done("verdicts"), process)  # scanning is over
        started = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert scanned.items() <= {marker: marker.stat().st_mtime_ns for marker in done("scan/*.json")}.items() and not done("manifest.json")

    with begun() as process:
        said, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, said
    _, alive = psutil.wait_procs(started, timeout=60)
    assert started and not alive, "Ray went with the one that was killed"
    (manifest,) = done("manifest.json")
    job, _ = load_job(job_file)
    alone = prepare(job, locate(job.model), tmp_path / "other", lambda text: None)
    assert json.loads(manifest.read_text()) == alone.manifest and not done("work-*")


def test_what_is_wrong_in_a_part_is_told_as_it_is_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.data.prepare.SMALL_BYTES", 0)
    monkeypatch.setattr("trainers.data.source.PIECE_BYTES", 500)
    rows = [json.dumps({"text": f"number {i}", "label": "ab"[i % 2]}) for i in range(100)]
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows[:70], "{", *rows[70:]]))
    job_file = tmp_path / "job.yaml"
    data = {"train": "rows.jsonl", "split": {"validation": 0, "test": 0}}
    job_file.write_text(yaml.safe_dump({"task": "text-classification", "model": str(tiny.bert(tmp_path / "model")), "data": data}))
    job, _ = load_job(job_file)
    try:
        with pytest.raises(UserError, match=r"rows\.jsonl:71: is not JSON"):
            prepare(job, locate(job.model), tmp_path / "storage", lambda text: None, lambda: embedded.start(2))
        assert not list((tmp_path / "storage").rglob("work-*"))
        (tmp_path / "rows.jsonl").write_text("\n".join(rows))
        made = prepare(job, locate(job.model), tmp_path / "storage", lambda text: None, lambda: None)
    finally:
        embedded.stop()
    assert made.manifest == prepare(job, locate(job.model), tmp_path / "other", lambda text: None).manifest and made.rows["train"] == 100
