"""A look at what a job points at, before anything is started: is the model there, are the files, have they the columns?"""

from __future__ import annotations

from trainers import model_source, tasks
from trainers.data import files, source
from trainers.job import Job
from trainers.yamlfile import Document


def inspect(job: Job, document: Document) -> None:
    """Looks at what the job points at: the model, the data files, their columns; cheapest first.

    Raises:
        UserError: something is not there, or the columns are not what the task needs.
    """
    with document.blame("model"):
        model_source.locate(job.model)
    found = {}
    for name in ("train", "validation", "test"):
        specs = getattr(job.data, name)
        if specs is not None:
            with document.blame(f"data.{name}"):
                found[name] = files.files(specs)
    for name, paths in found.items():
        with document.blame(f"data.{name}"):
            tasks.get(job.task).read(source.beginning(paths[0], job.data.on_bad_row), job.data)
