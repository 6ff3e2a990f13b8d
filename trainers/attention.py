"""Attention that stays inside each document of a padding-free row `[1, T]`.

Documents are told apart by their boundaries (`cu_seq_lens_q`, `[D+1]`), never by a mask of T² entries: on CPUs each
document is its own call of torch's fused kernel, on GPUs all of them go through one variable-length flash attention call
(`torch.nn.attention.varlen`). No attention across documents is possible, because no other document's keys are passed.

The function is registered with transformers as `muster_documents`; models whose attention is plain causal softmax (with
grouped queries and sliding windows at most) can use it. Others get padded rows and their own attention.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

NAME = "muster_documents"

MODELS = {"llama", "mistral", "qwen2", "qwen3", "olmo2", "smollm3", "granite", "gemma", "cohere"}
"""Model types whose attention passes `cu_seq_lens_q` through and needs nothing but a causal softmax; each one is tested."""


SHORT = 1024
"""Tokens up to which a document's attention scores are held whole on CPUs in bf16 (2 MB a head)."""


def suits(config: Any) -> bool:
    """Whether a model of this configuration can run padding-free. Registers the attention with transformers."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
    return config.model_type in MODELS


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **ignored: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within documents.

    Args:
        query: `[1, H, T, E]`; key and value: `[1, H_kv, T, E]`.
        cu_seq_lens_q: `[D+1]` int32 on the query's device: where each document starts, then T.

    Returns:
        `[1, T, H, E]`, and no weights.
    """
    if cu_seq_lens_q is None or query.shape[0] != 1 or query.shape[2] != key.shape[2]:
        raise ValueError("muster_documents needs rows [1, T] with their document boundaries; load the model anew to generate with it")
    grouped = query.shape[1] != key.shape[1]
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and not dropout:
        return _flash(query, key, value, cu_seq_lens_q, scaling, sliding_window, grouped), None
    parts = []
    bounds = cu_seq_lens_q.tolist()
    for first, end in pairwise(bounds):
        if query.dtype == torch.bfloat16 and query.device.type == "cpu" and not dropout and sliding_window is None and end - first <= SHORT:
            heads = (query[0, :, first:end], key[0, :, first:end], value[0, :, first:end])
            # Recomputed in the backward pass: a few percent of the time, against L² scores a head, document and layer in memory.
            parts.append(checkpoint(_products, *heads, scaling, use_reentrant=False, preserve_rng_state=False))
            continue
        mask = _band(end - first, sliding_window, query.device)
        parts.append(
            functional.scaled_dot_product_attention(
                query[:, :, first:end],
                key[:, :, first:end],
                value[:, :, first:end],
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=grouped,
            ).transpose(1, 2)
        )
    return (torch.cat(parts, dim=1) if len(parts) > 1 else parts[0].contiguous()), None


def _products(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None) -> torch.Tensor:
    """Causal attention of one short document by plain matrix products: `[H, L, E]` to `[1, L, H, E]`.

    On CPUs in bf16 these run at the speed of the matrix units, which torch 2.13's fused kernel does not reach (9 ms against
    15, forward and backward, for 338 tokens of 9 heads); the price is L² scores a head, so only for `SHORT` documents.
    Query heads that share a key head are one tall product, so keys are not copied.
    """
    heads, length, width = q.shape
    shared = k.shape[0]
    rows = heads // shared * length
    bias = torch.full((length, length), -torch.inf, dtype=q.dtype).triu_(1).repeat(heads // shared, 1)
    scores = torch.baddbmm(bias.expand(shared, rows, length), q.reshape(shared, rows, width), k.transpose(1, 2), alpha=width**-0.5 if scale is None else scale)
    return torch.bmm(scores.softmax(-1), v).view(heads, length, width).transpose(0, 1)[None]


def _band(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """A mask for the last `window` positions, only where a document is longer than that."""
    if window is None or length <= window:
        return None
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None]
    return (distance >= 0) & (distance < window)


def _flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: torch.Tensor, scale: float | None, window: int | None, grouped: bool) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    longest = int((bounds[1:] - bounds[:-1]).max())
    q, k, v = (tensor[0].transpose(0, 1).contiguous() for tensor in (q, k, v))  # [T, H, E]
    left = -1 if window is None else window - 1
    mixed = varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scale, window_size=(left, 0), enable_gqa=grouped)
    assert isinstance(mixed, torch.Tensor)
    return mixed[None]
