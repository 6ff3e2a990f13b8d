"""The pure parts of the engine, against formulas written here; and the private behaviour of libraries that Muster leans on."""

from __future__ import annotations

import importlib
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny

from trainers.job import Schedule, job_class
from trainers.schedule import factor

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("warmup", "total", "final"), [(0, 10, 0.0), (5, 50, 0.1), (50, 50, 0.0), (3, 4, 0.5), (0, 1, 0.0)])
def test_the_schedule_rises_to_one_and_falls_to_its_end(name: Any, warmup: int, total: int, final: float) -> None:
    schedule = Schedule(name=name, warmup_steps=warmup, final=final)
    found = [factor(schedule, step, total) for step in range(total)]
    assert all(0 < value <= 1 for value in found)
    assert found[:warmup] == [(step + 1) / (warmup + 1) for step in range(warmup)]
    if warmup < total:
        assert found[warmup] == 1.0
        falling = found[warmup:]
        assert falling == sorted(falling, reverse=True)
        share = (total - 1 - warmup) / (total - warmup)
        last = {"constant": 1.0, "linear": final + (1 - final) * (1 - share), "cosine": final + (1 - final) * (1 + math.cos(math.pi * share)) / 2}
        assert found[-1] == pytest.approx(last[name])


def test_the_warmup_ratio_counts_all_steps() -> None:
    assert [factor(Schedule(warmup_ratio=0.5, name="constant"), step, 4) for step in range(4)] == [1 / 3, 2 / 3, 1.0, 1.0]


def test_zero_auto_takes_the_lowest_stage_that_fits() -> None:
    from trainers.engine import choose_zero

    billion, gb = 10**9, 1e9
    assert choose_zero(7 * billion, 1, 80 * gb) == 0, "one worker has nothing to shard"
    assert choose_zero(1 * billion, 8, 80 * gb) == 0  # 16 GB of state in 48
    assert choose_zero(7 * billion, 8, 80 * gb) == 1  # 28 + 84 / 8 = 38.5 GB in 48
    assert choose_zero(12 * billion, 8, 80 * gb) == 2  # 24 + 168 / 8 = 45 GB in 48
    assert choose_zero(30 * billion, 16, 80 * gb) == 3
    for world in (2, 4, 64):
        stages = [choose_zero(n * billion, world, 80 * gb) for n in range(1, 200)]
        assert stages == sorted(stages), "a larger model never takes a lower stage"


def test_auto_micro_batches_fit_the_budget_in_equal_parts() -> None:
    from trainers.session import choose_micro_batch

    for rows in range(1, 65):
        for longest in (1, 100, 512, 5000):
            micro = choose_micro_batch(rows, longest, 2048)
            parts = math.ceil(rows / micro)
            assert micro == 1 or micro * longest <= 2048 + longest
            assert micro * (parts - 1) < rows <= micro * parts


def test_norms_and_biases_do_not_decay(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    from trainers.engine import optimizer_groups

    model = AutoModelForSequenceClassification.from_pretrained(tiny.bert(tmp_path))
    decayed, others = optimizer_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)] for p in others["params"]} == {name for name in names.values() if name.endswith("bias") or "LayerNorm" in name}
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert len(decayed["params"]) + len(others["params"]) == len(names)


def test_a_job_says_what_deepspeed_is_told() -> None:
    from trainers.engine import ds_config

    train, scale = {"precision": "bf16", "gradient_clipping": 0.5}, {"offload": "all"}
    facts = {"name": "x", "task": "causal-lm", "model": "m", "data": {"train": "t"}, "train": train, "scale": scale}
    job = job_class("causal-lm").model_validate(facts)
    config = ds_config(job, 3, 4, 2, 8, "cuda")
    assert config["zero_optimization"]["stage"] == 3 and config["zero_optimization"]["overlap_comm"]
    assert config["zero_optimization"]["offload_optimizer"]["device"] == config["zero_optimization"]["offload_param"]["device"] == "cpu"
    assert config["bf16"]["enabled"] and not config["fp16"]["enabled"] and config["gradient_clipping"] == 0.5
    assert (config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]) == (2, 8)


def test_deepspeed_skips_its_shared_memory_operator_when_told() -> None:
    """Private: `deepspeed.comm.torch.build_shm_op` asks `deepspeed.ops.__compatible_ops__`; it would compile for 20 s otherwise."""
    import deepspeed.ops

    from trainers.engine import skip_shm_op

    assert "deepspeed_shm_comm" in deepspeed.ops.__compatible_ops__
    skip_shm_op()
    assert importlib.import_module("deepspeed.comm.torch").build_shm_op() is None


def test_muon_comes_without_torchs_compiler() -> None:
    """Private: `deepspeed.runtime.zero.muon` compiles at import; in a fresh process, since any test may have imported Inductor."""
    script = """
import sys
from trainers.engine import import_muon_uncompiled
import_muon_uncompiled()
import torch
from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam
assert issubclass(MuonWithAuxAdam, torch.optim.Optimizer) and "torch._inductor.compile_fx" not in sys.modules
assert torch.compile.__module__ == "torch"
"""
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "DS_ACCELERATOR": "cpu"})


def test_supervised_tokens_are_counted_past_255() -> None:
    import numpy as np

    from trainers.tasks import causal_lm

    flags = np.ones(400, np.uint8)
    assert causal_lm.tokens({"supervised": [flags], "documents": [[400]]}) == 399
