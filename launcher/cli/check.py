"""`muster check`: says what is wrong with a job, or shows it with every default filled in; trains nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from launcher.cli.options import JobFile, Json, Overrides

if TYPE_CHECKING:
    from trainers.job import Job
    from trainers.yamlfile import Document


def check(job_file: JobFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Check a job and print it in full; trains nothing."""
    from trainers.joblint import load_job

    job, document = load_job(job_file, overrides or ())
    inspect(job, document)
    if as_json:
        print(json.dumps(job.resolved(), indent=2, ensure_ascii=False))
    else:
        from trainers import yamlfile

        print(yamlfile.dump(job.resolved()), end="")


def inspect(job: Job, document: Document) -> None:
    """Looks at what the job points at: the model, the data files, their columns; cheapest first.

    Raises:
        UserError: something is not there, or the columns are not what the task needs.
    """
    from trainers import model_source, tasks
    from trainers.data import source

    with document.blame("model"):
        model_source.locate(job.model)
    found = {}
    for name in ("train", "validation", "test"):
        specs = getattr(job.data, name)
        if specs is not None:
            with document.blame(f"data.{name}"):
                found[name] = source.files(specs)
    for name, paths in found.items():
        with document.blame(f"data.{name}"):
            tasks.get(job.task).read(source.beginning(paths[0]), job.data)
