"""Causal language modelling on dialogues or plain text: next-token cross entropy where a token is supervised.

Rows are laid end to end without padding, `[1, T]`, with positions that start over at every document; attention stays
inside a document (`trainers.attention`) and the head runs on supervised positions only (`trainers.losses`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from trainers import job as jobs
from trainers.data import chat
from trainers.data.rows import Example

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

METRICS = ("loss", "perplexity", "token_accuracy")
DEFAULT_METRIC = "loss"
EVALUATION_UNIT = "supervised tokens"


class Data(jobs.Data):
    """Columns of dialogues or texts."""

    format: Literal["auto", "messages", "sharegpt", "prompt-completion", "alpaca", "text"] = "auto"
    """Shape of a row; `auto` goes by the columns."""
    messages: str | None = None
    """Column with the turns; `messages`, or `conversations` for sharegpt."""
    prompt: str = "prompt"
    """Column for prompt-completion."""
    completion: str = "completion"
    """Column for prompt-completion."""
    text: str = "text"
    """Column for plain text."""
    loss_on: Literal["assistant", "all"] = "assistant"
    """Which tokens carry loss: the assistant's turns (end-of-turn token included), or every token."""
    packing: bool = False
    """Put several short documents into one row of up to max_length tokens; attention stays inside each document."""
    chunk: Annotated[int, Field(ge=16)] = 512
    """Supervised positions whose logits are in memory at once."""


def read(table: pa.Table, data: Data, first: int = 1) -> list[Example]:
    """One example a row, whatever the shape; `first` is the first row's number, for messages.

    Raises UserError for a shape that cannot be recognised or a bad turn.
    """
    return chat.examples(table, data, first)


def packs(data: Data) -> bool:
    """Whether several documents go into one row."""
    return data.packing


class Encoder:
    """Examples to token rows: `input_ids`, `supervised` (0/1 a token), `documents` (their lengths: here one a row)."""

    def __init__(self, tokenizer: Any, data: Data, max_length: int, labels: list[str]) -> None:
        import numpy as np

        self.spans = chat.Template(tokenizer, data.loss_on)
        self.max_length = max_length
        self.counts = {"cut": 0, "nothing to learn": 0}
        tokens, lengths = np.min_scalar_type(len(tokenizer)), np.min_scalar_type(max_length)
        self.dtypes = {"input_ids": tokens, "supervised": np.dtype(np.uint8), "documents": lengths}

    def __call__(self, examples: list[Example]) -> dict[str, list[Any]]:
        documents = []
        for example in examples:
            ids, supervised = self.spans.encode(example.payload)
            self.counts["cut"] += len(ids) > self.max_length
            ids, supervised = ids[: self.max_length], supervised[: self.max_length]
            if any(supervised[1:]):  # the first token has nothing before it to be predicted from
                documents.append((ids, supervised))
            else:
                self.counts["nothing to learn"] += 1
        return {
            "input_ids": [ids for ids, _ in documents],
            "supervised": [[int(flag) for flag in supervised] for _, supervised in documents],
            "documents": [[len(ids)] for ids, _ in documents],
        }


def tokens(rows: dict[str, Any]) -> int:
    """Supervised tokens of the rows: those that the loss is summed over."""
    import numpy as np

    total = 0
    for flags, lengths in zip(rows["supervised"], rows["documents"], strict=True):
        first = 0
        for length in lengths:
            total += int(np.count_nonzero(flags[first + 1 : first + length]))
            first += length
    return total


def load(source: Any, job: jobs.Job, labels: list[str], **options: Any) -> Any:
    """The pretrained language model, its own head included."""
    from trainers.attention import suits
    from trainers.model import load_config, load_weights_into

    if suits(load_config(source)):
        options["attn_implementation"] = "muster_documents"
    return load_weights_into("AutoModelForCausalLM", source, job, **options)


def prepare_model(model: Any, tokenizer: Any, job: jobs.Job) -> None:
    """No key-value cache while training."""
    model.config.use_cache = False


def collate(rows: dict[str, Any], pad_token_id: int) -> dict[str, torch.Tensor]:
    """The rows end to end: `input_ids`, `position_ids` `[1, T]`, `boundaries` `[D+1]` (document starts, then T),
    `targets` `[S]` (supervised next tokens) and `at` `[S]` (the positions that predict them).

    An empty batch becomes one token of one document, with no targets.
    """
    import numpy as np
    import torch

    lengths = np.concatenate([*rows["documents"], np.zeros(0, np.int64)]).astype(np.int64)
    if not len(lengths):
        ids, flags, lengths = np.array([pad_token_id]), np.zeros(1, np.int64), np.array([1])
    else:
        ids, flags = np.concatenate(rows["input_ids"]).astype(np.int64), np.concatenate(rows["supervised"]).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    flags[starts[:-1]] = 0
    predicted = np.flatnonzero(flags)
    return {
        "input_ids": torch.from_numpy(ids)[None],
        "position_ids": torch.from_numpy(np.arange(starts[-1]) - np.repeat(starts[:-1], lengths))[None],
        "boundaries": torch.from_numpy(starts.astype(np.int32)),
        "targets": torch.from_numpy(ids[predicted]),
        "at": torch.from_numpy(predicted - 1),
    }


def supervised(batch: dict[str, torch.Tensor]) -> int:
    """How many tokens the loss is summed over."""
    return len(batch["targets"])


def loss(model: Any, batch: dict[str, torch.Tensor], smoothing: float = 0.0, chunk: int = 512) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Cross entropy summed over supervised tokens, and `{"correct", "count"}` for the evaluation."""
    from trainers.losses import next_token_loss

    total, correct = next_token_loss(model, batch, smoothing, chunk)
    return total, {"correct": correct, "count": correct.new_tensor(len(batch["targets"]))}


class Evaluation:
    """Sums over every worker's share, and the metrics of all of them together."""

    def __init__(self, labels: list[str]) -> None:
        self.sums = [0.0, 0, 0]

    def add(self, loss_sum: torch.Tensor, outputs: dict[str, torch.Tensor]) -> None:
        for i, value in enumerate((loss_sum, outputs["correct"], outputs["count"])):
            self.sums[i] += value.item()

    def state(self) -> list[float]:
        """What one worker sends to the others: loss sum, correct tokens, tokens."""
        return self.sums

    def metrics(self, states: list[list[float]]) -> dict[str, float]:
        """`loss` per supervised token, its perplexity, and how often the likeliest token was the right one."""
        loss_sum, correct, count = (sum(part) for part in zip(*states, strict=True))
        mean = loss_sum / max(1, count)
        return {"loss": mean, "perplexity": math.exp(min(mean, 700.0)), "token_accuracy": correct / max(1, count)}
