"""Early stopping: the best weights so far are kept, and training ends when they have not been beaten for a while."""

from __future__ import annotations

from typing import Any

from trainers.callbacks import Callback
from trainers.job import EarlyStopping

LOWER_IS_BETTER = ("loss", "perplexity")


class Stopper(Callback):
    """Watches the validation metric. After an evaluation, `improved` says whether it is the best yet and `stop` whether to end."""

    def __init__(self, config: EarlyStopping) -> None:
        self.config = config
        self.best: float | None = None
        self.best_step = 0
        self.improved = False
        self.bad = 0

    @property
    def stop(self) -> bool:
        """Whether `patience` evaluations in a row brought no improvement."""
        return self.bad >= self.config.patience

    def evaluation(self, record: dict[str, Any]) -> None:
        if record["split"] != "validation":
            return
        value = record["metrics"][self.config.metric]
        gain = 0.0 if self.best is None else self.best - value if self.config.metric in LOWER_IS_BETTER else value - self.best
        self.improved = self.best is None or gain > self.config.min_delta
        if self.improved:
            self.best, self.best_step, self.bad = value, record["step"], 0
        else:
            self.bad += 1
