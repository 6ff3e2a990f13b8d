"""Ray Train for a Ray of one machine that ends with the command: without the helpers that look after a cluster.

A plain trainer starts three actors beside its workers, each a process that takes about two seconds of a CPU: one frees the
placement group of a controller that died (here the whole Ray ends then), one hands out Ray Data sets (there are none), one
asks an autoscaler for machines (there is none). Private parts of Ray 2.60, pinned by tests/trainers/test_embedded.py.
"""

from __future__ import annotations

from typing import Any, cast

from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer


class _NoAutoscaler(FixedScalingPolicy):
    """A fixed number of workers, asked of nobody."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Makes no client of the autoscaler's."""

    def _maybe_send_resource_request(self) -> None:
        """Sends nothing."""


class LocalTrainer(DataParallelTrainer):
    """Not TorchTrainer: its backend makes the controller import torch before any worker starts; see trainers.distributed."""

    def _initialize_and_run_controller(self, **controller: Any) -> Any:
        controller["scaling_policy"] = _NoAutoscaler(cast("Any", self.scaling_config))
        unused = (DatasetsCallback, PlacementGroupCleanerCallback)
        controller["callbacks"] = [callback for callback in controller["callbacks"] if not isinstance(callback, unused)]
        return super()._initialize_and_run_controller(**controller)
