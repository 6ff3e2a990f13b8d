"""`muster schema`: what job.yaml may say, for editors."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer


def schema(kind: Annotated[Literal["job"], typer.Argument(metavar="job", help="Which file's schema.", show_default=False)]) -> None:
    """Print the JSON Schema of job.yaml, for editors."""
    from trainers.job import job_schema

    print(json.dumps(job_schema(), indent=2, ensure_ascii=False))
