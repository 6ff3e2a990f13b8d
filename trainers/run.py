"""The driver's side of a run: prepare the data while Ray starts, run the workers, tell what happens, say why it failed.

Workers write metrics.jsonl; this side reads it as it grows and passes it on, so progress costs training nothing. Ctrl-C
puts a `stop` file into the run's folder, which the workers see before their next step; a second one ends them at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trainers import embedded, entry, provenance
from trainers.callbacks.wandb import mode as wandb_mode
from trainers.data.prepare import prepare
from trainers.data.prepared import Prepared
from trainers.errors import MusterError, RunError, Stopped, UserError
from trainers.inspection import inspect
from trainers.job import Job
from trainers.model_source import ModelSource, locate
from trainers.runfolder import RunFolder
from trainers.setup import Setup
from trainers.yamlfile import Document

Listen = Callable[[dict[str, Any]], None]
POLL_S = 0.1


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `finished` or `stopped`."""

    state: str
    run: RunFolder
    report: dict[str, Any]


def train(job: Job, document: Document, storage: Path, listen: Listen) -> Outcome:
    """Runs a job on this machine, from the data to the tested model.

    Args:
        document: where the job's keys stand, for messages.
        listen: hears every event (see `launcher.cli.display`), in this thread.

    Raises:
        UserError: the job cannot work with this data, model or machine; nothing was left behind.
        RunError: the run started and failed; its folder tells.
    """
    storage = storage.expanduser().resolve()
    inspect(job, document)
    writable(storage)
    workers, cpus = job.scale.workers, _cpus(job)
    source = locate(job.model)
    interrupts = _Interrupts()
    try:
        with interrupts, ThreadPoolExecutor(1) as pool:
            ray_ready = pool.submit(embedded.start, workers * cpus)
            try:
                with document.blame("data.train"):
                    source, prepared = inputs(job, source, storage, listen, ray_ready.result)
                ray_ready.result()
                interrupts.listen()  # Ray has put handlers of its own in place
            finally:
                ray_ready.exception()  # never leave Ray half-started behind
            gpu = _gpu(job)
            folder = RunFolder.create(storage, job.name, job.resolved())
            setup = Setup(job=job.resolved(), folder=str(folder.path), prepared=prepared.location, model=source, wandb=wandb_mode(job), cpus=cpus, gpu=gpu)
            folder.update(**provenance.facts(job, prepared.manifest, setup.wandb))
            listen({"kind": "run", "run": folder.id, "folder": str(folder.path)})
            for note in _notes(prepared, workers * cpus):
                listen({"kind": "note", "text": note})
            return _watch(setup, folder, listen, interrupts)
    finally:
        embedded.stop()


def prepare_only(job: Job, document: Document, storage: Path, listen: Listen) -> tuple[ModelSource, Prepared]:
    """What `train` would begin with; starts Ray, and ends it, if the source is large. Raises UserError."""
    inspect(job, document)
    writable(storage)
    with contextlib.ExitStack() as stack, document.blame("data.train"):

        def gather() -> None:
            stack.callback(embedded.stop)
            embedded.start(os.cpu_count() or 1)

        return inputs(job, locate(job.model), storage, listen, gather)


def inputs(job: Job, source: ModelSource, storage: Path, listen: Listen, gather: Callable[[], Any]) -> tuple[ModelSource, Prepared]:
    """The model in a form that loads fast, and the prepared data, made now if need be; `gather` sees to it that Ray runs."""

    def say(text: str) -> None:
        listen({"kind": "stage", "text": text, "time": time.time()})

    if source.gguf_file:
        from trainers.model import unpack_gguf

        target = storage / "models" / provenance.digest(source.path, source.gguf_file, source.signature())
        if not target.is_dir():
            say("unpacking the GGUF model, once")
        source = unpack_gguf(source, target)
    try:
        return source, prepare(job, source, storage, say, gather)
    except KeyboardInterrupt:
        raise Stopped("stopped; what was prepared so far is kept, and the same command goes on from there") from None


def _watch(setup: Setup, folder: RunFolder, listen: Listen, interrupts: _Interrupts) -> Outcome:
    """Starts the workers and passes their records on until they are done."""
    listen({"kind": "stage", "text": f"starting {setup.job['scale']['workers']} workers", "time": time.time()})
    folder.update(state="running")
    failure: list[BaseException] = []
    resources = {"CPU": float(setup.cpus)} | ({"GPU": 1.0} if setup.gpu else {})
    thread = threading.Thread(
        target=_catching(failure, partial(embedded.fit, entry.run, {"setup": setup}, setup.job["scale"]["workers"], resources, "ray", str(folder.path))),
        daemon=True,
    )
    thread.start()
    position = 0
    asked = False
    while True:
        alive = thread.is_alive()
        records, position = folder.records(position)
        for record in records:
            listen(record)
        if not alive:
            break
        if interrupts.count and not asked:
            asked = True
            folder.stop_request.touch()
            listen({"kind": "stopping"})
        if interrupts.count > 1:
            folder.update(state="stopped", ended=time.time())
            listen({"kind": "end", "state": "stopped"})
            return Outcome("stopped", folder, {})
        thread.join(POLL_S)
    if failure:
        folder.update(state="failed", ended=time.time())
        raise _cause(folder, failure[0])
    report = folder.report()
    folder.update(state=report["state"], ended=time.time(), steps=report["steps"])
    listen({"kind": "end", "state": report["state"]})
    return Outcome(report["state"], folder, report)


def _cause(folder: RunFolder, error: BaseException) -> MusterError:
    """The first worker's own account of the failure; where none could write one, what Ray saw of its death."""
    accounts = sorted((json.loads(path.read_text()) for path in folder.logs.glob("error-*.json")), key=lambda a: a["time"])
    (folder.logs / "driver.log").write_text(repr(error) + "\n", encoding="utf-8")
    if accounts:
        first = accounts[0]
        if first["exit_code"] == UserError.exit_code:
            return UserError(first["message"].removeprefix(f"{first['key']}: "), key=first["key"])
        return RunError(f"worker {first['rank']}: {first['message']} (log: {folder.logs}/worker-{first['rank']}.log)")
    deaths = getattr(error, "worker_failures", None) or {}
    for rank, death in sorted(deaths.items()):
        text = str(death)
        memory = "OutOfMemory" in type(death).__name__ or ("memory" in text.lower() and "oom" in text.lower())
        why = "out of memory" if memory else "killed from outside, most often for want of memory"
        return RunError(f"worker {rank} died without a word: {why}; lower train.micro_batch_size or raise scale.zero (log: {folder.logs}/worker-{rank}.log)")
    return RunError(f"Ray could not run the workers: {str(error).splitlines()[0]} (log: {folder.logs}/driver.log)")


def _notes(prepared: Prepared, cpus: int) -> Iterator[str]:
    """What the user should know before the first step."""
    manifest = prepared.manifest
    rows = prepared.rows
    yield f"{rows['train']} rows to train on, {rows['validation']} to validate, {rows['test']} to test" + (
        f", {len(prepared.labels)} labels" if prepared.labels else ""
    )
    if manifest["dropped"]:
        yield "dropped " + ", ".join(f"{count} ({reason})" for reason, count in manifest["dropped"].items())
    if manifest["cut"]:
        total = sum(manifest["examples"].values())
        yield f"{manifest['cut']} of {total} rows are longer than {manifest['max_length']} tokens and were cut"
    here = os.cpu_count() or 1
    if cpus > here:
        yield f"the workers want {cpus} CPUs and this machine has {here}: they will take turns"


def writable(storage: Path) -> None:
    """Raises UserError unless a file can be made in the storage."""
    probe = storage / f".probe-{os.getpid()}"
    try:
        storage.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to {storage}: {error.strerror}; choose another folder", where="--storage") from None


def _cpus(job: Job) -> int:
    """CPUs of one worker."""
    if job.scale.cpus_per_worker != "auto":
        return job.scale.cpus_per_worker
    return max(1, (os.cpu_count() or 1) // job.scale.workers)


def _gpu(job: Job) -> bool:
    """Whether workers get a GPU each; checks the keys that depend on it."""
    wanted, there = job.scale.gpus_per_worker, embedded.gpus()
    if wanted == 0 or (wanted == "auto" and there == 0):
        if job.train.precision == "fp16":
            raise UserError("fp16 needs GPUs, and there are none; take bf16 or fp32", key="train.precision")
        if job.scale.offload != "none":
            raise UserError("moves state from GPU to main memory, and there are no GPUs; take offload: none", key="scale.offload")
        return False
    if there < job.scale.workers:
        raise UserError(
            f"{job.scale.workers} workers want a GPU each and this machine has {there}; take fewer, or scale.gpus_per_worker: 0", key="scale.workers"
        )
    return True


def _catching(failure: list[BaseException], call: Callable[[], None]) -> Callable[[], None]:
    def target() -> None:
        try:
            call()
        except BaseException as error:
            failure.append(error)

    return target


class _Interrupts:
    """What Ctrl-C (and SIGTERM) do: KeyboardInterrupt at first; from `listen` on they are counted, and nothing is raised in the middle of something."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> _Interrupts:
        self._before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def listen(self) -> None:
        """Counts from here on."""
        for number in self._before:
            signal.signal(number, self._hear)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: Any) -> None:
        self.count += 1
