"""Text classification: a text, one label, cross entropy over the labels."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from trainers import job as jobs
from trainers.data.rows import Example, column
from trainers.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

METRICS = ("loss", "accuracy", "macro_f1")
DEFAULT_METRIC = "macro_f1"
EVALUATION_UNIT = "rows"


class Data(jobs.Data):
    """Columns of a labelled text set."""

    text: str = "text"
    """Column with the text."""
    label: str = "label"
    """Column with the label: text, a whole number or true/false."""


def read(table: pa.Table, data: Data, first: int = 1) -> list[Example]:
    """One example a row. Raises UserError for a missing column, a text that is not text, a label that is not one value."""
    import pyarrow.types as types

    texts, labels = column(table, "data.text", data.text), column(table, "data.label", data.label)
    if not (types.is_string(texts.type) or types.is_large_string(texts.type) or types.is_null(texts.type)):
        raise UserError(f"column {data.text!r} holds {texts.type}, not text", key="data.text")
    if types.is_nested(labels.type) or types.is_floating(labels.type):
        raise UserError(f"column {data.label!r} holds {labels.type}; a label is text, a whole number or true/false", key="data.label")
    return [
        Example(content=text, label=None if label is None else str(label), payload=text)
        if text and text.strip() and label is not None and str(label).strip()
        else Example.blank()
        for text, label in zip(texts.to_pylist(), labels.to_pylist(), strict=True)
    ]


def packs(data: Data) -> bool:
    """Whether several texts go into one row: each has a label of its own."""
    return False


class Encoder:
    """Texts to token rows: `input_ids`, `label`; cut to `max_length` tokens, special tokens included."""

    def __init__(self, tokenizer: Any, data: Data, max_length: int, labels: list[str]) -> None:
        import numpy as np

        self.tokenizer, self.max_length = tokenizer, max_length
        self.dtypes = {"input_ids": np.min_scalar_type(len(tokenizer))}
        self.ids = {label: i for i, label in enumerate(labels)}
        self.counts = {"cut": 0}

    def __call__(self, examples: list[Example]) -> dict[str, list[Any]]:
        rows, cut = self._cut_rows([example.payload for example in examples]) if examples else ([], 0)
        self.counts["cut"] += cut
        return {"input_ids": rows, "label": [self.ids[str(example.label)] for example in examples]}

    def _cut_rows(self, texts: list[str]) -> tuple[list[list[int]], int]:
        """Token rows of at most `max_length`, and how many were longer. The tokenizer cuts: it keeps its closing special tokens."""
        found = self.tokenizer(texts, truncation=True, max_length=self.max_length, return_attention_mask=False, return_overflowing_tokens=True)
        of = found["overflow_to_sample_mapping"]  # what is cut off comes as further rows of the same text
        first = [i for i, text in enumerate(of) if i == 0 or of[i - 1] != text]
        return [found["input_ids"][i] for i in first], sum(b - a > 1 for a, b in itertools.pairwise([*first, len(of)]))


def tokens(rows: dict[str, Any]) -> int:
    """What `supervised tokens` counts in throughput: here every token of the rows, since each text is one prediction."""
    return sum(len(row) for row in rows["input_ids"])


def load(source: Any, job: jobs.Job, labels: list[str], **options: Any) -> Any:
    """The encoder with a fresh classification head of `len(labels)` outputs."""
    from trainers.model import load_weights_into

    names = {"num_labels": len(labels), "id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    return load_weights_into("AutoModelForSequenceClassification", source, job, **names, **options)


def prepare_model(model: Any, tokenizer: Any, job: jobs.Job) -> None:
    """Decoder models find a row's last token by the padding token: make sure that they know one."""
    if model.config.get_text_config().pad_token_id is None:
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def collate(rows: dict[str, Any], pad_token_id: int) -> dict[str, torch.Tensor]:
    """`input_ids`, `attention_mask` `[B, T]`, padded on the right to the longest row, and `labels` `[B]` (-100: none).

    An empty batch becomes one row of one token without a label, so that every worker makes the same calls.
    """
    import numpy as np
    import torch

    ids = rows["input_ids"] or [[pad_token_id]]
    labels = torch.tensor(rows["label"] if rows["input_ids"] else [-100])
    lengths = np.array([len(row) for row in ids])
    mask = np.arange(lengths.max()) < lengths[:, None]
    input_ids = np.full(mask.shape, pad_token_id, np.int64)
    input_ids[mask] = np.concatenate(ids)
    return {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(mask).long(), "labels": labels}


def supervised(batch: dict[str, torch.Tensor]) -> int:
    """How many labels the loss is summed over."""
    return int((batch["labels"] != -100).sum())


def loss(model: Any, batch: dict[str, torch.Tensor], smoothing: float = 0.0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Cross entropy summed over labelled rows, and `{"predicted", "labels"}` `[B]` for the evaluation."""
    from torch.nn import functional

    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
    total = functional.cross_entropy(logits, batch["labels"], ignore_index=-100, reduction="sum", label_smoothing=smoothing)
    return total, {"predicted": logits.detach().argmax(-1), "labels": batch["labels"]}


class Evaluation:
    """Predictions of every worker's share, and the metrics of all of them together."""

    def __init__(self, labels: list[str]) -> None:
        self.labels = labels
        self.predicted: list[int] = []
        self.actual: list[int] = []
        self.loss_sum = 0.0

    def add(self, loss_sum: torch.Tensor, outputs: dict[str, torch.Tensor]) -> None:
        real = outputs["labels"] != -100
        self.predicted += outputs["predicted"][real].tolist()
        self.actual += outputs["labels"][real].tolist()
        self.loss_sum += float(loss_sum)

    def state(self) -> tuple[float, list[int], list[int]]:
        """What one worker sends to the others."""
        return self.loss_sum, self.predicted, self.actual

    def metrics(self, states: list[tuple[float, list[int], list[int]]]) -> dict[str, float]:
        """Metrics over every worker's state; `loss` is per label, F1 is averaged over the labels that occur."""
        from trainers.evaluation.metrics import classification

        predicted = [p for _, part, _ in states for p in part]
        actual = [a for _, _, part in states for a in part]
        return {"loss": sum(part for part, _, _ in states) / max(1, len(actual)), **classification(actual, predicted, len(self.labels))}


def trivial_baseline(train_counts: list[int], test_counts: list[int]) -> dict[str, float]:
    """The same metrics for always answering with the commonest training label; rows of each label are given."""
    from trainers.evaluation.metrics import classification

    commonest = max(range(len(train_counts)), key=train_counts.__getitem__)
    answers = [label for label, count in enumerate(test_counts) for _ in range(count)]
    return classification(answers, [commonest] * len(answers), len(train_counts))
