"""Claim `step-overhead`: a step of `muster train` takes as long as one of a bare torchrun + DeepSpeed script.

Both train MiniLM on the same rows in the same order: 8 texts of 128 tokens a step, fp32, ZeRO 2, two workers of one
thread, W&B off. They take turns; the ratio is that of the median step times over all turns, without the first three steps
of each. The losses of both have to agree step by step, or the comparison is refused.
"""

from __future__ import annotations

from statistics import median, quantiles

import common
from common import Finished, say

SKIP = 3
TOLERANCE = 1e-3


def compare_losses(ours: Finished, theirs: Finished, steps: int = 5) -> float:
    """The largest difference of the first losses; raises if it is above the tolerance."""
    pairs = list(zip(ours.steps(), theirs.steps(), strict=True))[:steps]
    worst = max(abs(float(a["loss"]) - float(b["loss"])) for a, b in pairs)
    if worst > TOLERANCE:
        listed = ", ".join(f"{a['loss']:.5f}/{b['loss']:.5f}" for a, b in pairs)
        raise SystemExit(f"the two sides do not train the same: losses {listed} differ by up to {worst:.2g}")
    return worst


def between(run: Finished) -> float:
    """Seconds from one step's end to the next one's, as seen from outside: what `step_s` may have left out would show here."""
    steps = run.steps()[SKIP - 1 :]
    return float(steps[-1]["at"] - steps[0]["at"]) / (len(steps) - 1)


def main() -> None:
    options = common.arguments(__doc__ or "")
    turns, steps = (1, 15) if options.quick else (6, 30)
    job = common.classification(steps)
    found = common.inputs(job, "step-overhead")
    bare = common.bare_deepspeed(job, found)
    runs = common.in_turns(
        turns,
        {
            "muster": lambda _: common.muster(job, "step-overhead", 600),
            "torchrun": lambda _: common.torchrun("torchrun_deepspeed.py", bare, "step-overhead", 600),
        },
    )
    worst = max(compare_losses(a, b) for a, b in zip(runs["muster"], runs["torchrun"], strict=True))
    times = {name: [[step["step_s"] for step in run.steps()[SKIP:]] for run in done] for name, done in runs.items()}
    medians = {name: median(seconds for run in done for seconds in run) for name, done in times.items()}
    for turn in range(turns):
        a, b = (median(times[name][turn]) for name in ("muster", "torchrun"))
        x, y = (between(runs[name][turn]) for name in ("muster", "torchrun"))
        say(f"turn {turn + 1}: median step muster {a:.4f} s, torchrun {b:.4f} s, ratio {a / b:.3f}; from step to step {x:.4f} s and {y:.4f} s")
    fast = {name: quantiles((seconds for run in done for seconds in run), n=10)[0] for name, done in times.items()}
    say(f"fastest tenth (the least disturbed by neighbours): {fast['muster']:.4f} s against {fast['torchrun']:.4f} s, {fast['muster'] / fast['torchrun']:.3f}")
    say(f"first losses differ by at most {worst:.1e}")
    conditions = (
        f"median of {turns} x {steps - SKIP} steps, {medians['muster']:.3f} s against {medians['torchrun']:.3f} s; MiniLM 22.7 M fp32, 8 x 128 tokens a step, "
        f"ZeRO 2, 2 workers x 1 thread, W&B off; {common.machine()}"
    )
    result = common.claim("step-overhead", medians["muster"] / medians["torchrun"], "<=", 1.03, conditions)
    common.write(options.json, [result], times)


if __name__ == "__main__":
    main()
