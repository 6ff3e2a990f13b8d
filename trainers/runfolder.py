"""One run, one folder in storage: everything that a later command needs is in it.

    <storage>/runs/<name>-<id>/
        job.yaml        the job, resolved: defaults filled in, paths absolute
        run.json        state, versions, hashes of code and data, seed, machine, times
        metrics.jsonl   one line a step or an evaluation, as it happens
        logs/           what each worker printed; framework traces go here
        model/          the trained model as a Hugging Face folder
        report.json     test metrics next to the baselines
        stop            appears when somebody asks the run to stop

run.json and report.json are replaced whole (written beside, then renamed), so a reader never sees half of one.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainers import yamlfile
from trainers.errors import UserError

STATES = ("starting", "running", "finished", "stopped", "failed")


class RunFolder:
    """The folder of one run, at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = path.name
        self.metrics = path / "metrics.jsonl"
        self.logs = path / "logs"
        self.model = path / "model"
        self.stop_request = path / "stop"

    @classmethod
    def create(cls, storage: Path, name: str, job: dict[str, Any]) -> RunFolder:
        """Makes `<storage>/runs/<name>-<id>` with job.yaml and a first run.json.

        Raises:
            UserError: the storage cannot be written.
        """
        folder = cls(storage / "runs" / f"{name}-{secrets.token_hex(3)}")
        try:
            folder.logs.mkdir(parents=True)
            (folder.path / "job.yaml").write_text(yamlfile.dump(job), encoding="utf-8")
            folder.update(state="starting", run=folder.id, name=name, started=time.time(), pid=os.getpid(), host=os.uname().nodename)
        except OSError as error:
            raise UserError(f"cannot write to {storage}: {error.strerror}; choose another folder", where="--storage") from None
        return folder

    def update(self, **facts: Any) -> None:
        """Merges facts into run.json."""
        write_json(self.path / "run.json", {**self.facts(), **facts})

    def facts(self) -> dict[str, Any]:
        """run.json, or nothing if there is none yet."""
        return read_json(self.path / "run.json")

    def report(self) -> dict[str, Any]:
        """report.json, or nothing if the run was never tested."""
        return read_json(self.path / "report.json")

    def state(self) -> str:
        """One of `STATES`; a run whose driver is gone without a word has `failed`."""
        facts = self.facts()
        state = str(facts.get("state", "failed"))
        if state in ("starting", "running") and not _alive(facts):
            return "failed"
        return state

    def records(self, start: int = 0) -> tuple[list[dict[str, Any]], int]:
        """The complete lines of metrics.jsonl from byte `start` on, and the byte after the last of them.

        A line that is no object is passed over: `start` may lie inside one, or a machine may have died while writing it.
        """
        try:
            with self.metrics.open("rb") as lines:
                lines.seek(start)
                text = lines.read()
        except FileNotFoundError:
            return [], start
        text = text[: text.rfind(b"\n") + 1]
        return [record for line in text.splitlines() if (record := _json_object(line))], start + len(text)

    def last_step(self) -> dict[str, Any]:
        """The newest step in metrics.jsonl, or nothing; reads only the end of the file."""
        try:
            records, _ = self.records(max(0, self.metrics.stat().st_size - 16_384))
        except FileNotFoundError:
            return {}
        return next((record for record in reversed(records) if record.get("kind") == "step"), {})


def runs(storage: Path) -> Iterator[RunFolder]:
    """Every run in the storage, newest first."""
    found = [RunFolder(path.parent) for path in (storage / "runs").glob("*/run.json")]
    yield from sorted(found, key=lambda run: run.facts().get("started", 0.0), reverse=True)


def find(storage: Path, name: str) -> RunFolder:
    """The run called `name`: its whole id, an unambiguous beginning of it, its folder's path, or `last`.

    Raises:
        UserError: no such run, or several.
    """
    everything = list(runs(storage))
    if name == "last" and everything:
        return everything[0]
    if (Path(name) / "run.json").is_file():
        return RunFolder(Path(name).resolve())
    exact = [run for run in everything if run.id == name]
    matches = exact or [run for run in everything if run.id.startswith(name)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(f"several runs begin with {name!r}: {', '.join(run.id for run in matches)}")
    known = ", ".join(run.id for run in everything[:3])
    raise UserError(f"there is no run {name!r} in {storage}" + (f"; the newest are {known}" if known else "; it holds no runs yet"))


def export(run: RunFolder, target: Path) -> None:
    """Copies the run's model to a new or empty folder, whole or not at all.

    Raises:
        UserError: the run has no model, or the target exists and is not empty.
    """
    if not run.model.is_dir():
        raise UserError(f"run {run.id} has no model: its state is {run.state()}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists already; give a folder that does not")
    partial = target.parent / f".{target.name}.partial-{os.getpid()}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(run.model, partial)
        partial.replace(target)
    except OSError as error:
        reasons = [reason for _, _, reason in error.args[0]] if isinstance(error, shutil.Error) else [error.strerror or error]
        raise UserError(f"cannot write to {target}: {reasons[-1]}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes beside and renames, so that a reader sees the old file or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")
    partial.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where there is no file or a damaged one: one bad run must not hide the others."""
    try:
        return _json_object(path.read_bytes())
    except OSError:
        return {}


def _json_object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _alive(facts: dict[str, Any]) -> bool:
    """Whether the driver that wrote `facts` still runs; on another machine we cannot tell and assume that it does."""
    if facts.get("host") not in (None, os.uname().nodename):
        return True
    pid = facts.get("pid")
    if not isinstance(pid, int) or pid <= 0:  # os.kill takes 0 and negative numbers for groups of processes
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
