"""What a run was made from: versions, hashes of code and data, seed, machine. It goes into run.json."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from trainers.job import Job

_LIBRARIES = ("muster-train", "ray", "torch", "deepspeed", "transformers", "tokenizers", "peft", "wandb", "pyarrow", "numpy")


def facts(job: Job, manifest: dict[str, Any], wandb: str) -> dict[str, Any]:
    """Entries for run.json."""
    return {
        "pid": os.getpid(),
        "host": platform.node(),
        "task": job.task,
        "model": job.model,
        "seed": job.seed,
        "workers": job.scale.workers,
        "wandb": wandb,
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in _LIBRARIES}},
        "code": code_hash(),
        "data": manifest["hash"],
        "rows": manifest["rows"],
        "labels": manifest["labels"],
    }


def code_hash() -> str:
    """A hash of the source files of this package."""
    here = Path(__file__).parent
    return digest(*((str(path.relative_to(here)), path.read_bytes().hex()) for path in sorted(here.rglob("*.py"))))


def digest(*parts: Any) -> str:
    """16 hexadecimal digits that depend on the parts' `repr`."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()
