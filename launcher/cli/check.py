"""`muster check`: says what is wrong with a job, or shows it with every default filled in; trains nothing."""

from __future__ import annotations

import json

from launcher.cli.options import JobFile, Json, Overrides


def check(job_file: JobFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Check a job and print it in full; trains nothing."""
    from trainers.inspection import inspect
    from trainers.joblint import load_job

    job, document = load_job(job_file, overrides or ())
    inspect(job, document)
    if as_json:
        print(json.dumps(job.resolved(), indent=2, ensure_ascii=False))
    else:
        from trainers import yamlfile

        print(yamlfile.dump(job.resolved()), end="")
