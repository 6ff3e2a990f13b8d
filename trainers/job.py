"""What job.yaml may say: every key, its default and its bounds, with nothing heavy imported.

The classes are frozen and refuse unknown keys. Each task adds its own keys to `data:` (its `Data` class, in the task's
file), so the schema of a job depends on its task; `job_class` puts the two together. `trainers.joblint` turns what
pydantic says into one line with file, line and the nearest known name.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator

from trainers import tasks

Auto = Literal["auto"]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
Paths = Text | Annotated[list[Text], Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Config(BaseModel):
    """Base of every part of a job: frozen, strict about types, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Split(Config):
    """Fractions of `data.train` that are held out, chosen by a hash of each row's content."""

    validation: Fraction = 0.1
    """Share held out to watch training; ignored when `data.validation` is given."""
    test: Fraction = 0.1
    """Share held out for the final test; ignored when `data.test` is given."""


class Clean(Config):
    """What is done about bad rows, before the split. Dropped rows are counted by reason."""

    duplicates: Literal["drop", "keep"] = "drop"
    """Rows equal to an earlier one; a training row that also stands in validation or test counts too."""
    missing: Literal["drop", "error"] = "drop"
    """Rows whose text or label is null or blank."""
    conflicts: Literal["drop", "keep"] = "drop"
    """Rows whose equal texts carry different labels: all of them go."""
    near_duplicates: Literal["drop", "keep"] = "drop"
    """Rows nearly equal to an earlier one of the same label, by MinHash; `keep` does not look for them."""
    similarity: Annotated[float, Field(ge=0.8, lt=1)] = 0.9
    """Jaccard index of two texts' 5-byte shingles from which they count as near duplicates."""
    encoding: Literal["drop", "keep"] = "drop"
    """Rows with replacement or control characters: text that was read in another encoding than it was written in."""


class Cache(Config):
    """Prepared rows kept on each node's own disk, for buckets that are slow or dear. What is oldest in use goes first."""

    dir: Annotated[str, Field(pattern=r"^[/~]")] = "/tmp"
    """Folder of every node, from / or ~; the cache keeps to a folder of its own inside."""
    gigabytes: Annotated[float, Field(gt=0)] = 20.0


class Data(Config):
    """Where the rows come from. Tasks add their own columns to this."""

    train: Paths
    """Parquet, jsonl or csv: a file, a folder, a glob, or `package:NAME/PATH` inside an installed package."""
    validation: Paths | None = None
    """Rows to watch training with, when they are in files of their own."""
    test: Paths | None = None
    """Rows for the final test, when they are in files of their own."""
    prepared: Text | None = None
    """Where prepared rows are kept: a folder, or s3://, gs://, az://, from which workers then stream. Default: `prepared/` in the storage."""
    cache: Cache | None = None
    """Off unless given."""
    split: Split = Split()
    group_by: Text | None = None
    """Column of a key (a user, a document) whose rows never stand on two sides of a split."""
    clean: Clean = Clean()
    on_bad_row: Literal["stop", "drop"] = "stop"
    """A row that cannot be read (broken JSON, another type than the rest, a dialogue without roles): end with its place, or leave it out."""
    max_bad_rows: Fraction = 0.01
    """Share of the rows that `on_bad_row: drop` may leave out; more of them ends the preparation."""
    shuffle_window: Annotated[int, Field(ge=1, le=1 << 20)] = 64
    """Megabytes of rows (2 bytes a token for vocabularies below 65,536, else 4) that are mixed at once, over all workers; twice as much is held in memory."""
    max_length: Annotated[int, Field(ge=2)] | Auto = "auto"
    """Tokens a row may have; longer ones are cut, and counted. `auto`: what the model allows, at most 512."""


class Optimizer(Config):
    """The optimizer, after Kingma & Ba 2015 and Loshchilov & Hutter 2019."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0, le=10)] = 3e-5
    """Peak learning rate, reached after warm-up."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Not applied to norms and biases (parameters of fewer than two dimensions)."""
    betas: tuple[Fraction, Fraction] = Field(default=(0.9, 0.999), strict=False)
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    momentum: Fraction = 0.0
    """For sgd."""


class Schedule(Config):
    """How the learning rate moves: up linearly over the warm-up, then down by `name`."""

    name: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: Fraction = 0.1
    """Share of all steps spent warming up; ignored when `warmup_steps` is given."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    final: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Where the decay ends, as a share of the peak."""


class Lora(Config):
    """Low-rank adapters (Hu et al. 2021) instead of full fine-tuning; presence of the block turns them on."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    alpha: Annotated[int, Field(ge=1, le=4096)] = 32
    """The update is scaled by alpha / rank."""
    dropout: Fraction = 0.0
    targets: list[str] | Literal["all-linear"] = "all-linear"
    """Names of the modules that get an adapter."""


class EarlyStopping(Config):
    """Stop when a validation metric has not improved for `patience` evaluations; the best weights are kept."""

    metric: str = "loss"
    """`loss`, or a metric that the task reports."""
    patience: Annotated[int, Field(ge=1)] = 3
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """An improvement smaller than this does not count."""


class Train(Config):
    """The training loop."""

    epochs: Annotated[float, Field(gt=0, le=10_000)] = 3.0
    """Passes over the training rows; fractions are allowed."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many optimizer steps, whatever `epochs` says."""
    global_batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 32
    """Rows an optimizer step sees over all workers; never changes with their number."""
    micro_batch_size: Annotated[int, Field(ge=1)] | Auto = "auto"
    """Rows a worker puts through the model at once; the rest is gradient accumulation."""
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16 and fp16 keep fp32 master weights; fp16 (with dynamic loss scaling) needs GPUs."""
    lora: Lora | None = None
    dropout: Fraction | None = None
    """Overrides every dropout of the model's own configuration."""
    label_smoothing: Fraction = 0.0
    gradient_clipping: Annotated[float, Field(ge=0)] = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    evaluate_every: Annotated[int, Field(ge=1)] | Literal["epoch"] = "epoch"
    """Steps between evaluations on the validation rows."""
    early_stopping: EarlyStopping | None = None


class Scale(Config):
    """On how many workers, and how the model's state is divided between them."""

    workers: Annotated[int, Field(ge=1, le=10_000)] = 1
    zero: Literal[0, 1, 2, 3] | Auto = "auto"
    """DeepSpeed's ZeRO stage: 0 copies, 1 shards optimizer state, 2 gradients too, 3 weights too."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """Move optimizer state (and with `all`, weights) from GPU to main memory."""
    cpus_per_worker: Annotated[int, Field(ge=1)] | Auto = "auto"
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] | Auto = "auto"
    """One GPU a worker where there are GPUs, else none."""


class Wandb(Config):
    """Weights & Biases. The key comes from WANDB_API_KEY or `wandb login`, never from this file."""

    project: str = "muster"
    entity: str | None = None
    mode: Literal["auto", "online", "offline", "off"] = "auto"
    """`auto`: online with a key, offline without."""

    @field_validator("mode", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        """YAML 1.1 reads `off` as false."""
        return "off" if value is False else value


class Monitor(Config):
    """Where the numbers go, besides metrics.jsonl."""

    wandb: Wandb = Wandb()
    """A block of keys, or just `off`."""

    @field_validator("wandb", mode="before", json_schema_input_type=Wandb | Literal["off", False])
    @classmethod
    def _off(cls, value: Any) -> Any:
        """YAML 1.1 reads `off` as false."""
        return Wandb(mode="off") if value is False or value == "off" else value


class Test(Config):
    """What is measured on the held-out test rows, after training."""

    baseline: bool = True
    """Also measure the model as it was before fine-tuning."""


class Job(Config):
    """One fine-tuning job: what job.yaml says, defaults filled in."""

    name: Name
    """Names the run's folder; the file's name where it is not given."""
    task: str
    model: Text
    """Hub id, folder, or `package:NAME/PATH`; a path that ends in .gguf is read as GGUF."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: Data
    train: Train = Train()
    scale: Scale = Scale()
    monitor: Monitor = Monitor()
    test: Test = Test()

    def resolved(self) -> dict[str, Any]:
        """The whole job as plain values, defaults included, ready for YAML or JSON."""
        return self.model_dump(mode="json")

    def __reduce__(self) -> Any:
        return _rebuilt, (self.resolved(),)


@cache
def job_class(task: str) -> type[Job]:
    """The class of jobs of one task: `Job` with the task's own `data:` keys. `task` must be one of `tasks.names()`."""
    return create_model("Job", __base__=Job, task=(Literal[task], ...), data=(tasks.data_class(task), ...))  # type: ignore[arg-type]


def _rebuilt(values: dict[str, Any]) -> Job:
    return job_class(values["task"]).model_validate(values)


def job_schema() -> dict[str, Any]:
    """JSON Schema of job.yaml for editors: one alternative a task."""
    alternatives = [job_class(task).model_json_schema() for task in tasks.names()]
    definitions: dict[str, Any] = {}
    for alternative in alternatives:
        alternative["required"] = [key for key in alternative["required"] if key != "name"]
        definitions |= alternative.pop("$defs", {})
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "job.yaml", "oneOf": alternatives, "$defs": definitions}
