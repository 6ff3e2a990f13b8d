"""Tiny real models, tokenizers and data sets that tests train on, and workers to train them with."""

from __future__ import annotations

import json
import os
import pickle
import random
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = "red green blue one two three four five sun moon star sea river hill tree bird fish user assistant system hello bye".split()


def tokenizer() -> Any:
    """Words and ChatML's markers; 40 tokens or so."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<|im_start|>", "<|im_end|>"]
    vocabulary = {word: i for i, word in enumerate([*special, "\n", *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed")])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>", "[CLS]", "[SEP]"]
    )
    fast.chat_template = CHATML
    return fast


def bert(folder: Path, labels: int = 3, dropout: float = 0.0) -> Path:
    """A BERT classifier of 2 layers, 32 wide, with its head saved too."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, max_position_embeddings=64, num_labels=labels,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, initializer_range=0.2,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def llama(folder: Path, **changes: Any) -> Path:
    """A Llama of 2 layers, 32 wide, grouped queries, tied embeddings."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    options: dict[str, Any] = {
        "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64,
        "max_position_embeddings": 128, "tie_word_embeddings": True, "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 5,
    }  # fmt: skip
    LlamaForCausalLM(LlamaConfig(**{**options, **changes})).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def texts(path: Path, rows: int = 45, seed: int = 0) -> Path:
    """jsonl of {"text", "label"}: of one to twelve words; the label is the first word's colour."""
    rng = random.Random(seed)
    with path.open("w") as file:
        for i in range(rows):
            colour = ("red", "green", "blue")[i % 3]
            words = [colour, *rng.choices(WORDS, k=rng.randrange(12)), WORDS[i % len(WORDS)], WORDS[i // len(WORDS) % len(WORDS)]]
            file.write(json.dumps({"text": " ".join(words), "label": colour}) + "\n")
    return path


def dialogues(path: Path, rows: int = 45, seed: int = 0) -> Path:
    """jsonl of {"messages"}: one to three exchanges; answers of one to ten words, so that supervision is uneven."""
    rng = random.Random(seed)
    with path.open("w") as file:
        for i in range(rows):
            messages = []
            for _ in range(rng.randrange(1, 4)):
                messages.append({"role": "user", "content": " ".join(rng.choices(WORDS, k=rng.randrange(1, 8)))})
                messages.append({"role": "assistant", "content": " ".join(rng.choices(WORDS, k=rng.choice([1, 1, 10])))})
            messages[0]["content"] += f" {WORDS[i % len(WORDS)]} {WORDS[i // len(WORDS) % len(WORDS)]}"
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def run_workers(function: Callable[..., Any], world_size: int, *arguments: Any, timeout_s: float = 300.0) -> list[Any]:
    """`function(group, *arguments)` in `world_size` real processes joined by gloo; their results by rank.

    The function stands at the top of its file. A worker that raises fails the test with its own traceback.
    """
    import tempfile

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "call").write_bytes(pickle.dumps((function.__code__.co_filename, function.__name__, arguments)))
        command = [sys.executable, __file__, str(folder), str(world_size), str(port)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "DS_ACCELERATOR": "cpu"}
        environment |= {"TRANSFORMERS_VERBOSITY": "error", "WANDB_SILENT": "true"}
        workers = [
            subprocess.Popen([*command, str(rank)], env=environment, stdout=(folder / f"log{rank}").open("wb"), stderr=subprocess.STDOUT)
            for rank in range(world_size)
        ]
        try:
            for worker in workers:
                worker.wait(timeout_s)
        finally:
            for worker in workers:
                worker.kill()
        results = []
        for rank in range(world_size):
            answer = folder / f"result{rank}"
            if not answer.exists():
                raise AssertionError(f"worker {rank} died:\n" + (folder / f"log{rank}").read_text(errors="replace")[-3000:])
            good, value = pickle.loads(answer.read_bytes())
            if not good:
                raise AssertionError(f"worker {rank}:\n{value}")
            results.append(value)
        return results


def _main() -> None:
    import importlib.util

    folder, world_size, port, rank = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    file, name, arguments = pickle.loads((folder / "call").read_bytes())
    try:
        from trainers import distributed

        group = distributed.join(rank, world_size, rank, "127.0.0.1", port, cpus=1, gpu=False, timeout_s=120)
        spec = importlib.util.spec_from_file_location("called", file)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        result: tuple[bool, Any] = (True, getattr(module, name)(group, *arguments))
        distributed.leave()
    except BaseException:
        result = (False, traceback.format_exc())
    partial = folder / f"partial{rank}"
    partial.write_bytes(pickle.dumps(result))
    partial.rename(folder / f"result{rank}")


if __name__ == "__main__":
    _main()
