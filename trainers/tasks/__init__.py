"""The tasks, one file each; a file in this folder is a task, and its name (with dashes) is what job.yaml says.

A task's module holds, importing nothing heavy at its top:

- `Data`: the keys it adds to `data:` (a subclass of `trainers.job.Data`);
- `read(rows, data, where)`: raw columns to the task's examples, or a UserError that names the missing column;
- `Encoder`: examples to token rows (see `trainers.data.encode`), with the `dtypes` of its columns of lists and its `counts`;
- `packs(data)`: whether rows are then laid end to end, up to `max_length` tokens;
- `load(job, labels)`: the transformers model with the right head;
- `collate(rows)`: token rows to the tensors of one micro batch;
- `loss(model, batch)`: what the optimizer minimises, as a *sum* over supervised positions, never a mean;
- `Evaluation`: gathers predictions over the workers and turns them into metrics.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def names() -> list[str]:
    """Every task, as job.yaml spells it."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def get(name: str) -> ModuleType:
    """The module of a task named as in job.yaml; `name` must be one of `names()`."""
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")


def data_class(name: str) -> type:
    """The task's `data:` configuration class."""
    return get(name).Data
