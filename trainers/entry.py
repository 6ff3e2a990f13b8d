"""What a Ray Train worker runs: its own log file, the process group, the loop; and its own account of a failure."""

from __future__ import annotations

import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from trainers.errors import MusterError
from trainers.runfolder import RunFolder, write_json


def run(config: dict[str, Any]) -> None:
    """Entry of every worker; `config["setup"]` is a `trainers.session.Setup`."""
    import ray.train

    rank = ray.train.get_context().get_world_rank()
    setup = config["setup"]
    folder = RunFolder(Path(setup.folder))
    _log_to(folder.logs / f"worker-{rank}.log")
    os.environ["LOCAL_WORLD_SIZE"] = str(ray.train.get_context().get_local_world_size())
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if setup.gpu else "cpu")
    try:
        _train(setup)
    except BaseException as error:
        traceback.print_exc()
        write_json(folder.logs / f"error-{rank}.json", account(error, rank))
        raise
    finally:
        sys.stdout.flush()


def _train(setup: Any) -> None:
    from trainers import distributed
    from trainers.worker import train

    try:
        train(setup, distributed.join_ray(cpus=setup.cpus, gpu=setup.gpu))
    finally:
        distributed.leave()


def account(error: BaseException, rank: int) -> dict[str, Any]:
    """What the driver needs to tell the failure: who, when, and the cause in one line. `ours` marks errors meant for the user."""
    text = str(error) if isinstance(error, MusterError) else f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    if _out_of_memory(error):
        text = f"out of memory ({text:.120}): lower train.micro_batch_size or data.max_length, raise scale.zero, or turn on train.gradient_checkpointing"
    return {"rank": rank, "time": time.time(), "message": text, "key": getattr(error, "key", ""), "exit_code": getattr(error, "exit_code", 1)}


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def _log_to(path: Path) -> None:
    """Sends everything this process prints, from C++ too, to a file in the run's folder."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = path.open("a", buffering=1, encoding="utf-8")
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = file
