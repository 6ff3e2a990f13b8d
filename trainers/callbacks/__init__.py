"""What hangs on the training loop, one file each; every worker's loop calls them in the order they are listed.

A callback that only rank 0 needs is not made elsewhere. `step` and `evaluation` get the records that metrics.jsonl holds.
"""

from __future__ import annotations

from typing import Any


class Callback:
    """Hooks of the loop; each does nothing unless overridden."""

    def start(self, facts: dict[str, Any]) -> None:
        """Before the first step. `facts`: total_steps, parameters, trainable_parameters, zero, micro_batch_size, accumulation."""

    def step(self, record: dict[str, Any]) -> None:
        """After each optimizer step, with its `step` record."""

    def evaluation(self, record: dict[str, Any]) -> None:
        """After each evaluation, with its `evaluation` record."""

    def end(self, report: dict[str, Any]) -> None:
        """After the last step and the test, or after a stop. Not called when the run fails; `close` always is."""

    def close(self) -> None:
        """Whatever happened: let go of files and threads."""
