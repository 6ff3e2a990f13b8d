"""A Ray of our own on this machine, for as long as one command runs.

It never joins nor stops another Ray: `address="local"` starts a fresh one whatever RAY_ADDRESS says, on ports of its own,
and `ray.shutdown()` ends just the processes that it started. Token authentication is on, with a token that lives in this
process's environment; the dashboard is off.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import secrets
import sys
import time
from typing import Any

_ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # the controller's poll: how soon a dead worker or the end is noticed
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody drains a Ray that lives on this machine alone
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # workers write to log files of their own
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "20",  # how long agents outlive a driver that was killed; 60 by default
    "RAY_enable_worker_prestart": "0",  # Ray Train's actors want an environment of their own: none would use these
    "RAY_prestart_worker_first_driver": "0",
}
OBJECT_STORE_BYTES = 100_000_000
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def start(cpus: int) -> None:
    """Starts it, with room for at least `cpus` CPUs; all GPUs of the machine are in it."""
    os.environ.update(_ENVIRONMENT)
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ.pop("RAY_ADDRESS", None)
    _adopt_orphans()
    import ray

    ray.init(
        address="local",
        num_cpus=max(cpus, os.cpu_count() or 1),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE_BYTES,
    )


def _adopt_orphans() -> None:
    """On Linux, makes this process the parent of its descendants' orphans, instead of init: none gets out of sight."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def gpus() -> int:
    """GPUs that the running Ray has."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def stop() -> None:
    """Ends what `start` started, down to the last process.

    `ray.shutdown` ends the raylet; its two agents are meant to notice and sometimes do not (seen with 2.60 after SIGINT:
    alive a minute later). A killed worker leaves its W&B service behind. All of them descend from this process, orphans too
    (`_adopt_orphans`), so whatever of them is left is ended here.
    """
    import psutil
    import ray

    if ray.is_initialized():
        started = psutil.Process().children(recursive=True)
        ray.shutdown()
        started += [process for process in psutil.Process().children(recursive=True) if process not in started]
        _wait(started)
        for end in (psutil.Process.terminate, psutil.Process.kill):
            for process in filter(_runs, started):
                with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself just now
                    end(process)
            _wait(started)


def _wait(processes: list[Any], at_most_s: float = 3.0) -> None:
    """Until all have ended, or time is up."""
    deadline = time.monotonic() + at_most_s
    while any(map(_runs, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)


def _runs(process: Any) -> bool:
    """Whether a process still does anything; one whose parent never asks for its exit status (a zombie) does not."""
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def fit(entry: Any, config: dict[str, Any], workers: int, resources: dict[str, float], name: str, storage: str) -> None:
    """Runs `entry(config)` on Ray Train workers and waits. No retries: what failed is for the caller to tell.

    Raises:
        ray.train.TrainingFailedError: a worker raised or died.
    """
    from ray.train import RunConfig, ScalingConfig
    from ray.train.v2.api.config import FailureConfig

    from trainers.local_trainer import LocalTrainer

    LocalTrainer(
        entry,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=resources.get("GPU", 0) > 0, resources_per_worker=resources),
        run_config=RunConfig(name=name, storage_path=storage, failure_config=FailureConfig(max_failures=0, controller_failure_limit=0)),
    ).fit()
