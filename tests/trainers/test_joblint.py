"""Jobs, right and wrong: the exact line for each mistake, and for thousands of random ones a line and never a traceback."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainers import yamlfile
from trainers.errors import UserError
from trainers.job import Job, job_schema
from trainers.joblint import load_job

pytestmark = pytest.mark.unit

BASE = """\
task: text-classification
model: google-bert/bert-base-uncased
data:
  train: rows.csv
"""
FULL = """\
name: tickets
task: text-classification
model: ./model
seed: 7
data:
  train: [a.csv, package:some_package/b.csv]
  test: c.jsonl
  text: body
  label: queue
  split: {validation: 0.2}
  clean: {duplicates: keep, missing: error}
  max_length: 128
train:
  epochs: 1.5
  global_batch_size: 64
  micro_batch_size: 8
  optimizer: {name: adamw, lr: 1e-4, betas: [0.8, 0.99]}
  schedule: {name: cosine, warmup_steps: 10}
  precision: bf16
  lora: {rank: 8, targets: [query, value]}
  early_stopping: {metric: accuracy, patience: 2}
  evaluate_every: 50
scale: {workers: 2, zero: 2}
monitor: {wandb: {project: tickets, mode: offline}}
test: {baseline: false}
"""


def load(folder: Path, text: str, *overrides: str) -> Job:
    path = folder / "job.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    return load_job(path, overrides)[0]


def complaint(folder: Path, text: str, *overrides: str) -> str:
    """What `load_job` says, with the folder left out."""
    with pytest.raises(UserError) as caught:
        load(folder, text, *overrides)
    assert caught.value.exit_code == 2
    return str(caught.value).replace(f"{folder}/", "")


def test_defaults_and_values(tmp_path: Path) -> None:
    job = load(tmp_path, BASE)
    assert (job.name, job.train.optimizer.lr, job.scale.workers, job.monitor.wandb.mode) == ("job", 3e-5, 1, "auto")
    assert job.data.train == str(tmp_path / "rows.csv"), "relative to the job's folder"
    assert load(tmp_path, BASE, "data.train=a/../../*.csv").data.train == str(tmp_path.parent / "*.csv")
    job = load(tmp_path, FULL)
    assert (job.train.optimizer.lr, job.train.optimizer.betas, job.scale.zero) == (1e-4, (0.8, 0.99), 2)
    assert job.data.train == [str(tmp_path / "a.csv"), "package:some_package/b.csv"]
    assert job.model == str(tmp_path / "model")


def test_a_hub_id_stays_unless_such_a_folder_exists(tmp_path: Path) -> None:
    assert load(tmp_path, BASE).model == "google-bert/bert-base-uncased"
    (tmp_path / "google-bert" / "bert-base-uncased").mkdir(parents=True)
    assert load(tmp_path, BASE).model == str(tmp_path / "google-bert" / "bert-base-uncased")


@pytest.mark.parametrize("text", [BASE, FULL, FULL + "# end\n"])
def test_a_resolved_job_loads_to_an_equal_one(tmp_path: Path, text: str) -> None:
    job = load(tmp_path, text, 'name="1e-4"', "data.text='off'")
    again = load(tmp_path, yamlfile.dump(job.resolved()))
    assert again == job and again.resolved() == job.resolved()


@pytest.mark.parametrize("value", ["off", "'off'", "{mode: off}", "{mode: 'off'}", "false"])
def test_wandb_off_in_every_spelling(tmp_path: Path, value: str) -> None:
    assert load(tmp_path, BASE + f"monitor: {{wandb: {value}}}\n").monitor.wandb.mode == "off"
    assert load(tmp_path, BASE, f"monitor.wandb={value}").monitor.wandb.mode == "off"


MISTAKES = [
    ("trian: {epochs: 1}", "job.yaml:5: trian: is not a known key; did you mean train?"),
    (
        "train:\n  optimizer:\n    learning_rate: 1",
        "job.yaml:7: train.optimizer.learning_rate: is not a known key; known here: name, lr, weight_decay, betas, eps, momentum",
    ),
    ("train: {lora: {rnak: 8}}", "job.yaml:5: train.lora.rnak: is not a known key; did you mean rank?"),
    ("train:\n  epochs: three", "job.yaml:6: train.epochs: 'three' is not right; it must be a number"),
    ("train:\n  epochs: yes", "job.yaml:6: train.epochs: true is not right; it must be a number"),
    ("train:\n  epochs: 0", "job.yaml:6: train.epochs: 0 is not right; it must be above 0"),
    ("train:\n  epochs: .inf", "job.yaml:6: train.epochs: inf is not right; it must be a finite number"),
    ("train: {max_steps: 1.5}", "job.yaml:5: train.max_steps: 1.5 is not right; it must be a whole number"),
    ("train: {optimizer: {lr: 100}}", "job.yaml:5: train.optimizer.lr: 100 is not right; it must be at most 10"),
    ("train: {optimizer: {name: adan}}", "job.yaml:5: train.optimizer.name: 'adan' is not right; it must be adamw, adam or sgd"),
    ("train: {optimizer: {betas: [0.9]}}", "job.yaml:5: train.optimizer.betas: [0.9] has too few values"),
    ("train: {optimizer: {betas: [0.9, x]}}", "job.yaml:5: train.optimizer.betas.1: 'x' is not right; it must be a number"),
    ("train: {micro_batch_size: some}", "job.yaml:5: train.micro_batch_size: 'some' is not right; it must be a whole number or auto"),
    ("train: 3", "job.yaml:5: train: 3 is not right; it must be a block of keys"),
    ("train:", "job.yaml:5: train: null is not right; it must be a block of keys"),
    ("name: a/b", "job.yaml:5: name: 'a/b' is not right; it must be 1 to 64 letters, digits, dots, dashes or underscores, the first a letter or digit"),
    ("monitor: {wandb: on}", "job.yaml:5: monitor.wandb: true is not right; it must be a block of keys"),
    ('"a\\nb": 1', "job.yaml:5: a\\nb: is not a known key; known here: name, task, model, seed, data, train, scale, monitor, test"),
    (
        "train: {micro_batch_size: 5}\nscale: {workers: 2}",
        "job.yaml:5: train.micro_batch_size: 5 rows × 2 workers = 10 does not divide global_batch_size 32; "
        "take global_batch_size 30, or micro_batch_size: auto",
    ),
    (
        "scale: {workers: 64}",
        "job.yaml:1: train.global_batch_size: 32 rows cannot feed 64 workers; at least one row a worker",
    ),
    (
        "train: {early_stopping: {metric: acuracy}}",
        "job.yaml:5: train.early_stopping.metric: 'acuracy' is not one of loss, accuracy, macro_f1; did you mean accuracy?",
    ),
    ("scale: {zero: 1, offload: all}", "job.yaml:5: scale.offload: `all` moves weights, which zero 1 does not shard; take zero: 3, or offload: optimizer"),
    ("scale: {gpus_per_worker: 0}\ntrain: {precision: fp16}", "job.yaml:6: train.precision: fp16 needs GPUs; take bf16 or fp32"),
    ("train: {optimizer: {momentum: 0.9}}", "job.yaml:5: train.optimizer.momentum: is for sgd; adamw has betas"),
]


@pytest.mark.parametrize(("extra", "message"), MISTAKES)
def test_each_mistake_is_one_line_with_its_place(tmp_path: Path, extra: str, message: str) -> None:
    assert complaint(tmp_path, BASE + extra) == message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("task: text-classification\n", "", "job.yaml:1: task: is missing; choose one of causal-lm, text-classification"),
        ("text-classification", "text-clasification", "job.yaml:1: task: 'text-clasification' is not a task; did you mean text-classification?"),
        ("text-classification", "[x]", "job.yaml:1: task: ['x'] is not a task"),
        ("model: google-bert/bert-base-uncased\n", "", "job.yaml:1: model: is missing; it has no default"),
        ("google-bert/bert-base-uncased", "''", "job.yaml:2: model: '' is not right; it must be text that is not empty"),
        ("  train: rows.csv\n", "  text: body\n", "job.yaml:3: data.train: is missing; it has no default"),
        ("  train: rows.csv\n", "  trian: rows.csv\n", "job.yaml:4: data.trian: is not a known key; did you mean train?"),
        ("rows.csv", "[]", "job.yaml:4: data.train: [] is not right; it must be text or a list of at least 1"),
        (
            "rows.csv",
            "rows.csv\n  split: {validation: 0.6, test: 0.5}",
            "job.yaml:5: data.split: validation and test together take 1.1 of the rows; leave some for training",
        ),
    ],
)
def test_mistakes_in_what_every_job_has(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert complaint(tmp_path, BASE.replace(old, new, 1)) == message


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.optimiser.lr=1e-4", "train.optimiser: is not a known key; did you mean optimizer?"),
        ("train.optimizer.lr=fast", "train.optimizer.lr: 'fast' is not right; it must be a number"),
        (
            "train.micro_batch_size=5",
            "train.micro_batch_size: 5 rows × 1 workers = 5 does not divide global_batch_size 32; take global_batch_size 30, or micro_batch_size: auto",
        ),
        ("task=causal", "task: 'causal' is not a task; did you mean causal-lm?"),
        ("task.x=1", "task is 'text-classification' and has no keys below it"),
        ("epochs", "write --set KEY=VALUE, for example --set train.optimizer.lr=1e-4"),
    ],
)
def test_mistakes_on_the_command_line_blame_the_argument(tmp_path: Path, assignment: str, message: str) -> None:
    assert complaint(tmp_path, BASE, assignment) == f"--set {assignment}: {message}"


def test_schema_accepts_and_lists_what_jobs_may_say() -> None:
    schema = job_schema()
    assert json.loads(json.dumps(schema)) == schema
    tasks = {alternative["properties"]["task"]["const"] for alternative in schema["oneOf"]}
    assert tasks == {"causal-lm", "text-classification"}
    assert all(set(alternative["required"]) == {"task", "model", "data"} for alternative in schema["oneOf"])


# --- random mistakes -------------------------------------------------------------------------------------------------

JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["auto", "~nobody/x", "/" * 9, "x" * 400, "package:", "1e-4"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
EXTREME = st.sampled_from([0, -1, 2**31, 2**63, -(2**70), 1e308, -1e-300, float("inf"), float("nan"), 0.1, 1, "", [], {}, None, True])
PATHS = [(key,) for key in yaml.safe_load(FULL)]
PATHS += [(a, b) for a, block in yaml.safe_load(FULL).items() if isinstance(block, dict) for b in block]
PATHS += [(a, b, c) for a, b in [p for p in PATHS if len(p) == 2] if isinstance(yaml.safe_load(FULL)[a][b], dict) for c in yaml.safe_load(FULL)[a][b]]


@st.composite
def mutated_values(draw: st.DrawFn) -> str:
    """A valid job with one to three keys deleted, renamed, doubled in depth or given another value."""
    values: Any = copy.deepcopy(yamlfile.parse(FULL, "full").values)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(PATHS))
        block = values
        for part in path[:-1]:
            block = block.get(part) if isinstance(block, dict) else None
        if not isinstance(block, dict) or path[-1] not in block:
            continue
        value = block[path[-1]]
        match draw(st.sampled_from(["delete", "rename", "junk", "extreme", "nest", "text", "list", "move"])):
            case "delete":
                del block[path[-1]]
            case "rename":
                name = path[-1]
                at = draw(st.integers(0, len(name)))
                block[name[:at] + draw(st.sampled_from(["", "x", ".", "\n", "é", "_"])) + name[at + 1 :]] = block.pop(name)
            case "junk":
                block[path[-1]] = draw(JUNK)
            case "extreme":
                block[path[-1]] = draw(EXTREME)
            case "nest":
                block[path[-1]] = {path[-1]: value}
            case "text":
                block[path[-1]] = str(value)
            case "list":
                block[path[-1]] = [value]
            case "move":
                values[draw(st.sampled_from(PATHS))[-1]] = value
    return json.dumps(values, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1])))  # JSON is YAML, and quick to write


@st.composite
def mutated_text(draw: st.DrawFn) -> str:
    """A valid job's text with characters or lines deleted, doubled, swapped or put in."""
    text = draw(st.sampled_from([BASE, FULL]))
    for _ in range(draw(st.integers(1, 4))):
        lines = text.split("\n")
        at, other, where = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, len(text)))
        match draw(st.sampled_from(["cut", "double", "insert", "line out", "line twice", "swap", "indent", "truncate"])):
            case "cut":
                text = text[:where] + text[where + draw(st.integers(1, 9)) :]
            case "double":
                text = text[:where] + text[max(0, where - draw(st.integers(1, 9))) :]
            case "insert":
                text = (
                    text[:where]
                    + draw(
                        st.text(max_size=3)
                        | st.sampled_from([*":-[]{}&*!|>'\"%@`#,?\t\n~=<", "<<: ", "!!int ", "!!bool ", "!!binary ", "&a ", "*a ", "---\n", "\\ud800"])
                    )
                    + text[where:]
                )
            case "line out":
                text = "\n".join(lines[:at] + lines[at + 1 :])
            case "line twice":
                text = "\n".join([*lines[:other], lines[at], *lines[other:]])
            case "swap":
                lines[at], lines[other] = lines[other], lines[at]
                text = "\n".join(lines)
            case "indent":
                lines[at] = draw(st.sampled_from(["  ", " ", "\t", "- "])) + lines[at]
                text = "\n".join(lines)
            case "truncate":
                text = text[:where]
    return text


OVERRIDES = st.lists(
    st.tuples(
        st.sampled_from([".".join(path) for path in PATHS] + ["x", "train.", "", "data.train.0"]), JUNK.map(str) | EXTREME.map(str) | st.text(max_size=5)
    ).map("=".join)
    | st.text(max_size=6),
    max_size=2,
)
MANY = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


def job_or_one_line(folder: Path, text: str, *overrides: str) -> None:
    try:
        job = load(folder, text, *overrides)
    except UserError as error:
        assert len(str(error).splitlines()) == 1 and str(error).isprintable()
    else:
        assert isinstance(job, Job)
        json.dumps(job.resolved(), allow_nan=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jobs")


@settings(MANY, max_examples=500)
@given(text=mutated_values())
def test_mutated_values_give_a_job_or_one_line(folder: Path, text: str) -> None:
    job_or_one_line(folder, text)


@settings(MANY, max_examples=1100)
@given(text=mutated_text())
def test_mutated_text_gives_a_job_or_one_line(folder: Path, text: str) -> None:
    job_or_one_line(folder, text)


@settings(MANY, max_examples=500)
@given(overrides=OVERRIDES)
def test_random_overrides_give_a_job_or_one_line(folder: Path, overrides: list[str]) -> None:
    job_or_one_line(folder, BASE, *overrides)
