"""Arguments that several verbs share, so that they read and behave the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

JobFile = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job: what to train, on which data.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key of the job, e.g. train.optimizer.lr=1e-4; may be repeated.", show_default=False),
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, an unambiguous beginning of it, its folder, or `last`.", show_default=False)]
Storage = Annotated[Path, typer.Option("--storage", metavar="DIR", envvar="MUSTER_STORAGE", help="Folder that keeps the runs.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]

DEFAULT_STORAGE = Path("muster-storage")
