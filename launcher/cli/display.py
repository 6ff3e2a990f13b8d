"""What `muster train` shows while it runs: a live line on a terminal, plain lines in a pipe, JSON with `--json`.

All three take the run's events (dicts with a `kind`) as they happen, and one `finish` at the end. rich is imported only
where there is a terminal; its line is redrawn twice a second, so that it takes next to nothing from the training.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

from launcher.cli import text
from launcher.cli.summary import summary

if TYPE_CHECKING:
    from rich.text import Text

    from trainers.runfolder import RunFolder

Event = dict[str, Any]


class Outcome(Protocol):
    """How a run ended, as `trainers.run.train` returns it."""

    @property
    def state(self) -> str: ...
    @property
    def run(self) -> RunFolder: ...
    @property
    def report(self) -> dict[str, Any]: ...


class Screen:
    """One way of showing a run; a context that is left, well or badly, before anything else is printed."""

    def __call__(self, event: Event) -> None:
        raise NotImplementedError

    def finish(self, outcome: Outcome, command: list[str]) -> None:
        """Says how it ended. `command` is what the user typed, for the advice on how to go on."""
        raise NotImplementedError

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *failure: object) -> None:
        pass


def choose(as_json: bool) -> Screen:
    """The screen that suits where stdout goes."""
    if as_json:
        return JsonLines()
    return Live() if sys.stdout.isatty() else Plain()


class JsonLines(Screen):
    """One JSON object a line; the last one is `end`, with the report."""

    def __call__(self, event: Event) -> None:
        if event["kind"] != "end":  # the one from `finish` says more
            print(json.dumps(text.finite(event), default=str, ensure_ascii=False), flush=True)

    def finish(self, outcome: Outcome, command: list[str]) -> None:
        run = outcome.run
        end: Event = {"kind": "end", "state": outcome.state, "run": run.id, "folder": str(run.path), "report": outcome.report}
        end["model"] = str(run.model) if run.model.is_dir() else None
        print(json.dumps(text.finite(end), default=str, ensure_ascii=False), flush=True)


class Plain(Screen):
    """Lines for a file or a pipe: every stage, and now and then a step."""

    RECENT_STEPS = 32
    """Steps whose median time tells the time left: one slow step (an evaluation, a save) does not move it."""
    APART_S, QUIET_S = 2.0, 10.0

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.stage: tuple[str, float] | None = None
        self.step: Event = {}
        self.step_times: deque[float] = deque(maxlen=self.RECENT_STEPS)
        self.shown_step, self.shown_at = 0, -math.inf

    def __call__(self, event: Event) -> None:
        match event["kind"]:
            case "run":
                self.line(f"run {event['run']} in {event['folder']}")
            case "stage":
                self.close_stage()
                self.open_stage(event["text"], event.get("time", self.clock()))
            case "note":
                self.line(event["text"])
            case "step":
                if self.stage:
                    self.close_stage()
                self.step = event
                if event.get("step_s"):
                    self.step_times.append(event["step_s"])
                self.on_step()
            case "evaluation":
                self.line(evaluation_line(event))
            case "stopping":
                self.line("stopping after this step and keeping the model; Ctrl-C again stops at once, without it")
            case "end":
                self.close_stage()

    def finish(self, outcome: Outcome, command: list[str]) -> None:
        summary(outcome.state, outcome.run, outcome.report, self.step, command)

    def line(self, words: str) -> None:
        """Prints a line that stays."""
        print(words, flush=True)

    def open_stage(self, name: str, started: float) -> None:
        """A stage begins. A file must say so at once: the stage may be the one that hangs."""
        self.stage = (name, started)
        self.line(f"{name} …")

    def close_stage(self) -> None:
        """What came before is over: a stage (its time is told), or steps, of which the last one is always shown."""
        if self.stage:
            name, started = self.stage
            self.stage = None
            if self.clock() - started >= 1:
                self.line(f"{name}: {text.duration(self.clock() - started)}")
        elif self.step and self.step["step"] != self.shown_step:
            self.show_step()

    def on_step(self) -> None:
        """Shows the first and the last step, and in between each tenth of the way (at most one in 2 s) or one in 10 s."""
        step, total, quiet = self.step["step"], max(1, self.step["total_steps"]), self.clock() - self.shown_at
        tenth = step * 10 // total > self.shown_step * 10 // total
        if not self.shown_step or step >= total or quiet >= self.QUIET_S or (tenth and quiet >= self.APART_S):
            self.show_step()

    def show_step(self) -> None:
        self.line(step_line(self.step, self.step_times))
        self.shown_step, self.shown_at = self.step["step"], self.clock()


class Live(Plain):
    """The same lines for a terminal, below them one that lives: the stage and its seconds, or the step."""

    def __init__(self, clock: Callable[[], float] = time.time, console: Any = None) -> None:
        from rich.live import Live as RichLive

        super().__init__(clock)
        self.live = RichLive(console=console, get_renderable=self.render, refresh_per_second=2, transient=True)

    def __enter__(self) -> Screen:
        self.live.start()
        return self

    def __exit__(self, *failure: object) -> None:
        if failure[0] and self.stage:
            self.line(f"{self.stage[0]} …")  # where it failed
        self.stage, self.step = None, {**self.step, "over": True} if self.step else {}
        self.live.stop()

    def line(self, words: str) -> None:
        self.live.console.print(words, markup=False, highlight=False, soft_wrap=True)

    def open_stage(self, name: str, started: float) -> None:
        self.stage = (name, started)

    def close_stage(self) -> None:
        if self.stage:
            name, started = self.stage
            self.stage = None
            self.line(f"{name}: {text.duration(self.clock() - started)}")
        else:
            super().close_stage()

    def on_step(self) -> None:
        pass  # drawn by `render`

    def render(self) -> Text:
        """The line as it is now."""
        from rich.text import Text

        if self.stage:
            words = f"{self.stage[0]} … {text.duration(self.clock() - self.stage[1])}"
        elif self.step and "over" not in self.step:
            words = step_line(self.step, self.step_times)
        else:
            words = ""
        return Text(words, style="bold", no_wrap=True, overflow="ellipsis")


def step_line(step: Event, step_times: deque[float]) -> str:
    """`step 12/400  loss 1.23  lr 3.0e-05  44.1 samples/s  3000 supervised tok/s  ETA 4 m 32 s`."""
    parts = [f"step {step['step']}/{step['total_steps']}", f"loss {text.number(step['loss'])}", f"lr {step['lr']:.1e}"]
    if step.get("samples_per_s") is not None:
        parts.append(f"{text.number(step['samples_per_s'])} samples/s")
    if step.get("supervised_tokens_per_s") is not None:
        parts.append(f"{step['supervised_tokens_per_s']:,.0f} supervised tok/s")
    left = step["total_steps"] - step["step"]
    if step_times and left > 0:
        parts.append(f"ETA {text.duration(median(step_times) * left)}")
    return "  ".join(parts)


def evaluation_line(event: Event) -> str:
    """`step 100  validation: loss 0.412  accuracy 0.9310`, named for people where the split is a baseline."""
    name = {"baseline": "test before fine-tuning", "majority": "test, always the commonest label"}.get(event["split"], event["split"])
    metrics = "  ".join(f"{metric} {text.number(value)}" for metric, value in event["metrics"].items())
    at = f"step {event['step']}  " if event["split"] == "validation" and event.get("step") is not None else ""
    return f"{at}{name}: {metrics}"
