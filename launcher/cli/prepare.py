"""`muster prepare`: makes a job's prepared rows now; `train` finds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.cli.options import DEFAULT_STORAGE, JobFile, Json, Overrides, Storage

if TYPE_CHECKING:
    from trainers.data.prepared import Prepared
    from trainers.job import Job
    from trainers.model_source import ModelSource


def prepare(job_file: JobFile, overrides: Overrides = None, storage: Storage = DEFAULT_STORAGE, as_json: Json = False) -> None:
    """Read, clean, split and tokenise a job's data; nothing if that was done."""
    _, _, prepared = made(job_file, overrides, storage, as_json)
    if as_json:
        print(json.dumps({"prepared": prepared.location, **prepared.manifest}, ensure_ascii=False))
    else:
        print("rows      " + ", ".join(f"{count} {name}" for name, count in prepared.rows.items()))
        print(f"prepared  {prepared.location}")


def made(job_file: Path, overrides: Overrides, storage: Path, as_json: bool) -> tuple[Job, ModelSource, Prepared]:
    """The job, its model and its prepared rows, made now if need be; says on the terminal what it does meanwhile."""
    from launcher.cli import display
    from trainers import run
    from trainers.joblint import load_job

    job, document = load_job(job_file, overrides or ())

    def say(event: dict[str, Any]) -> None:
        if not as_json:
            screen(event)

    with display.choose(False) as screen:
        model, prepared = run.prepare_only(job, document, storage.expanduser().resolve(), say)
    return job, model, prepared
