"""How several processes hold networks and move them together. No network and no algorithm knows of it.

ddp: each process holds every network whole, and gradients are averaged while they are computed.
fsdp: each process holds a share of every weight, gradient, moment and average (FSDP2); a block is whole while it works.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dmdistill.distributed.process_group import SINGLE_PROCESS, ProcessGroup

__all__ = ["NOT_PARALLEL", "Parallelism", "Replicated", "accumulating", "full_tensor", "local_tensor", "shard_like"]


@dataclass(frozen=True)
class Parallelism:
    """How a batch is divided: equally among processes, and by each of them into `parts` that it takes in turn.

    An update of a network is by the mean over all processes' parts, which is that of the batch.
    """

    processes: ProcessGroup = SINGLE_PROCESS
    microbatches: int = 1
    strategy: str = "ddp"

    @property
    def sharded(self) -> bool:
        """Whether each process holds but a share of every network."""
        return self.strategy == "fsdp" and self.processes.world_size > 1

    def build_device(self, device: torch.device) -> torch.device:
        """Where networks are built: on the device they work on, or in the host's memory if they go there in shares."""
        return torch.device("cpu") if self.sharded else device

    def shard(self, network: nn.Module) -> None:
        """Keep this process's share of a finished network, on the device, where networks are to be sharded."""
        if self.sharded:
            shard_network(network)

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network as it is to be called in training, so that its gradients become the mean of all processes'."""
        return network if self.processes.world_size == 1 or self.sharded else Replicated(network)

    def full_tensor(self, tensor: Tensor) -> Tensor | None:
        """A sharded tensor whole, on the CPU, for the first process; None for the others, which must ask for it too.

        Any other tensor is itself.
        """
        if not is_sharded_tensor(tensor):
            return tensor
        full = full_tensor(tensor.detach())
        return full.cpu() if self.processes.is_main else None

    def check_divisible(self, flag: str, batch: int) -> None:
        """ValueError where a batch cannot be divided."""
        count, parts = self.processes.world_size, self.microbatches
        if batch % (count * parts):
            among = f"{count} process{'es' if count > 1 else ''}"
            each = f" of {parts} parts each (--accumulate {parts})" if parts > 1 else ""
            raise ValueError(
                f"{flag} {batch} cannot be divided equally among {among}{each}: expected a multiple of {count * parts}"
            )


NOT_PARALLEL = Parallelism()


class Replicated(DistributedDataParallel):
    """One process's copy of a network that all processes move alike; to its caller it is the network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, gradient_as_bucket_view=True)
        self.broadcast_buffers = False  # they are constants

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


def shard_network(network: nn.Module) -> None:
    """FSDP2: the network's blocks, each gathered when its turn comes, and what is outside of them.

    A block is whole on the device of the process group while its share is cut, wherever the network was.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    network.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]  it takes no other
    for module in [*blocks(network), network]:
        untie_frozen(module)  # it would take another network's weights along, to the device
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def untie_frozen(module: nn.Module) -> None:
    """Give a module frozen weights of its own: sharded apart, networks share none."""
    own: dict[Tensor, nn.Parameter] = {}
    for part in module.modules():
        for name, one in part.named_parameters(recurse=False):
            if not (one.requires_grad or is_sharded_tensor(one)):
                if one not in own:
                    own[one] = nn.Parameter(one.detach().clone(), requires_grad=False)
                setattr(part, name, own[one])


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """Modules whose class has Block in its name, the outermost where they are nested."""
    for child in network.children():
        if "Block" in type(child).__name__:
            yield child
        else:
            yield from blocks(child)


def is_sharded_tensor(tensor: Any) -> bool:
    """Whether it is a process's share of a tensor (a DTensor, which is slow to import only to ask)."""
    return hasattr(tensor, "full_tensor")


def full_tensor(tensor: Any) -> Any:
    """A tensor, all of it; of a shard every process must ask for it."""
    return tensor.full_tensor() if is_sharded_tensor(tensor) else tensor


def local_tensor(tensor: Any) -> Any:
    """What of a tensor is held here, in its place."""
    return tensor.to_local() if is_sharded_tensor(tensor) else tensor


def shard_like(tensor: Tensor, shard: Any) -> Tensor:
    """A tensor that every process holds whole, spread as `shard_network` is; itself where that one is no shard."""
    if not is_sharded_tensor(shard):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(shard.device), shard.device_mesh, shard.placements, src_data_rank=None)


def accumulating(network: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
    """Around a part's passes, forward and backward: only after the last one gradients are exchanged."""
    return network.no_sync() if isinstance(network, Replicated) and not last else nullcontext()
