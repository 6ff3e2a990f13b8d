"""The language model's loss: logits only where there is a label, a chunk of them at a time.

Positions without a label never reach the head. Supervised ones go through it `chunk` at a time, and each chunk's gradient
is computed while its logits are at hand (as Liger-Kernel's fused linear cross entropy does, arXiv:2410.10989), so the
memory is chunk × vocabulary, and no logits are kept or computed twice. torch 2.13 has the same idea as
`functional.linear_cross_entropy`; on CPUs it took 13 s where this takes 0.8 (500 × 49152, bf16), and it returns bf16.
"""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional

from trainers.attention import NAME
from trainers.model import bare

_SCALES = {"cohere": lambda c: c.logit_scale, "granite": lambda c: 1.0 / c.logits_scaling}
_PLAIN_HEADS = {"llama", "mistral", "qwen2", "qwen3", "olmo2", "smollm3", "gemma", "gpt2", "gpt_neox", "opt", "phi", *_SCALES}
"""Model types whose logits are the head's output, times a constant at most; others go through their own forward."""


def next_token_loss(model: Any, batch: dict[str, torch.Tensor], smoothing: float, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy summed over `batch["targets"]`, and how many of them were the likeliest token (0 while training).

    Args:
        batch: see `trainers.tasks.causal_lm.collate`.
        smoothing: label smoothing in [0, 1).
        chunk: supervised positions whose logits are in memory at once.
    """
    inner = bare(model)
    head = inner.get_output_embeddings()
    config = inner.config.get_text_config()
    if config.model_type not in _PLAIN_HEADS or type(head) is not torch.nn.Linear:
        logits = _own_logits(inner, batch)
        loss = functional.cross_entropy(logits.float(), batch["targets"], reduction="sum", label_smoothing=smoothing) + 0.0 * logits.sum()
        return loss, _correct(logits, batch["targets"])
    hidden = _hidden(inner, batch)
    scale = _SCALES.get(config.model_type, lambda _: 1.0)(config)
    correct = torch.zeros((), dtype=torch.long, device=hidden.device)
    if not torch.is_grad_enabled():
        for part, targets in zip(hidden.split(chunk), batch["targets"].split(chunk), strict=True):
            correct += _correct(functional.linear(part, head.weight, head.bias), targets)
    return _HeadLoss.apply(hidden * scale if scale != 1.0 else hidden, head.weight, head.bias, batch["targets"], chunk, smoothing), correct


def _hidden(inner: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Last hidden states at the positions that predict a supervised token, `[S, D]`."""
    body = inner.get_decoder() if hasattr(inner, "get_decoder") else inner.base_model
    if inner.config._attn_implementation == NAME:
        states = body(input_ids=batch["input_ids"], position_ids=batch["position_ids"], cu_seq_lens_q=batch["boundaries"], use_cache=False)
        return states.last_hidden_state[0, batch["at"]]
    padded = _pad(batch)
    states = body(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"], use_cache=False)
    return states.last_hidden_state[padded["rows"], padded["columns"]]


def _own_logits(inner: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits `[S, V]` from the model's own forward, whatever it does behind its head."""
    if inner.config._attn_implementation == NAME and "logits_to_keep" in inspect.signature(inner.forward).parameters:
        return inner(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], cu_seq_lens_q=batch["boundaries"], logits_to_keep=batch["at"], use_cache=False
        ).logits[0]
    padded = _pad(batch)
    return inner(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"], use_cache=False).logits[padded["rows"], padded["columns"]]


def _pad(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One row a document, padded on the right: `[D, max length]`; and where the supervised positions are in it."""
    bounds = batch["boundaries"].tolist()
    documents = [batch["input_ids"][0, a:b] for a, b in pairwise(bounds)]
    row = torch.searchsorted(batch["boundaries"].long(), batch["at"], right=True) - 1
    return {
        "input_ids": torch.nn.utils.rnn.pad_sequence(documents, batch_first=True),
        "attention_mask": torch.nn.utils.rnn.pad_sequence([torch.ones_like(d) for d in documents], batch_first=True),
        "rows": row,
        "columns": batch["at"] - batch["boundaries"].long()[row],
    }


def _correct(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (logits.detach().argmax(-1) == targets).sum()


class _HeadLoss(torch.autograd.Function):
    """sum of cross entropy of `hidden @ weight.T + bias` against targets; gradients are made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, chunk: int, smoothing: float
    ) -> torch.Tensor:
        """hidden `[S, D]`, weight `[V, D]`, bias `[V]` or None, targets `[S]`; returns a float32 scalar."""
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        hidden_grad = torch.empty_like(hidden) if wants_hidden else None
        # Several chunks add up in fp32: bf16 sums lose what late chunks add.
        sums = len(targets) > chunk and weight.dtype != torch.float32
        weight_grad = torch.zeros_like(weight, dtype=torch.float32 if sums else None) if wants_weight else None
        bias_grad = torch.zeros_like(bias, dtype=torch.float32) if wants_bias and bias is not None else None
        for first in range(0, len(targets), chunk):
            here, wanted = hidden[first : first + chunk], targets[first : first + chunk, None]
            logits = functional.linear(here, weight, bias).float()
            log_normaliser = torch.logsumexp(logits, -1, keepdim=True)
            picked = logits.gather(1, wanted)
            total += (log_normaliser - picked).sum() * (1 - smoothing)
            if smoothing:
                total += (log_normaliser - logits.mean(-1, keepdim=True)).sum() * smoothing
            if wants_hidden or wants_weight:
                # d loss / d logits = softmax - target distribution
                slope = logits.sub_(log_normaliser).exp_()
                if smoothing:
                    slope.sub_(smoothing / slope.shape[1])
                slope.scatter_add_(1, wanted, torch.full_like(picked, smoothing - 1.0))
                if bias_grad is not None:
                    bias_grad += slope.sum(0)
                slope = slope.to(weight.dtype)
                if hidden_grad is not None:
                    torch.mm(slope, weight, out=hidden_grad[first : first + chunk])
                if weight_grad is not None:
                    if sums:
                        weight_grad += slope.T @ here
                    else:
                        weight_grad.addmm_(slope.T, here)
        ctx.save_for_backward(hidden_grad, weight_grad.to(weight.dtype) if weight_grad is not None else None, bias_grad)
        ctx.bias_dtype = None if bias is None else bias.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The saved gradients times the loss's own; in place, for they serve once (a second backward raises, as ever)."""
        hidden, weight, bias = ctx.saved_tensors
        return (
            None if hidden is None else hidden.mul_(grad.to(hidden.dtype)),
            None if weight is None else weight.mul_(grad.to(weight.dtype)),
            None if bias is None else (bias * grad).to(ctx.bias_dtype),
            None,
            None,
            None,
        )
