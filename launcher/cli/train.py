"""`muster train`: one run, watched until it ends."""

from __future__ import annotations

import typer

from launcher.cli.options import DEFAULT_STORAGE, JobFile, Json, Overrides, Storage


def train(job_file: JobFile, overrides: Overrides = None, storage: Storage = DEFAULT_STORAGE, as_json: Json = False) -> None:
    """Fine-tune a model; Ctrl-C stops and keeps it."""
    from launcher.cli import display, text
    from trainers.joblint import load_job

    job, document = load_job(job_file, overrides or ())
    command = [text.program(), "train", str(job_file), *(part for text in overrides or () for part in ("--set", text))]
    if storage != DEFAULT_STORAGE:
        command += ["--storage", str(storage)]
    with display.choose(as_json) as screen:
        screen({"kind": "stage", "text": "starting"})
        from trainers import run

        with document.blame(""):
            outcome = run.train(job, document, storage, screen)
    screen.finish(outcome, command)
    if outcome.state != "finished":
        raise typer.Exit(130)  # what a shell calls a command that Ctrl-C ended: `train && export` must not go on
