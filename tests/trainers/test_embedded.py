"""The Ray that lives as long as a command: which processes it is made of."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.cluster

DRIVER = """
import sys
from trainers import embedded

def entry(config):
    import psutil, ray.train, json, pathlib
    if ray.train.get_context().get_world_rank() == 0:
        raylet = psutil.Process().parent()
        titles = sorted(" ".join(p.cmdline()).split(":")[2].split(".")[0].strip() for p in raylet.children() if p.cmdline()[0].startswith("ray::"))
        pathlib.Path(config["out"]).write_text(json.dumps(titles))

embedded.start(2)
try:
    embedded.fit(entry, {"out": sys.argv[1] + "/titles.json"}, 2, {"CPU": 1.0}, "ray", sys.argv[1])
finally:
    embedded.stop()
"""


def test_ray_train_starts_its_controller_its_workers_and_one_helper(tmp_path: Path) -> None:
    """Private: `DataParallelTrainer._initialize_and_run_controller`, see trainers.local_trainer. Each more is 2 s of a CPU before the first step."""
    subprocess.run([sys.executable, "-c", DRIVER, str(tmp_path)], check=True, timeout=120)
    titles = json.loads((tmp_path / "titles.json").read_text())
    actors = [title for title in titles if not title.endswith("Agent")]
    assert actors == ["RayTrainWorker", "RayTrainWorker", "SynchronizationActor", "TrainController"]
