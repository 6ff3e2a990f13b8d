"""The process group of a run: who am I, and the few collectives that the loop needs.

torch's own process group, gloo on CPUs and NCCL on GPUs. `join_ray` makes it inside a Ray Train worker: Ray gives ranks and
the meeting point, we make the group in the worker. Ray's TorchConfig does the same from the controller, which then has to
import torch first: about five seconds more before the first step on two cores.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Group:
    """One worker's place in the run."""

    rank: int
    world_size: int
    device: torch.device

    def sum(self, *values: float) -> list[float]:
        """Element-wise sums over all workers, in float64."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Every worker's value, by rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value."""
        values = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def exchange(self, parts: list[bytes]) -> list[bytes]:
        """`parts[r]` goes to worker r; returns what each worker gave this one, by rank."""
        if self.world_size == 1:
            return parts
        sizes = torch.tensor([len(part) for part in parts], device=self.device)
        coming = torch.empty_like(sizes)
        dist.all_to_all_single(coming, sizes)
        given = torch.frombuffer(bytearray(b"".join(parts)) or bytearray(1), dtype=torch.uint8)[: int(sizes.sum())].to(self.device)
        got = torch.empty(int(coming.sum()), dtype=torch.uint8, device=self.device)
        dist.all_to_all_single(got, given, coming.tolist(), sizes.tolist())
        return [piece.numpy().tobytes() for piece in got.cpu().split(coming.tolist())]


def join(rank: int, world_size: int, local_rank: int, address: str, port: int, *, cpus: int, gpu: bool, timeout_s: float = 1800.0) -> Group:
    """Joins the group; returns when every worker has.

    Args:
        cpus: threads that torch may use for one operation.
        gpu: NCCL and this worker's GPU, else gloo.
    """
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(local_rank), MASTER_ADDR=address, MASTER_PORT=str(port))
    torch.set_num_threads(cpus)
    device = torch.device("cpu")
    if gpu:
        # Ray shows a worker its own GPU alone, unless it was told to share them.
        device = torch.device("cuda", local_rank if torch.cuda.device_count() > local_rank else 0)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpu else "gloo", rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout_s))
    return Group(rank, world_size, device)


def join_ray(*, cpus: int, gpu: bool) -> Group:
    """Joins the group of the Ray Train workers that this function is called in."""
    import ray.train
    from ray.train.collective import broadcast_from_rank_zero
    from ray.util import get_node_ip_address

    context = ray.train.get_context()
    meeting = (get_node_ip_address(), _free_port()) if context.get_world_rank() == 0 else None
    address, port = broadcast_from_rank_zero(meeting)
    return join(context.get_world_rank(), context.get_world_size(), context.get_local_rank(), address, port, cpus=cpus, gpu=gpu)


def leave() -> None:
    """Ends the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("", 0))
        return int(s.getsockname()[1])
