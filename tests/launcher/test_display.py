"""What `muster train` shows, for a script of events: plain lines, JSON lines, the live line and the summary."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from launcher.cli import display, text
from launcher.cli.display import JsonLines, Live, Plain, step_line
from trainers.runfolder import RunFolder

pytestmark = pytest.mark.unit
COMMAND = ["muster", "train", "my job.yaml"]


class Clock:
    """Time that the script moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Ended:
    state: str
    run: RunFolder
    report: dict[str, Any] = field(default_factory=dict)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "tickets", {})


def step(number: int, total: int = 100, step_s: float = 0.5) -> display.Event:
    return {
        "kind": "step",
        "step": number,
        "total_steps": total,
        "epoch": 0.1,
        "loss": 2 / number,
        "lr": 3e-5,
        "grad_norm": 0.9,
        "samples_per_s": 44.123,
        "supervised_tokens_per_s": 3000.4,
        "step_s": step_s,
    }


def script(clock: Clock, last: int = 100, step_s: float = 0.5) -> Iterator[display.Event]:
    """A run of 100 steps, half a second each."""
    yield {"kind": "stage", "text": "preparing data", "time": clock.now}
    clock.now += 3.2
    yield {"kind": "run", "run": "tickets-abc", "folder": "/s/runs/tickets-abc"}
    yield {"kind": "note", "text": "90 rows [to] train on"}
    yield {"kind": "stage", "text": "starting 2 workers", "time": clock.now}
    clock.now += 8
    for number in range(1, last + 1):
        clock.now += step_s
        yield step(number, step_s=step_s)
        if number == 50:
            yield {"kind": "evaluation", "split": "validation", "step": 50, "metrics": {"loss": 0.5, "accuracy": 0.875}}
    if last < 100:
        yield {"kind": "stopping"}
    yield {"kind": "stage", "text": "saving the model", "time": clock.now}
    yield {"kind": "end", "state": "finished"}


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Plain(clock) as screen:
        for event in script(clock):
            screen(event)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:7] == [
        "preparing data …",
        "run tickets-abc in /s/runs/tickets-abc",
        "90 rows [to] train on",
        "preparing data: 3.2 s",
        "starting 2 workers …",
        "starting 2 workers: 8.5 s",
        "step 1/100  loss 2.000  lr 3.0e-05  44.12 samples/s  3,000 supervised tok/s  ETA 50 s",
    ]
    steps = [line.split()[1] for line in lines if line.startswith("step") and "loss" in line and "validation" not in line]
    assert steps == ["1/100", *(f"{n}/100" for n in range(10, 101, 10))]
    assert "step 50  validation: loss 0.5000  accuracy 0.8750" in lines
    assert lines[-1] == "saving the model …"


def test_fast_steps_are_not_all_shown_and_slow_ones_are(capsys: pytest.CaptureFixture[str]) -> None:
    for step_s, expected in [(0.01, ["1/100", "100/100"]), (11.0, [f"{n}/100" for n in range(1, 101)])]:
        clock = Clock()
        screen = Plain(clock)
        for event in script(clock, step_s=step_s):
            screen(event)
        shown = [line.split()[1] for line in capsys.readouterr().out.splitlines() if " samples/s" in line]
        assert shown == expected


def test_the_last_step_before_a_stop_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    screen = Plain(clock)
    for event in script(clock, last=13):
        screen(event)
    lines = capsys.readouterr().out.splitlines()
    assert "stopping after this step and keeping the model; Ctrl-C again stops at once, without it" in lines
    assert lines[-2].startswith("step 13/100") and lines[-1] == "saving the model …"


def test_the_time_left_comes_from_the_median_of_recent_steps() -> None:
    screen = Plain(Clock())
    for number in range(1, 61):
        screen(step(number, step_s=100.0 if number < 20 or number % 10 == 0 else 2.0))
    assert step_line(screen.step, screen.step_times).endswith("ETA 1 m 20 s")
    screen(step(100))
    assert "ETA" not in step_line(screen.step, screen.step_times)


def test_json_lines(capsys: pytest.CaptureFixture[str], run: RunFolder) -> None:
    clock = Clock()
    with JsonLines() as screen:
        for event in script(clock, last=3):
            screen(event)
        screen({"kind": "step", "step": 4, "loss": float("nan")})
    screen.finish(Ended("finished", run, {"test": {"accuracy": 0.5, "f1": float("inf")}}), COMMAND)
    events = [json.loads(line, parse_constant=pytest.fail) for line in capsys.readouterr().out.splitlines()]
    assert [event["kind"] for event in events].count("end") == 1
    assert events[-2] == {"kind": "step", "step": 4, "loss": None}
    assert events[-1] == {
        "kind": "end",
        "state": "finished",
        "run": run.id,
        "folder": str(run.path),
        "report": {"test": {"accuracy": 0.5, "f1": None}},
        "model": None,
    }


def test_live_line_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    clock, terminal = Clock(), io.StringIO()
    screen = Live(clock, Console(file=terminal, force_terminal=True, width=200, _environ={}))
    seen = []
    with screen:
        for event in script(clock):
            screen(event)
            seen.append(screen.render().plain)
    assert "preparing data … 3.2 s" in seen
    assert "step 50/100  loss 0.0400  lr 3.0e-05  44.12 samples/s  3,000 supervised tok/s  ETA 25 s" in seen
    printed = terminal.getvalue()
    for line in ("preparing data: 3.2 s", "90 rows [to] train on", "step 50  validation: loss 0.5000", "step 100/100", "saving the model: 0.0 s"):
        assert line in printed
    assert screen.render().plain == "" and "\x1b[?25h" in printed[-40:], "the line is gone and the cursor is back"


def test_live_says_where_it_failed() -> None:
    from rich.console import Console

    clock, terminal = Clock(), io.StringIO()
    with pytest.raises(ZeroDivisionError), Live(clock, Console(file=terminal, force_terminal=True, width=80, _environ={})) as screen:
        screen({"kind": "stage", "text": "starting Ray", "time": clock.now})
        _ = 1 / 0
    assert "starting Ray …\n" in terminal.getvalue().replace("\r", "")


def test_summary_of_a_finished_run(capsys: pytest.CaptureFixture[str], run: RunFolder) -> None:
    run.model.mkdir()
    report = {
        "steps": 100,
        "train_s": 192.4,
        "best_step": 80,
        "test": {"loss": 0.31234, "accuracy": 0.931, "macro_f1": 0.9},
        "baselines": {"before": {"loss": 1.8, "accuracy": 0.161, "macro_f1": 0.1}, "majority": {"accuracy": 0.25, "macro_f1": 0.0667}},
        "wandb": {"mode": "offline", "id": "x1"},
    }
    Plain(Clock()).finish(Ended("finished", run, report), [*COMMAND, "--storage", "my store"])
    assert capsys.readouterr().out.splitlines() == [
        "",
        f"{run.id}: finished, 100 steps in 3 m 12 s; best at step 80, kept",
        "",
        "test metric  before fine-tuning  always the commonest label  fine-tuned",
        "loss                      1.800                           –      0.3123",
        "accuracy                 0.1610                      0.2500      0.9310",
        "macro_f1                 0.1000                      0.0667      0.9000",
        "",
        f"model   {run.model}",
        f"run     {run.path}",
        "wandb   offline x1",
        f"export  muster export {run.id} ./{run.id} --storage 'my store'",
    ]


def test_summary_without_a_report_still_says_what_there_is(capsys: pytest.CaptureFixture[str], run: RunFolder) -> None:
    Plain(Clock()).finish(Ended("finished", run), COMMAND)
    assert capsys.readouterr().out.splitlines() == ["", f"{run.id}: finished, ? steps", "model   none was kept", f"run     {run.path}"]


def test_summary_of_a_stopped_run_says_how_to_go_on(capsys: pytest.CaptureFixture[str], run: RunFolder) -> None:
    screen = Plain(Clock())
    screen.step = step(12)
    screen.finish(Ended("stopped", run), COMMAND)
    out = capsys.readouterr().out
    assert f"{run.id}: stopped after step 12 of 100\n" in out
    assert "model   none was kept\n" in out and "go on   muster train 'my job.yaml'\n        (from the beginning)\n" in out
    run.model.mkdir()
    screen.finish(Ended("stopped", run), COMMAND)
    out = capsys.readouterr().out
    assert f"model   {run.model}\n" in out
    assert f"go on   muster train 'my job.yaml' --set model={run.model}\n        (from these weights, with a fresh optimizer and schedule)\n" in out


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0.0000"),
        (0.12345, "0.1235"),
        (1.23456, "1.235"),
        (44.123, "44.12"),
        (1234.5, "1234"),
        (123456.0, "1.23e+05"),
        (3e-5, "3.00e-05"),
        (7, "7"),
        (None, "–"),
        (float("nan"), "nan"),
        (-2.5, "-2.500"),
        (9999.9, "10000"),
    ],
)
def test_numbers(value: float | None, shown: str) -> None:
    assert text.number(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 m 00 s"),
        (187, "3 m 07 s"),
        (18720, "5 h 12 m"),
        (273600, "3 d 4 h"),
        (-1, "0.0 s"),
    ],
)
def test_durations(seconds: float, shown: str) -> None:
    assert text.duration(seconds) == shown
