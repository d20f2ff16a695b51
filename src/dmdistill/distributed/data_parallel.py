"""Data parallelism: replicated (DDP) or sharded (FSDP2) networks, and gradient accumulation.

ddp: each process holds every network, and gradients are averaged while they are computed.
fsdp: each process holds a shard of every weight, gradient, moment and average; a block is gathered while it works.
With hybrid sharding (HSDP) groups of processes do so, and each group has a replica.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dmdistill.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from dmdistill.distributed.sharding import Sharder, is_sharded_tensor

__all__ = [
    "NOT_PARALLEL",
    "Parallelism",
    "Replicated",
    "accumulating",
    "check_sharding_group",
    "full_tensor",
    "local_tensor",
    "parallelism",
    "shard_like",
]


@dataclass(frozen=True)
class Parallelism:
    """How a batch is divided equally among processes, and by each of them into microbatches.

    A network is updated by the mean over all processes' microbatches, which is the mean over the batch.

    Args:
        processes: processes that train together.
        microbatches: gradient-accumulation steps of each process.
        sharder: shards a network in place over the processes; None if each process holds every network.
    """

    processes: ProcessGroup = SINGLE_PROCESS
    microbatches: int = 1
    sharder: Callable[..., None] | None = None

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds only a shard of every network."""
        return self.sharder is not None

    def build_device(self, device: torch.device) -> torch.device:
        """Return the device to build networks on: `device` itself, or the CPU if they are sharded from there."""
        return torch.device("cpu") if self.is_sharded else device

    def shard(self, network: nn.Module, *, offload: bool = False) -> None:
        """Shard a network in place, onto the device of its process group; do nothing without a sharder.

        Args:
            network: on the CPU or the meta device.
            offload: keep its shards in the host's memory.
        """
        if self.sharder is not None:
            self.sharder(network, offload=offload)

    def wrap(self, network: nn.Module) -> nn.Module:
        """Wrap a network for training, so that its gradients become the mean over all processes."""
        return network if self.processes.world_size == 1 or self.is_sharded else Replicated(network)

    def full_tensor(self, tensor: Tensor) -> Tensor | None:
        """Gather a sharded tensor on rank 0, on the CPU; return any other tensor as it is.

        All processes must call it; those other than rank 0 get None for a sharded tensor.
        """
        if not is_sharded_tensor(tensor):
            return tensor
        full = full_tensor(tensor.detach())
        return full.cpu() if self.processes.is_main else None

    def check_divisible(self, flag: str, batch: int) -> None:
        """Check that a batch can be divided. ValueError, naming the flag, if not."""
        world_size, microbatches = self.processes.world_size, self.microbatches
        if batch % (world_size * microbatches):
            among = f"{world_size} process{'es' if world_size > 1 else ''}"
            each = f" of {microbatches} microbatches each (--accumulate {microbatches})" if microbatches > 1 else ""
            raise ValueError(
                f"{flag} {batch} cannot be divided equally among {among}{each}: "
                f"expected a multiple of {world_size * microbatches}"
            )


NOT_PARALLEL = Parallelism()


def parallelism(processes: ProcessGroup, microbatches: int, strategy: str, sharding_group: int = 0) -> Parallelism:
    """Build the parallelism of a strategy, "ddp" or "fsdp"; a single process shards nothing.

    Args:
        processes: processes that train together.
        microbatches: gradient-accumulation steps of each process.
        strategy: "ddp" replicates networks, "fsdp" shards them.
        sharding_group: processes among which fsdp shards networks; 0 for all.
    """
    sharder = Sharder(sharding_group) if strategy == "fsdp" and processes.world_size > 1 else None
    return Parallelism(processes, microbatches, sharder)


def check_sharding_group(group: int, world_size: int) -> None:
    """Raise a ValueError where so many processes cannot be divided into sharding groups of this size."""
    if group and world_size % group:
        raise ValueError(
            f"--sharding-group {group} with {world_size} process{'es' if world_size > 1 else ''}, expected a number "
            f"that divides {world_size}, or 0 for one group"
        )


class Replicated(DistributedDataParallel):
    """Replica of a network whose gradients are averaged over processes; its attributes are the network's."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, gradient_as_bucket_view=True)
        self.broadcast_buffers = False  # they are constants, which __init__ has sent to all processes

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


def full_tensor(tensor: Any) -> Any:
    """Gather a tensor on every process; all must call it for a sharded one. Any other is returned as it is."""
    return tensor.full_tensor() if is_sharded_tensor(tensor) else tensor


def local_tensor(tensor: Any) -> Any:
    """Return this process's shard of a tensor, sharing its memory; any other is returned as it is."""
    return tensor.to_local() if is_sharded_tensor(tensor) else tensor


def shard_like(tensor: Tensor, shard: Any) -> Tensor:
    """Shard a tensor that every process has in full as `shard` is; or return it, if that is not or it is sharded."""
    if is_sharded_tensor(tensor) or not is_sharded_tensor(shard):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    own: dict[str, Any] = {}  # each process takes its part; torch 2.6 sends that of rank 0
    if "src_data_rank" in inspect.signature(distribute_tensor).parameters:
        own["src_data_rank"] = None
    return distribute_tensor(tensor.to(shard.device), shard.device_mesh, shard.placements, **own)


def accumulating(network: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
    """Return the context of a microbatch's passes, forward and backward: DDP exchanges gradients after the last."""
    return network.no_sync() if isinstance(network, Replicated) and not last else nullcontext()
