"""Cleaning and splitting, as pure functions of the rows' content.

A row's split depends on a hash of its own content and on nothing else, so adding rows moves no other row, and equal rows
never end up on two sides. A label whose rows would all be held out keeps them for training: a model cannot learn it
otherwise. Cost: one pass, a hash of 16 bytes a row.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import NamedTuple

from trainers.data.rows import Example
from trainers.errors import UserError
from trainers.job import Clean

SPLITS = ("train", "validation", "test")


class Dropped(NamedTuple):
    """A row that was left out."""

    split: str
    row: int
    """Its number among the rows of `data.<split>`, from 1."""
    reason: str
    """`missing`, `conflicts` (equal texts, other labels), `duplicates`, or `leaks` (a training row that is also held out)."""
    content: str


def clean(splits: dict[str, list[Example]], rules: Clean) -> tuple[dict[str, list[Example]], list[Dropped]]:
    """Drops what `rules` say, over all splits together.

    Test and validation rows win over equal training rows, so that nothing held out was trained on.

    Raises:
        UserError: `missing: error` and a row has no text or label.
    """
    dropped: list[Dropped] = []
    labels: dict[str, set[str | None]] = defaultdict(set)
    for examples in splits.values():
        for example in examples:
            labels[example.content].add(example.label)
    seen: dict[tuple[str, str | None], str] = {}
    kept: dict[str, list[Example]] = {}
    for name in ("test", "validation", "train"):
        kept[name] = []
        for number, example in enumerate(splits.get(name, []), 1):
            before = seen.get((example.content, example.label))
            reason = ""
            if example.payload is None:
                if rules.missing == "error":
                    raise UserError(f"row {number} of the {name} data has no text or label", key=f"data.{name}")
                reason = "missing"
            elif rules.conflicts == "drop" and len(labels[example.content]) > 1:
                reason = "conflicts"
            elif rules.duplicates == "drop" and before:
                reason = "duplicates" if before == name else "leaks"
            if reason:
                dropped.append(Dropped(name, number, reason, example.content))
            else:
                seen.setdefault((example.content, example.label), name)
                kept[name].append(example)
    return kept, dropped


def unit_hash(content: str) -> float:
    """A number in [0, 1) that depends on the content alone (BLAKE2b, 53 bits)."""
    digest = hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8, person=b"muster-split").digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def hold_out(examples: list[Example], validation: float, test: float) -> dict[str, list[Example]]:
    """Splits by `unit_hash`: test below `test`, validation in the next `validation`, the rest trains."""
    chosen = []
    for example in examples:
        u = unit_hash(example.content)
        chosen.append("test" if u < test else "validation" if u < test + validation else "train")
    trained = {example.label for example, name in zip(examples, chosen, strict=True) if name == "train"}
    splits: dict[str, list[Example]] = {name: [] for name in SPLITS}
    for example, name in zip(examples, chosen, strict=True):
        splits[name if example.label in trained else "train"].append(example)
    return splits
