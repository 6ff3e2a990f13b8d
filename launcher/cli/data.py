"""`muster data`: what a job trains on, as the model will see it."""

from __future__ import annotations

import json
from itertools import groupby
from typing import TYPE_CHECKING, Any

import typer

from launcher.cli.options import DEFAULT_STORAGE, JobFile, Json, Overrides, Storage

if TYPE_CHECKING:
    from trainers.data.prepared import Prepared

EXAMPLES = 3
IMBALANCED = 10
"""A label with so many times fewer rows than the commonest one is pointed out."""
ALIKE = 0.2
"""A larger share of near duplicates is pointed out: a shared prompt template may be the reason, and each row worth keeping."""


def data(job_file: JobFile, overrides: Overrides = None, storage: Storage = DEFAULT_STORAGE, as_json: Json = False) -> None:
    """Show rows, labels, lengths, what was dropped, and a few examples with the tokens that carry loss marked."""
    from launcher.cli.prepare import made
    from trainers.model import load_tokenizer

    _, model, prepared = made(job_file, overrides, storage, as_json)
    examples = list(_examples(prepared, load_tokenizer(model)))
    if as_json:
        print(json.dumps({"prepared": prepared.location, **prepared.manifest, "sample": examples}, ensure_ascii=False))
        return
    _summary(prepared)
    for number, example in enumerate(examples, 1):
        typer.secho(f"\nexample {number}" + (f" → {example['label']}" if "label" in example else ""), bold=True)
        print("".join(_marked(part["text"], part["supervised"]) for part in example["parts"]))


def _summary(prepared: Prepared) -> None:
    from launcher.cli.text import table

    m = prepared.manifest
    rows = [["", "rows", "tokens", "p5", "median", "p95", "longest"]]
    for name, count in prepared.rows.items():
        spread = m["lengths"][name] or {"p5": 0, "p50": 0, "p95": 0}
        rows.append([name, f"{count:,}", f"{m['tokens'][name]:,}", *(str(spread[q]) for q in ("p5", "p50", "p95")), str(m["longest"][name])])
    table(rows, right=range(1, 7))
    if m["label_counts"]:
        counts = m["label_counts"]
        shares = {name: max(1, sum(counts[name])) for name in counts}
        print()
        cells = [[label, *(f"{counts[n][i]:,} ({counts[n][i] / shares[n]:.1%})" for n in counts)] for i, label in enumerate(prepared.labels)]
        table([["label", *counts], *cells], right=range(1, 1 + len(counts)))
        most, least = max(counts["train"]), min(counts["train"])
        if least * IMBALANCED <= most:
            rare = prepared.labels[counts["train"].index(least)]
            print(f"imbalanced: the commonest label has {most / max(1, least):.0f} times the training rows of {rare!r}")
    print()
    total = sum(m["examples"].values())
    print(f"cut       {m['cut']:,} of {total:,} rows, at {m['max_length']} tokens")
    print("dropped   " + (", ".join(f"{count:,} {reason}" for reason, count in m["dropped"].items()) or "nothing"))
    near = m["dropped"].get("near duplicates", 0)
    if near > ALIKE * (near + total):
        print(f"alike     {near:,} rows are near duplicates of others; if it is a template that makes them alike, set data.clean.near_duplicates: keep")
    if leaks := m["dropped"].get("leaks"):
        print(f"leaks     {leaks:,} training rows were also held out; they are not trained on")
    print(f"prepared  {prepared.location}" + (" (dropped.jsonl has the dropped rows)" if m["dropped"] else ""))


def _examples(prepared: Prepared, tokenizer: Any) -> Any:
    """The first training rows: their text in parts, each with loss or without, and their label."""
    from trainers.data.columns import View

    rows = View.of(next(prepared.shards("train").part(0, 1)).slice(0, EXAMPLES)).rows()
    for i, ids in enumerate(rows["input_ids"]):
        flags = rows["supervised"][i].tolist() if "supervised" in rows else [0] * len(ids)
        runs = [(bool(flag), [int(token) for _, token in run]) for flag, run in groupby(zip(flags, ids, strict=True), key=lambda pair: pair[0])]
        example: dict[str, Any] = {"parts": [{"text": tokenizer.decode(run), "supervised": flag} for flag, run in runs]}
        yield example | ({"label": prepared.labels[rows["label"][i]]} if "label" in rows else {})


def _marked(text: str, supervised: bool) -> str:
    """Text with loss: bold and underlined on a terminal, in ⟦brackets⟧ elsewhere."""
    import sys

    if not supervised:
        return text
    return typer.style(text, bold=True, underline=True) if sys.stdout.isatty() else f"⟦{text}⟧"
