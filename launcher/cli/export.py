"""`muster export`: the trained model out of its run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launcher.cli.options import DEFAULT_STORAGE, RunName, Storage


def export(
    run: RunName,
    target: Annotated[Path, typer.Argument(metavar="DIR", help="Where the model goes; a new or empty folder.", show_default=False)],
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Copy a run's model to a folder."""
    from trainers import runfolder

    found = runfolder.find(storage, run)
    runfolder.export(found, target.expanduser())
    print(f"{found.id}: model copied to {target}")
