"""Run folders: states, finding one by name, exporting a model whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainers import runfolder, yamlfile
from trainers.errors import UserError
from trainers.runfolder import RunFolder

pytestmark = pytest.mark.unit
JOB = {"name": "tickets", "task": "text-classification", "model": "1e-4"}


def make(storage: Path, name: str = "tickets", **facts: object) -> RunFolder:
    run = RunFolder.create(storage, name, JOB)
    run.update(**facts)
    return run


def dead_pid() -> int:
    """The pid of a process that has ended and been waited for."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_new_run_keeps_its_job_and_says_it_starts(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "tickets", JOB)
    assert run.path.parent == tmp_path / "runs" and run.id.startswith("tickets-")
    assert yamlfile.read(run.path / "job.yaml").values == JOB
    assert run.facts()["state"] == "starting" and run.logs.is_dir()
    run.update(step=3)
    assert run.facts()["step"] == 3 and run.facts()["name"] == "tickets"
    assert not [path for path in run.path.iterdir() if path.name.startswith(".")], "nothing half-written stays"


def test_storage_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^--storage: cannot write to .*/file: Not a directory; choose another folder$"):
        RunFolder.create(tmp_path / "file", "tickets", JOB)


@pytest.mark.parametrize("state", ["starting", "running"])
def test_state_tells_a_living_driver_from_a_dead_one(tmp_path: Path, state: str) -> None:
    host = os.uname().nodename
    assert make(tmp_path, state=state, pid=os.getpid(), host=host).state() == state
    assert make(tmp_path, state=state, pid=dead_pid(), host=host).state() == "failed"
    assert make(tmp_path, state=state, pid=1, host=host).state() == state, "somebody else's process lives too"
    assert make(tmp_path, state=state, pid=dead_pid(), host="elsewhere").state() == state, "another machine's we cannot see"
    assert make(tmp_path, state=state, pid=None, host=host).state() == "failed"
    assert make(tmp_path, state="finished", pid=dead_pid(), host=host).state() == "finished"


def test_find_by_id_beginning_folder_and_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new, other = make(tmp_path, started=1), make(tmp_path, started=3), make(tmp_path, "other", started=2)
    assert [run.id for run in runfolder.runs(tmp_path)] == [new.id, other.id, old.id]
    assert runfolder.find(tmp_path, "last").id == new.id
    assert runfolder.find(tmp_path, old.id).id == old.id
    assert runfolder.find(tmp_path, "oth").id == other.id
    monkeypatch.chdir(tmp_path / "runs")
    assert runfolder.find(Path("nowhere"), f"./{old.id}").path == old.path
    with pytest.raises(UserError, match=rf"^several runs begin with 'tick': {new.id}, {old.id}$"):
        runfolder.find(tmp_path, "tick")
    with pytest.raises(UserError, match=rf"^there is no run 'x' in .*; the newest are {new.id}, {other.id}, {old.id}$"):
        runfolder.find(tmp_path, "x")
    with pytest.raises(UserError, match=r"^there is no run 'last' in none; it holds no runs yet$"):
        runfolder.find(Path("none"), "last")


def test_a_whole_id_wins_over_a_longer_one(tmp_path: Path) -> None:
    run = make(tmp_path)
    longer = RunFolder(run.path.with_name(run.id + "0"))
    longer.path.mkdir()
    longer.update(state="finished")
    assert runfolder.find(tmp_path, run.id).id == run.id


def test_damaged_files_hide_nothing(tmp_path: Path) -> None:
    good, bad = make(tmp_path), make(tmp_path)
    (bad.path / "run.json").write_text('{"state": "fini')
    (bad.path / "report.json").write_text("[1]")
    assert {run.id for run in runfolder.runs(tmp_path)} == {good.id, bad.id}
    assert bad.state() == "failed" and bad.report() == {}


def test_records_are_read_line_by_line_as_they_grow(tmp_path: Path) -> None:
    run = make(tmp_path)
    assert run.records() == ([], 0) and run.last_step() == {}
    run.metrics.write_bytes(b'{"step": 1}\n{"step": 2')
    records, position = run.records()
    assert records == [{"step": 1}] and position == 12
    with run.metrics.open("ab") as lines:
        lines.write(b'}\n{"torn\n{"step": 3}\n')
    assert run.records(position)[0] == [{"step": 2}, {"step": 3}]
    assert run.records(3)[0] == [{"step": 2}, {"step": 3}], "from the middle of a line"
    with run.metrics.open("ab") as lines:
        lines.writelines(b'{"kind": "step", "step": %d, "text": "%s"}\n' % (i, b"x" * 50) for i in range(4, 1000))
    assert run.last_step()["step"] == 999


def test_export_copies_the_model_whole(tmp_path: Path) -> None:
    run = make(tmp_path, state="finished")
    (run.model / "sub").mkdir(parents=True)
    (run.model / "config.json").write_text("{}")
    (run.model / "sub" / "x").write_text("x")
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "new" / "deep", tmp_path / "empty"):
        runfolder.export(run, target)
        assert sorted(p.name for p in target.rglob("*")) == ["config.json", "sub", "x"]
        with pytest.raises(UserError, match=r"^.* exists already; give a folder that does not$"):
            runfolder.export(run, target)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="exists already"):
        runfolder.export(run, tmp_path / "file")
    with pytest.raises(UserError, match=r"^cannot write to .*/file/x: (Not a directory|File exists)$"):
        runfolder.export(run, tmp_path / "file" / "x")


def test_export_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    run = make(tmp_path, state="finished")
    run.model.mkdir()
    (run.model / "a").write_text("a")
    (run.model / "b").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"^cannot write to .*/target: .*No such file"):
        runfolder.export(run, tmp_path / "target")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


def test_a_run_without_a_model_says_its_state(tmp_path: Path) -> None:
    run = make(tmp_path, state="failed")
    with pytest.raises(UserError, match=rf"^run {run.id} has no model: its state is failed$"):
        runfolder.export(run, tmp_path / "target")
