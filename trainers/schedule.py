"""The learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math

from trainers.job import Schedule


def factor(schedule: Schedule, step: int, total_steps: int) -> float:
    """Share of the peak learning rate at optimizer step `step` (0 is the first), in (0, 1].

    Warm-up rises linearly and reaches 1 at its last step; the decay then falls to `final` behind the last step.
    """
    warmup = schedule.warmup_steps if schedule.warmup_steps is not None else round(schedule.warmup_ratio * total_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule.name == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    left = 1.0 - done if schedule.name == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return schedule.final + (1.0 - schedule.final) * left
