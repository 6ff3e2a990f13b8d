"""The model card: README.md of the model's folder, with what it was made from and how it tested.

Front matter after https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from trainers.job import Job

_PIPELINES = {"text-classification": "text-classification", "causal-lm": "text-generation"}
_COLUMNS = {"before": "before fine-tuning", "majority": "always the commonest label"}


def write(folder: Path, job: Job, report: dict[str, Any]) -> None:
    """Writes README.md into the model's folder."""
    front = {"library_name": "transformers", "base_model": job.model, "pipeline_tag": _PIPELINES.get(job.task, job.task), "tags": ["muster"]}
    how = "LoRA, merged into the weights; the adapter itself is in `adapter/`" if job.train.lora else "all weights"
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).strip(),
        "---",
        "",
        f"# {job.name}",
        "",
        f"`{job.model}` fine-tuned for {job.task} with Muster: {report['steps']} steps of {job.train.global_batch_size} rows, {how}.",
        "",
        "## Test",
        "",
        *_table(report),
        "",
        "## Job",
        "",
        "```yaml",
        yaml.safe_dump(job.resolved(), sort_keys=False).strip(),
        "```",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def _table(report: dict[str, Any]) -> list[str]:
    test = report.get("test")
    if not test:
        return ["Not tested: the run was stopped early." if report.get("state") == "stopped" else "Not tested: the job held no rows back."]
    others = report.get("baselines", {})
    rows = [f"| {name} | " + " | ".join(f"{scores[name]:.4f}" if name in scores else "–" for scores in (*others.values(), test)) + " |" for name in test]
    names = [_COLUMNS.get(name, name) for name in others]
    return ["| metric | " + " | ".join([*names, "fine-tuned"]) + " |", "|---" * (len(others) + 2) + "|", *rows]
