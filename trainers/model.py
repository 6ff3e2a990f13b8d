"""Loading models and tokenizers, adapters on top, and saving the result as a Hugging Face folder.

GGUF files are turned into a safetensors folder once (`unpack_gguf`): transformers keeps their weights quantised otherwise,
and every worker would spend a quarter of a minute on it. From safetensors each rank maps the file; under ZeRO-3
transformers builds the model already partitioned and rank 0 alone reads values, so no rank holds a full copy.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers.errors import UserError
from trainers.model_source import ModelSource

if TYPE_CHECKING:
    from torch import nn

    from trainers.job import Job

_DROPOUTS = (
    "dropout", "hidden_dropout_prob", "hidden_dropout", "attention_dropout", "attention_probs_dropout_prob", "activation_dropout",
    "resid_pdrop", "embd_pdrop", "attn_pdrop", "resid_dropout", "embedding_dropout", "classifier_dropout", "seq_classif_dropout", "summary_first_dropout",
)  # fmt: skip


def load_tokenizer(source: ModelSource) -> Any:
    """The model's fast tokenizer, with a padding token.

    Raises:
        UserError: the folder or hub id has none, or it cannot be reached.
    """
    from transformers import AutoTokenizer

    with _reachable(source):
        tokenizer = AutoTokenizer.from_pretrained(source.path, gguf_file=source.gguf_file)
    if not tokenizer.is_fast:
        raise UserError(f"{source.name!r} has no fast tokenizer (tokenizer.json); token positions cannot be told", key="model")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def load_config(source: ModelSource) -> Any:
    """The model's configuration."""
    from transformers import AutoConfig

    with _reachable(source):
        return AutoConfig.from_pretrained(source.path, gguf_file=source.gguf_file)


def longest(config: Any) -> int | None:
    """Tokens that the model can position, or None where nothing bounds them."""
    text = config.get_text_config()
    bound = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    if bound and text.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer"):
        bound -= text.pad_token_id + 1  # positions start behind the padding token's
    return bound or None


def load_weights_into(auto_class: str, source: ModelSource, job: Job, **options: Any) -> Any:
    """`transformers.<auto_class>.from_pretrained` with the job's dropout; weights in fp32, or bf16 where the job trains in it.

    bf16 weights with fp32 masters in the optimizer (DeepSpeed) need no casts in the forward pass. The dtype is that of
    the module; DeepSpeed makes the masters from it, so the model is loaded in fp32 and cast by the engine.
    """
    import torch
    import transformers

    config = load_config(source)
    if job.train.dropout is not None:
        for name in _DROPOUTS:
            if getattr(config, name, None) is not None:
                setattr(config, name, job.train.dropout)
    for name in ("num_labels", "id2label", "label2id"):
        if name in options:
            setattr(config, name, options.pop(name))
    with _reachable(source):
        return getattr(transformers, auto_class).from_pretrained(source.path, config=config, dtype=torch.float32, **options)


def add_lora(model: Any, job: Job) -> Any:
    """The model with low-rank adapters (PEFT); heads that start fresh stay fully trainable.

    Raises:
        UserError: `targets` names no module of the model.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    lora = job.train.lora
    assert lora is not None
    kind = TaskType.SEQ_CLS if job.task == "text-classification" else TaskType.CAUSAL_LM if job.task == "causal-lm" else None
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    try:
        return get_peft_model(model, LoraConfig(task_type=kind, r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets))
    except ValueError as error:
        raise UserError(f"{lora.targets!r}: {str(error).splitlines()[0]}", key="train.lora.targets") from None


def bare(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper (adapters stay injected), or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def unpack_gguf(source: ModelSource, target: Path) -> ModelSource:
    """Writes a GGUF file as a safetensors folder with its tokenizer at `target`, once; later calls find it.

    Raises:
        UserError: transformers cannot read this GGUF architecture or quantisation.
    """
    if not target.is_dir():
        import torch
        from transformers import AutoModelForCausalLM, GgufConfig

        partial = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            with _reachable(source):
                model = AutoModelForCausalLM.from_pretrained(
                    source.path, gguf_file=source.gguf_file, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
                )
            model.save_pretrained(partial)
            load_tokenizer(source).save_pretrained(partial)
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.is_dir():
                partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return ModelSource(source.name, str(target))


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(all, trainable) parameters, also where ZeRO-3 has partitioned them."""
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trainable in sizes if trainable)


class _reachable:
    """Turns what transformers raises for a model that is not there, or is not a model, into one line."""

    def __init__(self, source: ModelSource) -> None:
        self.source = source

    def __enter__(self) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, (OSError, ValueError, KeyError, NotImplementedError)):
            return
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"{self.source.name!r} cannot be loaded: {first}", key="model") from error
