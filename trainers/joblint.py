"""From a job.yaml to a `Job`, or to one line that says what is wrong with it and where.

Pydantic checks types and bounds; this file words its findings for people (file:line, dotted key, the value, the bound,
the nearest known name) and adds the checks that need two keys at once. It imports nothing heavy: a typo is answered at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from trainers import tasks, yamlfile
from trainers.data.files import absolute
from trainers.errors import UserError
from trainers.job import Job, job_class
from trainers.yamlfile import Document, Key


def load_job(path: Path, overrides: Iterable[str] = ()) -> tuple[Job, Document]:
    """Reads, overrides and checks a job; paths in it become absolute (relative ones count from the job's folder).

    Returns:
        The job, and the document that knows on which line each key stands.

    Raises:
        UserError: anything in the file or the overrides that cannot be right.
    """
    document = yamlfile.read(path)
    for assignment in overrides:
        document.set(assignment)
    values = document.values
    values.setdefault("name", _name(path))
    task = values.get("task")
    if task is None:
        raise UserError(f"is missing; choose one of {', '.join(tasks.names())}", key="task", where=document.where(()))
    if task not in tasks.names():
        raise UserError(f"{task!r} is not a task{nearest(str(task), tasks.names())}", key="task", where=document.where(("task",)))
    try:
        job = job_class(task).model_validate(values)
    except ValidationError as error:
        raise _worded(error, values, document, job_class(task)) from None
    for key, message in problems(job):
        raise UserError(message, key=".".join(key), where=document.where(key))
    return absolute(job, path.resolve().parent), document


def problems(job: Job) -> Iterator[tuple[tuple[str, ...], str]]:
    """What no single key can tell: yields the key to blame and the message."""
    train, scale, data = job.train, job.scale, job.data
    if isinstance(train.micro_batch_size, int):
        round_size = scale.workers * train.micro_batch_size
        if train.global_batch_size % round_size:
            near = max(1, round(train.global_batch_size / round_size)) * round_size
            yield (
                ("train", "micro_batch_size"),
                f"{train.micro_batch_size} rows × {scale.workers} workers = {round_size} does not divide "
                f"global_batch_size {train.global_batch_size}; take global_batch_size {near}, or micro_batch_size: auto",
            )
    if train.global_batch_size < scale.workers:
        yield ("train", "global_batch_size"), f"{train.global_batch_size} rows cannot feed {scale.workers} workers; at least one row a worker"
    held = {"validation": data.validation, "test": data.test}
    shares = sum(getattr(data.split, name) for name, given in held.items() if given is None)
    if shares >= 1:
        yield ("data", "split"), f"validation and test together take {shares:g} of the rows; leave some for training"
    if train.early_stopping and data.validation is None and data.split.validation == 0:
        yield ("train", "early_stopping"), "needs validation rows: give data.validation, or data.split.validation above 0"
    if train.early_stopping:
        known = tasks.get(job.task).METRICS
        if train.early_stopping.metric not in known:
            yield (
                ("train", "early_stopping", "metric"),
                f"{train.early_stopping.metric!r} is not one of {', '.join(known)}{nearest(train.early_stopping.metric, known)}",
            )
    if scale.offload == "all" and scale.zero not in ("auto", 3):
        yield ("scale", "offload"), f"`all` moves weights, which zero {scale.zero} does not shard; take zero: 3, or offload: optimizer"
    if scale.offload == "optimizer" and scale.zero == 0:
        yield ("scale", "offload"), "`optimizer` needs zero 1, 2 or 3"
    if scale.gpus_per_worker == 0 and scale.offload != "none":
        yield ("scale", "offload"), "moves state from GPU to main memory; without GPUs it is there already; take offload: none"
    if scale.gpus_per_worker == 0 and train.precision == "fp16":
        yield ("train", "precision"), "fp16 needs GPUs; take bf16 or fp32"
    if train.optimizer.momentum and train.optimizer.name != "sgd":
        yield ("train", "optimizer", "momentum"), f"is for sgd; {train.optimizer.name} has betas"


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean …?` with the nearest known name, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _name(path: Path) -> str:
    """A run name from the file's: only letters, digits, dots, dashes."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in path.stem).strip("._-")[:64] or "job"


def _worded(error: ValidationError, values: dict[str, Any], document: Document, model: type[BaseModel]) -> UserError:
    """The first finding, by place in the file's order of keys; alternatives of one key (`int or auto`) become one message."""
    groups: dict[Key, list[Any]] = {}
    for finding in error.errors(include_url=False):
        groups.setdefault(_real(finding["loc"], values, finding["type"]), []).append(finding)
    # A value of the wrong shape explains more than what is missing below it; unknown keys explain missing ones.
    key = min(groups, key=lambda k: (groups[k][0]["type"] != "extra_forbidden", len(k)))
    findings = groups[key]
    dotted = ".".join(map(str, key))
    kind = findings[0]["type"]
    if kind == "extra_forbidden":
        known = _fields(model, key[:-1])
        hint = _elsewhere(model, str(key[-1])) or nearest(str(key[-1]), known) or f"; known here: {', '.join(known)}"
        return UserError(f"is not a known key{hint}", key=dotted, where=document.where(key))
    if kind == "missing" and isinstance(findings[0]["loc"][-1], int):
        return UserError(f"{_shown(findings[0]['input'])} has too few values", key=dotted, where=document.where(key))
    if kind == "missing":
        return UserError("is missing; it has no default", key=dotted, where=document.where(key))
    wanted = " or ".join(dict.fromkeys(_wanted(finding) for finding in findings))
    return UserError(f"{_shown(findings[0]['input'])} is not right; it must be {wanted}", key=dotted, where=document.where(key))


def _real(loc: tuple[int | str, ...], values: Any, kind: str) -> Key:
    """A finding's location without the names that pydantic adds for the members of a union."""
    key: list[str | int] = []
    for depth, part in enumerate(loc):
        last = depth == len(loc) - 1
        if isinstance(values, dict) and (part in values or (last and kind == "missing")):
            values = values.get(part)
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            values = values[part]
        else:
            break
        key.append(part)
    return tuple(key)


def _shown(value: Any) -> str:
    """A value as YAML spells it, cut short."""
    return {True: "true", False: "false", None: "null"}[value] if value is None or isinstance(value, bool) else f"{value!r:.80}"


def _wanted(finding: Any) -> str:
    """What a finding asks for, in words that fit behind "it must be"."""
    context = finding.get("ctx", {})
    match finding["type"]:
        case "literal_error":
            return str(context["expected"]).replace("'", "")
        case "greater_than":
            return f"above {context['gt']:g}"
        case "greater_than_equal":
            return f"at least {context['ge']:g}"
        case "less_than":
            return f"below {context['lt']:g}"
        case "less_than_equal":
            return f"at most {context['le']:g}"
        case "int_type" | "int_from_float" | "int_parsing":
            return "a whole number"
        case "float_type" | "float_parsing":
            return "a number"
        case "finite_number":
            return "a finite number"
        case "string_type":
            return "text"
        case "string_pattern_mismatch":
            return "1 to 64 letters, digits, dots, dashes or underscores, the first a letter or digit"
        case "string_too_short":
            return "text that is not empty"
        case "bool_type":
            return "true or false"
        case "list_type" | "tuple_type":
            return "a list"
        case "too_short":
            return f"a list of at least {context['min_length']}"
        case "too_long":
            return f"a list of at most {context['max_length']}"
        case "model_type" | "dict_type":
            return "a block of keys"
        case "none_required":
            return "null"
        case _:
            return str(finding["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")


def _elsewhere(model: type[BaseModel], name: str) -> str:
    """`; did you mean a.b.name?` where exactly one block has a key of this very name: `train.lr` is a common slip."""
    places = [path for path in _paths(model) if path[-1] == name]
    return f"; did you mean {'.'.join(places[0])}?" if len(places) == 1 else ""


def _paths(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of a job, with the blocks it stands in."""
    for name, field in model.model_fields.items():
        yield (*above, name)
        for candidate in [field.annotation, *get_args(field.annotation)]:
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                yield from _paths(candidate, (*above, name))


def _fields(model: type[BaseModel], key: Key) -> list[str]:
    """Names of the keys that may stand below `key`."""
    for part in key:
        annotation = model.model_fields[str(part)].annotation
        candidates = [annotation, *get_args(annotation)]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(model.model_fields)
