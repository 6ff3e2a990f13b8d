"""Decision 5: logits only where there is a label, in chunks; packed rows equal separate ones; documents do not see each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from trainers import attention, losses
from trainers.tasks import causal_lm

pytestmark = pytest.mark.unit

SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "head_dim": 8, "initializer_range": 0.3,
}  # fmt: skip
CASES = {
    **{name: {} for name in sorted(attention.MODELS)},
    "mistral-window": {"sliding_window": 5},
    "llama-untied": {"tie_word_embeddings": False},
    "granite-scaled": {"logits_scaling": 3.0, "attention_multiplier": 0.2},
    "cohere-scaled": {"logit_scale": 0.5},
    # Not padding-free: padded rows and the model's own attention.
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gpt_neox": {},
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 48},
    "gemma2": {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 3.0, "sliding_window": 5},
    "phi": {},
}


def make(case: str, **extra: Any) -> Any:
    """A tiny model of the case's type, and set up as `causal_lm.load` does."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    kind = case.split("-")[0]
    config = AutoConfig.for_model(kind, **{**SIZES, **CASES[case], **extra})
    name = attention.NAME if attention.suits(config) else None
    return AutoModelForCausalLM.from_config(config, attn_implementation=name).eval() if name else AutoModelForCausalLM.from_config(config).eval()


def documents(seed: int = 0, lengths: tuple[int, ...] = (7, 1, 12, 3, 9)) -> dict[str, Any]:
    """Rows of one document each, unevenly supervised; the second has nothing supervised."""
    rng = torch.Generator().manual_seed(seed)
    ids = [torch.randint(3, 97, (n,), generator=rng).tolist() for n in lengths]
    flags = [[int(torch.rand((), generator=rng) < 0.5) for _ in row] for row in ids]
    return {"input_ids": ids, "supervised": flags, "documents": [[n] for n in lengths]}


def naive(model: Any, rows: dict[str, Any], smoothing: float = 0.0) -> torch.Tensor:
    """Document by document through a plain copy of the model with its own attention and full logits."""
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_config(model.config, attn_implementation="eager").eval()
    plain.load_state_dict(model.state_dict())
    total = torch.zeros(())
    for ids, flags in zip(rows["input_ids"], rows["supervised"], strict=True):
        wanted = torch.tensor(flags[1:]).bool()
        if wanted.any():
            logits = plain(input_ids=torch.tensor([ids])).logits[0, :-1].float()
            total = total + functional.cross_entropy(logits[wanted], torch.tensor(ids[1:])[wanted], reduction="sum", label_smoothing=smoothing)
    grads = torch.autograd.grad(total, list(plain.parameters()), allow_unused=True)
    model.naive_grads = dict(zip([n for n, _ in plain.named_parameters()], grads, strict=True))
    return total.detach()


@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradients_equal_full_logits(case: str, smoothing: float) -> None:
    model, rows = make(case), documents()
    expected = naive(model, rows, smoothing)
    for chunk in (1, 4, 1000):
        model.zero_grad()
        total, outputs = causal_lm.loss(model, causal_lm.collate(rows, 0), smoothing, chunk)
        assert total.item() == pytest.approx(expected.item(), rel=2e-5)
        total.backward()
        for name, parameter in model.named_parameters():
            wanted = model.naive_grads[name]
            found = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            torch.testing.assert_close(found, torch.zeros_like(parameter) if wanted is None else wanted, rtol=2e-3, atol=2e-4)
        assert int(outputs["count"]) == sum(sum(flags[1:]) for flags in rows["supervised"])


def test_packed_rows_equal_separate_ones_document_by_document() -> None:
    model, rows = make("llama"), documents()
    packed = {name: [[x for i in group for x in rows[name][i]] for group in ((2, 0), (1, 3, 4))] for name in rows}
    alone = [causal_lm.loss(model, causal_lm.collate({n: [v[i]] for n, v in rows.items()}, 0))[0].item() for i in range(5)]
    for group, row in zip(((2, 0), (1, 3, 4)), range(2), strict=True):
        together = causal_lm.loss(model, causal_lm.collate({n: [v[row]] for n, v in packed.items()}, 0))[0].item()
        assert together == pytest.approx(sum(alone[i] for i in group), rel=1e-5)


@pytest.mark.parametrize("case", ["llama", "mistral-window", "gpt2"])
def test_no_document_sees_another(case: str) -> None:
    model, rows = make(case), documents()
    rows["supervised"] = [[0] * len(ids) for ids in rows["input_ids"]]
    rows["supervised"][2] = [1] * 12
    before = causal_lm.loss(model, causal_lm.collate(rows, 0))[0]
    others = {**rows, "input_ids": [ids if i == 2 else [96 - x % 90 for x in ids] for i, ids in enumerate(rows["input_ids"])]}
    after = causal_lm.loss(model, causal_lm.collate(others, 0))[0]
    assert before.item() == after.item()
    inside = {**rows, "input_ids": [[*ids[:1], (ids[1] + 1) % 90 + 3, *ids[2:]] if i == 2 else ids for i, ids in enumerate(rows["input_ids"])]}
    assert causal_lm.loss(model, causal_lm.collate(inside, 0))[0].item() != before.item(), "its own earlier tokens do matter"


def test_the_head_sees_supervised_positions_only_a_chunk_at_a_time() -> None:
    seen: list[int] = []
    model, rows = make("llama"), documents()
    original = functional.linear

    def spy(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if weight is model.lm_head.weight:
            seen.append(len(x))
        return original(x, weight, bias)

    functional.linear = spy
    try:
        causal_lm.loss(model, causal_lm.collate(rows, 0), 0.0, chunk=4)
    finally:
        functional.linear = original
    assert sum(seen) == sum(sum(flags[1:]) for flags in rows["supervised"]) and max(seen) == 4


def test_bf16_sums_over_many_chunks_stay_close_to_fp32() -> None:
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(512, 32), torch.randn(97, 32), torch.randint(0, 97, (512,))
    full = functional.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    halves = [tensor.bfloat16().requires_grad_() for tensor in (hidden, weight)]
    total = losses._HeadLoss.apply(halves[0], halves[1], None, targets, 16, 0.0)
    assert total.dtype == torch.float32 and total.item() == pytest.approx(full.item(), rel=5e-3)
    total.backward()
    exact = weight.clone().requires_grad_()
    functional.cross_entropy(hidden @ exact.T, targets, reduction="sum").backward()
    assert functional.cosine_similarity(halves[1].grad.float().flatten(), exact.grad.flatten(), dim=0) > 0.999


def test_a_batch_without_labels_adds_nothing_and_still_has_a_gradient() -> None:
    model = make("llama")
    total, _ = causal_lm.loss(model, causal_lm.collate({"input_ids": [], "supervised": [], "documents": []}, 0))
    total.backward()
    assert total.item() == 0.0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters()) and model.lm_head.weight.grad is not None


def test_short_documents_in_bf16_are_close_to_fp32() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 6, 40, 16), torch.randn(1, 2, 40, 16), torch.randn(1, 2, 40, 16)
    bounds = torch.tensor([0, 1, 13, 40], dtype=torch.int32)
    module = torch.nn.Identity()
    exact = [t.clone().requires_grad_() for t in (q, k, v)]
    halves = [t.bfloat16().requires_grad_() for t in (q, k, v)]
    slow, _ = attention.attention(module, *exact, None, scaling=0.2, cu_seq_lens_q=bounds)
    fast, _ = attention.attention(module, *halves, None, scaling=0.2, cu_seq_lens_q=bounds)
    assert fast.shape == slow.shape == (1, 40, 6, 16)
    torch.testing.assert_close(fast.float(), slow, rtol=0.05, atol=0.03)
    slow.square().sum().backward()
    fast.float().square().sum().backward()
    for half, full in zip(halves, exact, strict=True):
        assert functional.cosine_similarity(half.grad.float().flatten(), full.grad.flatten(), dim=0) > 0.999
