"""The command line: fast answers, one line for each mistake, and what the small verbs print."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from launcher.cli import main as cli
from trainers.runfolder import RunFolder

pytestmark = pytest.mark.unit

JOB = """\
task: text-classification
model: ./model
data:
  train: rows.csv
"""
HEAVY = ("torch", "ray", "transformers", "deepspeed", "numpy", "pyarrow", "wandb", "rich")


class Answer(NamedTuple):
    code: int
    out: str
    err: str


Muster = Callable[..., Answer]


@pytest.fixture
def muster(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Muster:
    """Runs `muster` in this process, in a folder with a job that is right."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MUSTER_STORAGE", raising=False)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "rows.csv").write_text("text,label\nhello,a\nworld,b\n")
    (tmp_path / "job.yaml").write_text(JOB)

    def run(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["muster", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert isinstance(left.value.code, int)
        return Answer(left.value.code, *capsys.readouterr())

    return run


def probe(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "launcher.cli.main", *arguments], capture_output=True, text=True, cwd=folder, check=False)


def cpu_of_children() -> float:
    """Seconds of CPU that finished child processes took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["check", "typo.yaml"], 2)])
def test_answers_in_half_a_second(tmp_path: Path, arguments: list[str], code: int) -> None:
    (tmp_path / "typo.yaml").write_text(JOB + "trian: {}\n")
    walls, cpus = [], []
    for _ in range(3):
        wall, cpu = time.perf_counter(), cpu_of_children()
        answer = probe(tmp_path, *arguments)
        walls.append(time.perf_counter() - wall)
        cpus.append(cpu_of_children() - cpu)
        assert answer.returncode == code, answer.stderr
    busy = os.getloadavg()[0] > 0.75 * (os.cpu_count() or 1)  # then the wall clock measures the neighbours
    assert min(cpus if busy else walls) < 0.5, (walls, cpus)


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["check", "typo.yaml"], ["runs"], ["schema", "job"]])
def test_nothing_heavy_is_imported(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "typo.yaml").write_text(JOB + "trian: {}\n")
    code = (
        f"import sys; sys.argv = ['muster', *{arguments}]\n"
        "from launcher.cli.main import main\n"
        "try: main()\n"
        f"except SystemExit: print('heavy', [m for m in {HEAVY} if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert answer.stdout.splitlines()[-1] == "heavy []", answer.stderr


def test_check_prints_the_resolved_job(muster: Muster, tmp_path: Path) -> None:
    answer = muster("check", "job.yaml", "--set", "train.optimizer.lr=1e-4")
    assert (answer.code, answer.err) == (0, "")
    resolved = yaml.safe_load(answer.out)
    assert resolved["train"]["optimizer"]["lr"] == 1e-4 and resolved["data"]["train"] == str(tmp_path / "rows.csv")
    assert json.loads(muster("check", "job.yaml", "--set", "train.optimizer.lr=1e-4", "--json").out) == resolved
    (tmp_path / "again.yaml").write_text(answer.out)
    assert muster("check", "again.yaml") == answer
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.yaml", "job.yaml", "model", "rows.csv"], "nothing was created"


def bad(old: str, new: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / "job.yaml").write_text(JOB.replace(old, new))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (bad("data:", "trian: {}\ndata:"), "job.yaml:3: trian: is not a known key; did you mean train?"),
        (bad("data:", "train: {epochs: many}\ndata:"), "job.yaml:3: train.epochs: 'many' is not right; it must be a number"),
        (bad("data:", "data: ["), "job.yaml:5: is not valid YAML: expected ',' or ']', but got '<stream end>'"),
        (bad("data:", "seed: 1\nseed: 2\ndata:"), "job.yaml:4: seed: is written twice (first on line 3); keep one"),
        (bad("text-classification", "text-clasification"), "job.yaml:1: task: 'text-clasification' is not a task; did you mean text-classification?"),
        (bad("model: ./model\n", ""), "job.yaml:1: model: is missing; it has no default"),
        (
            bad("data:", "train: {micro_batch_size: 5}\ndata:"),
            "job.yaml:3: train.micro_batch_size: 5 rows × 1 workers = 5 does not divide global_batch_size 32; "
            "take global_batch_size 30, or micro_batch_size: auto",
        ),
        (
            bad("./model", "./modell"),
            "job.yaml:2: model: '{}/modell': there is no folder {}/modell; give a folder, a .gguf file, package:NAME/PATH or a hub id such as org/name",
        ),
        (bad("./model", "./model/x.gguf"), "job.yaml:2: model: '{}/model/x.gguf': there is no file {}/model/x.gguf"),
        (bad("./model", "."), "job.yaml:2: model: '{}': the folder {} has no config.json; give a Hugging Face model folder or a .gguf file"),
        (
            bad("./model", "package:no-such-package/model"),
            "job.yaml:2: model: 'package:no-such-package/model': no package 'no-such-package' is installed; pip install it, or give a path",
        ),
        (
            bad("rows.csv", "package:nope/rows.csv"),
            "job.yaml:4: data.train: 'package:nope/rows.csv': no package 'nope' is installed; pip install it, or give a path",
        ),
        (bad("rows.csv", "rowz.csv"), "job.yaml:4: data.train: '{}/rowz.csv': there is no such file"),
        (bad("rows.csv", "rows.csv\n  test: none.csv"), "job.yaml:5: data.test: '{}/none.csv': there is no such file"),
        (bad("rows.csv", "rows.csv\n  text: body"), "job.yaml:5: data.text: there is no column 'body'; the data has text, label"),
        (bad("rows.csv", "rows.csv\n  label: lable"), "job.yaml:5: data.label: there is no column 'lable'; the data has text, label; did you mean label?"),
        (
            lambda folder: (folder / "rows.csv").write_text("txt,label\na,b\n"),
            "job.yaml:3: data.text: there is no column 'text'; the data has txt, label; did you mean txt?",
        ),
        (
            lambda folder: (folder / "rows.csv").write_text("a,b\n1\n"),
            "job.yaml:4: data.train: {}/rows.csv:2: has 1 columns, not 2: 1",
        ),
        (lambda folder: (folder / "job.yaml").unlink(), "job.yaml: there is no such file"),
        (lambda folder: (folder / "job.yaml").write_text(""), "job.yaml: is empty"),
    ],
)
def test_each_mistake_is_one_line_and_exit_code_2(muster: Muster, tmp_path: Path, spoil: Callable[[Path], Any], message: str) -> None:
    spoil(tmp_path)
    assert muster("check", "job.yaml") == Answer(2, "", f"muster: {message.replace('{}', str(tmp_path))}\n")
    assert not (tmp_path / "muster-storage").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'? See: muster --help"),
        (["check", "job.yaml", "--sett", "a=1"], "No such option: --sett (Possible options: --set) See: muster check --help"),
        (["check"], "Missing argument 'JOB.yaml'. See: muster check --help"),
        (["schema", "cluster"], "Invalid value for 'job': 'cluster' is not one of 'job'. See: muster schema --help"),
        (["check", "job.yaml", "--set", "train.lr"], "--set train.lr: write --set KEY=VALUE, for example --set train.optimizer.lr=1e-4"),
        (["check", "job.yaml", "--set", "train.lr=1"], "--set train.lr=1: train.lr: is not a known key; did you mean train.optimizer.lr?"),
        (["check", "job.yaml", "--set", "data.train=x.csv"], "--set data.train=x.csv: data.train: '{}/x.csv': there is no such file"),
        (["export", "last", "out"], "there is no run 'last' in muster-storage; it holds no runs yet"),
    ],
)
def test_mistyped_commands_are_one_line(muster: Muster, tmp_path: Path, arguments: list[str], message: str) -> None:
    answer = muster(*arguments)
    assert (answer.code, answer.out) == (2, "") and answer.err.count("\n") == 1
    assert answer.err.startswith("muster: " + message.replace("{}", str(tmp_path)))


def test_a_defect_shows_its_traceback_and_ctrl_c_is_130(tmp_path: Path) -> None:
    for raised, code, shown in [
        ("ZeroDivisionError", 1, "Traceback"),
        ("KeyboardInterrupt", 130, ""),
        ("trainers.errors.RunError('a\\n b')", 1, "muster: a b\n"),
    ]:
        script = (
            "import sys, trainers.errors, launcher.cli.main as m\n"
            "import trainers.joblint\n"
            f"def boom(*_): raise {raised}\n"
            "trainers.joblint.load_job = boom\n"
            "sys.argv = ['muster', 'check', 'x']\n"
            "m.main()"
        )
        answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
        assert answer.returncode == code and answer.stderr.startswith(shown) and bool(answer.stderr) == bool(shown), answer.stderr


def test_help_and_schema(muster: Muster) -> None:
    listed = muster("--help").out
    assert muster().out == listed and all(verb in listed for verb in ("train", "check", "runs", "export", "schema"))
    assert muster("--version").out.startswith("muster ")
    assert json.loads(muster("schema", "job").out)["title"] == "job.yaml"


def test_runs_lists_what_there_is(muster: Muster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert muster("runs").out == "no runs in muster-storage yet\n"
    monkeypatch.setenv("MUSTER_STORAGE", str(tmp_path / "elsewhere"))
    job = {"task": "text-classification"}
    done, going, damaged = (RunFolder.create(tmp_path / "elsewhere", name, job) for name in ("done", "going", "damaged"))
    done.update(state="finished", started=time.time() - 7300)
    done.metrics.write_text('{"kind": "step", "step": 8, "total_steps": 8}\n{"kind": "evaluation", "step": 8}\n')
    (done.path / "report.json").write_text('{"test": {"loss": 1.0, "macro_f1": 0.91234}}')
    going.update(state="running", pid=os.getpid(), started=time.time() - 65)
    going.metrics.write_text('{"kind": "step", "step": 3, "total_steps": 8}\n{"kind": "st')
    (damaged.path / "run.json").write_text("{")
    (damaged.path / "job.yaml").write_text("[")
    answer = muster("runs")
    lines = [line.split() for line in answer.out.splitlines()]
    assert lines[0] == ["run", "task", "state", "step", "test", "age"]
    assert lines[1][:4] == [going.id, "text-classification", "running", "3/8"]
    assert lines[2][:6] == [done.id, "text-classification", "finished", "8/8", "macro_f1", "0.9123"] and lines[2][6:] == ["2", "h", "01", "m"]
    assert lines[3] == [damaged.id, "failed"]
    listed = json.loads(muster("runs", "--json").out)
    assert [run["run"] for run in listed] == [going.id, done.id, damaged.id]
    assert (listed[1]["metric"], listed[1]["value"], listed[0]["step"], listed[0]["total_steps"]) == ("macro_f1", 0.91234, 3, 8)


def test_export_copies_the_model(muster: Muster, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "store", "tickets", {})
    run.update(state="finished")
    run.model.mkdir()
    (run.model / "config.json").write_text("{}")
    answer = muster("export", "last", "out/model", "--storage", "store")
    assert answer == Answer(0, f"{run.id}: model copied to out/model\n", "")
    assert (tmp_path / "out" / "model" / "config.json").is_file()
    assert muster("export", "tickets", "out/model", "--storage", "store").err == "muster: out/model exists already; give a folder that does not\n"
