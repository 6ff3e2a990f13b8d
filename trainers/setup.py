"""What the driver tells its workers. Apart from `session`, so that the driver need not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainers.job import Job, job_class
from trainers.model_source import ModelSource


@dataclass(frozen=True)
class Setup:
    """What the driver tells every worker; plain values, so that it can be sent anywhere."""

    job: dict[str, Any]
    folder: str
    prepared: str
    model: ModelSource
    wandb: str
    """`online`, `offline` or `off`."""
    cpus: int
    gpu: bool

    def load_job(self) -> Job:
        """The resolved job, checked again."""
        return job_class(self.job["task"]).model_validate(self.job)
