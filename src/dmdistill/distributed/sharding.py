"""Sharding of networks by FSDP2, in place, with one set of shards for the frozen weights that several of them share."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from dmdistill.distributed.stored_weights import read_shards

__all__ = ["Sharder", "blocks", "check_can_shard", "is_sharded_tensor"]


class Sharder:
    """Shards networks in place: each of their blocks, and the parameters outside of blocks.

    Wherever a network was, only one block at a time is complete on the device of the process group. Of parameters on
    the meta device each process reads its shards from their files. A frozen parameter of several networks, such as the
    teacher's weights below the adapters of generator and fake score, is sharded with the first of them; the others have
    the same shards.

    Args:
        group: processes that hold one replica of every network among them (hybrid sharding); 0 for all processes.
    """

    def __init__(self, group: int = 0) -> None:
        self.group = group
        self.shards: Any = WeakTensorKeyDictionary()  # of frozen parameters as they were before they were sharded

    @cached_property
    def mesh(self) -> Any:
        """The processes: of two dimensions, replicas and shards, with hybrid sharding."""
        from torch.distributed.device_mesh import init_device_mesh

        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        world_size = dist.get_world_size()
        if self.group in (0, world_size):
            return init_device_mesh(device, (world_size,), mesh_dim_names=("shard",))
        shape = (world_size // self.group, self.group)
        return init_device_mesh(device, shape, mesh_dim_names=("replicate", "shard"))

    def __call__(self, network: nn.Module, *, offload: bool = False) -> None:
        """Shard a network; its shards stay in the host's memory if they are offloaded, else on the device."""
        from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

        policy = CPUOffloadPolicy(pin_memory=self.mesh.device_type == "cuda") if offload else OffloadPolicy()
        network.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]  FSDP2 takes no other
        named = network.named_parameters(remove_duplicate=False)
        frozen = {name: TensorWeakRef(one) for name, one in named if not one.requires_grad}  # to be freed one by one
        known = {name: self.shards[one()] for name, one in frozen.items() if one() in self.shards}
        for module in [*blocks(network), network]:
            self.untie(module)
            fully_shard(module, mesh=self.mesh, reshard_after_forward=True, offload_policy=policy)
        parameters = dict(network.named_parameters(remove_duplicate=False))
        device = torch.device("cpu" if offload else self.mesh.device_type)
        read_shards(network, device, {parameters[name]: shards for name, shards in known.items()})
        for name, one in frozen.items():
            if (shared := one()) is not None:
                self.shards.setdefault(shared, parameters[name])

    def untie(self, module: nn.Module) -> None:
        """Replace a module's frozen parameters by copies, or by empty ones where there are shards already.

        Else FSDP2 would move another network's weights to the device too.
        """
        own: dict[Tensor, nn.Parameter] = {}
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                if not (parameter.requires_grad or is_sharded_tensor(parameter)):
                    if parameter not in own:
                        known, weight = parameter in self.shards, parameter.detach()
                        own[parameter] = nn.Parameter(weight.to("meta") if known else weight.clone(), False)
                    setattr(part, name, own[parameter])


def check_can_shard() -> None:
    """Raise a ValueError where this version of PyTorch cannot shard on the device of the process group, if any."""
    on_cpu = dist.is_initialized() and dist.get_backend() != "nccl"
    if on_cpu and not hasattr(torch.cpu.Stream, "record_event"):
        raise ValueError(
            f"--strategy fsdp on CPUs with torch {torch.__version__}, expected torch 2.7 or newer: give --strategy ddp"
        )


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules whose class has "Block" in its name, the outermost if they are nested."""
    for child in network.children():
        if "Block" in type(child).__name__:
            yield child
        else:
            yield from blocks(child)


def is_sharded_tensor(tensor: Any) -> bool:
    """Whether a tensor is a DTensor, a class that is slow to import."""
    return hasattr(tensor, "full_tensor")
