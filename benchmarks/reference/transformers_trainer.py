"""The same fine-tuning with transformers' Trainer, as its users write it: DDP, bf16 autocast, a padding collator.

    torchrun --nproc-per-node=2 benchmarks/reference/transformers_trainer.py CONFIG.json

It reads token rows from Parquet (`input_ids`, `supervised`; labels are -100 where a token is not supervised) in the order
that the configuration gives, and prints a JSON line a step: its seconds from the end of the step before (the loading of
the batch included), its loss and its supervised tokens.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

CONFIG: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())


def rows() -> list[dict[str, list[int]]]:
    """`input_ids` and `labels` of the rows to train on, in order."""
    table = parquet.read_table(CONFIG["rows"], columns=["input_ids", "supervised"]).take(CONFIG["order"]).to_pylist()
    return [{"input_ids": row["input_ids"], "labels": np.where(row["supervised"], row["input_ids"], -100).tolist()} for row in table]


class Report(TrainerCallback):
    """One JSON line a step, from rank 0."""

    def __init__(self, supervised: list[int], batch_size: int) -> None:
        self.supervised, self.batch_size = supervised, batch_size
        self.last, self.seconds = 0.0, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.last = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        now = time.perf_counter()
        self.last, self.seconds = now, now - self.last

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **rest: Any) -> None:
        if state.is_world_process_zero and logs and "loss" in logs:
            first = (state.global_step - 1) * self.batch_size
            count = sum(self.supervised[first : first + self.batch_size])
            print(json.dumps({"kind": "step", "step": state.global_step, "loss": logs["loss"], "step_s": self.seconds, "tokens": count}), flush=True)


def main() -> None:
    torch.set_num_threads(CONFIG["threads"])
    data = rows()
    supervised = [sum(label != -100 for label in row["labels"][1:]) for row in data]
    tokenizer = AutoTokenizer.from_pretrained(CONFIG["model"])
    model = AutoModelForCausalLM.from_pretrained(CONFIG["model"], dtype=torch.float32)
    model.config.use_cache = False
    arguments = TrainingArguments(
        output_dir=CONFIG["output"],
        use_cpu=True,
        ddp_backend="gloo",
        bf16=True,
        per_device_train_batch_size=CONFIG["global_batch_size"] // CONFIG["workers"],
        max_steps=CONFIG["max_steps"],
        learning_rate=CONFIG["lr"],
        weight_decay=CONFIG["weight_decay"],
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        train_sampling_strategy="sequential",  # the rows come shuffled already, in the order of both sides
        logging_steps=1,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        seed=CONFIG["seed"],
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=data,
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
        processing_class=tokenizer,
        callbacks=[Report(supervised, CONFIG["global_batch_size"])],
    )
    trainer.train()
    trainer.save_model()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
