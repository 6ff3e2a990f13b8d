"""What a source must hold to be trained on and tested with: one clear line where it does not."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainers.data.facts import MISSING, UNREADABLE, Facts
from trainers.data.split import SPLITS, Verdicts
from trainers.errors import UserError
from trainers.job import Job


def check_rows(job: Job, facts: Facts, origin: NDArray[np.uint8], first: str) -> None:
    """Refuses more rows that cannot be read, or lack something, than the job allows.

    Args:
        origin: the split of the file each row came from, `[rows]`.
        first: what is wrong with the first row that could not be read.

    Raises:
        UserError: with the bound.
    """
    bad, bound = int((facts.state == UNREADABLE).sum()), job.data.max_bad_rows
    if bad > bound * len(facts):
        raise UserError(f"{bad} of {len(facts)} rows cannot be read, more than the share {bound}; the first: {first}", key="data.max_bad_rows")
    lacking = np.flatnonzero(facts.state == MISSING)
    if job.data.clean.missing == "error" and len(lacking):
        split = origin[lacking[0]]
        number = int((origin[: lacking[0]] == split).sum()) + 1
        raise UserError(f"row {number} of the {SPLITS[split]} data has no text or label", key=f"data.{SPLITS[split]}")


def check_labels(facts: Facts, origin: NDArray[np.uint8], verdicts: Verdicts, shares: dict[str, float]) -> list[str]:
    """The labels, in the order of their numbers.

    Args:
        shares: of the training rows, by the name of the split that they are held out for.

    Raises:
        UserError: nothing is left to train on, or to hold out; there is one label only; one is held out that is never learnt.
    """
    kept = {name: np.unique(facts.label[verdicts == i], return_counts=True) for i, name in enumerate(SPLITS)}
    if not len(kept["train"][0]):
        raise UserError(f"of {len(facts)} rows none is left to train on after cleaning and splitting", key="data.train")
    learnt = kept["train"][0]
    labels = sorted((facts.labels[i] for i in learnt if i >= 0), key=_natural)
    if len(labels) == 1:
        raise UserError(f"every row has the label {labels[0]!r}; there is nothing to tell apart", key="data.label")
    for i, name in enumerate(SPLITS[1:], 1):
        given = int((origin == i).sum())
        if given and not len(kept[name][0]):
            raise UserError(f"of {given} rows none is left after cleaning", key=f"data.{name}")
        if shares[name] and not len(kept[name][0]):
            count = int(kept["train"][1].sum())
            raise UserError(f"{shares[name]} of {count} rows is none; give data.{name}, more rows, or 0 to do without", key=f"data.split.{name}")
        unseen = ~np.isin(kept[name][0], learnt)
        if unseen.any():
            label, count = facts.labels[kept[name][0][unseen][0]], int(kept[name][1][unseen].sum())
            raise UserError(f"the label {label!r} never occurs in training ({count} rows with {unseen.sum()} such labels)", key=f"data.{name}")
    return labels


def _natural(label: str) -> tuple[int, int, str]:
    """Whole numbers in order of size, then everything else in order of spelling."""
    return (0, int(label), label) if label.lstrip("-").isdecimal() and label.isascii() else (1, 0, label)
