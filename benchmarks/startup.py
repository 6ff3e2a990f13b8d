"""Claim `startup`: from the command to the end of the first optimizer step, `muster train` against torchrun + DeepSpeed.

Warm: the prepared rows are there (both sides read them) and the files of the libraries are in the page cache. A fresh
process each time, nothing is evaluated before the first step, W&B off. The end of the step is when its line arrives here.
Where the time goes is printed on stderr, by what Muster itself says that it is doing.
"""

from __future__ import annotations

from itertools import pairwise
from statistics import median

import common
from common import Finished, say


def first_step(run: Finished) -> float:
    """Seconds from the command's start to the end of its first step."""
    return float(run.first("step")["at"])


def stages(run: Finished) -> list[tuple[str, float]]:
    """What Muster said it was doing until the first step, and when (seconds from the command's start)."""
    before = [("the command itself (interpreter, arguments, job)", 0.0)]
    for event in run.events:
        if event["kind"] == "stage":
            before.append((event["text"], event["at"]))
        elif event["kind"] == "run":
            before.append(("the run's folder", event["at"]))
        elif event["kind"] == "start":
            before.append(("engine ready", event["at"]))
        elif event["kind"] == "step":
            return [*before, ("end of the first step", event["at"])]
    return before


def main() -> None:
    options = common.arguments(__doc__ or "")
    turns = 1 if options.quick else 5
    job = common.classification(1)
    found = common.inputs(job, "startup")
    bare = common.bare_deepspeed(job, found)
    sides = {
        "muster": lambda _: common.muster(job, "startup", 300),
        "torchrun": lambda _: common.torchrun("torchrun_deepspeed.py", bare, "startup", 300),
    }
    if not options.quick:
        say("warming up:")
        common.in_turns(1, sides)
    runs = common.in_turns(turns, sides)
    times = {name: [first_step(run) for run in done] for name, done in runs.items()}
    for turn in range(turns):
        a, b = times["muster"][turn], times["torchrun"][turn]
        say(f"turn {turn + 1}: first step after {a:.1f} s with muster, {b:.1f} s with torchrun, ratio {a / b:.2f}")
    say("where muster's time goes (last turn):")
    marks = stages(runs["muster"][-1])
    for (text, at), (_, until) in pairwise(marks):
        say(f"  {at:6.2f} s  +{until - at:5.2f}  {text}")
    say(f"  {marks[-1][1]:6.2f} s         {marks[-1][0]}")
    medians = {name: median(values) for name, values in times.items()}
    conditions = (
        f"warm, prepared rows present; medians of {turns}: {medians['muster']:.1f} s against {medians['torchrun']:.1f} s; MiniLM 22.7 M, "
        f"2 workers x 1 thread, ZeRO 2, no evaluation before the first step, W&B off; {common.machine()}"
    )
    result = common.claim("startup", medians["muster"] / medians["torchrun"], "<=", 2.0, conditions)
    common.write(options.json, [result], {"first_step_s": times, "stages": [stages(run) for run in runs["muster"]]})


if __name__ == "__main__":
    main()
