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

NAME = "muster_documents"

MODELS = {"llama", "mistral", "qwen2", "qwen3", "olmo2", "smollm3", "granite", "gemma", "cohere"}
"""Model types whose attention passes `cu_seq_lens_q` through and needs nothing but a causal softmax; each one is tested."""


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
