"""The memory that FSDP2 needs for sharded networks, predicted in one process.

The order of events is that of torch's fully_shard with reshard_after_forward=True. A block's weights are gathered in
one buffer and copied out of it; in the forward pass the buffer stays until the next block has its own. In the
backward pass the next block's buffer is prefetched, and a block's gradients are unsharded until it is done; then they
are copied, to be reduced.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dmdistill.commands.plan.tensor_ledger import OLD, Ledger, find_tensors, shard_bytes
from dmdistill.distributed.sharding import blocks

__all__ = ["Sharded", "ShardingRecorder"]

GATHERED = "gathered"


class ShardingRecorder:
    """Sharder for a dry run: it shards nothing, and reports to a ledger what sharded networks would gather.

    Args:
        ledger: of the dry run's memory.
        world_size: number of processes that would share a replica of the networks.

    Attributes:
        peak_host_bytes: largest total size of networks in the host's memory before they are sharded.
        offloaded: parameters whose shards stay there.
    """

    def __init__(self, ledger: Ledger, *, world_size: int) -> None:
        self.ledger, self.world_size = ledger, world_size
        self.peak_host_bytes = 0
        self.offloaded: set[Tensor] = set()
        self.sharded: dict[int, int] = {}  # bytes of each storage that would be in shards by now

    def __call__(self, network: nn.Module, *, offload: bool = False) -> None:
        """Record that a network, complete in memory, is sharded now; offloaded shards take no memory of the device."""
        storages = [parameter.untyped_storage() for parameter in network.parameters()]
        for storage in storages:
            self.ledger.track(storage, OLD)
        self.peak_host_bytes = max(self.peak_host_bytes, self.ledger.now.total() - sum(self.sharded.values()))
        self.sharded |= {id(storage): storage.nbytes() for storage in storages}  # each is one object while it lives
        if offload:
            self.offloaded |= set(network.parameters())
        Sharded(network, self.ledger, world_size=self.world_size)

    def name(self, part: str, parameters: Iterable[Tensor]) -> None:
        """Name the part of the ledger to which a process's shards of parameters belong."""
        for parameter in parameters:
            if parameter in self.offloaded:
                self.ledger.label_shared(part, [parameter])
            else:
                self.ledger.name(part, [parameter], world_size=self.world_size)

    @property
    def offloaded_bytes(self) -> int:
        """The size of a process's shards in the host's memory."""
        return sum(shard_bytes(parameter, self.world_size) for parameter in self.offloaded)


class Group:
    """Weights that are gathered together: a block's, or those outside of all blocks."""

    def __init__(self, parameters: list[nn.Parameter], world_size: int) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.full_bytes = sum(world_size * shard_bytes(parameter, world_size) for parameter in parameters)
        self.trained_bytes = sum(world_size * shard_bytes(parameter, world_size) for parameter in self.parameters)
        self.gradient_bytes = 0  # unsharded at present


class Sharded:
    """Follows the forward and backward passes of one network by hooks.

    Attributes:
        root: the group of weights outside of all blocks.
        order: the groups in the order of the forward pass; the root is the last.
        current: index of the group in the backward pass; None outside of one.
    """

    def __init__(self, network: nn.Module, ledger: Ledger, *, world_size: int) -> None:
        self.ledger = ledger
        self.order: list[Group] = []
        self.current: int | None = None
        self.buffer_bytes = self.reduced_bytes = 0
        self.prefetched: set[int] = set()  # indices of the groups that backward gathered ahead
        self.visited: set[int] = set()  # indices of the groups that backward reached
        inner = [*blocks(network)]
        in_blocks = {parameter for block in inner for parameter in block.parameters()}
        for block in inner:
            self.watch(block, Group([*block.parameters()], world_size))
        outside = [parameter for parameter in network.parameters() if parameter not in in_blocks]
        self.root = Group(outside, world_size)
        self.watch(network, self.root)

    def watch(self, module: nn.Module, group: Group) -> None:
        """Register the hooks of a group."""
        module.register_forward_pre_hook(lambda *_: self.before_forward(group))
        module.register_forward_hook(lambda _, __, output: self.after_forward(group, output))
        for parameter in group.parameters:
            parameter.register_post_accumulate_grad_hook(lambda one: self.count_gradient(group, one))

    def add_bytes(self, size: int) -> None:
        """Tell the ledger of more, or fewer, gathered bytes."""
        self.ledger.add_bytes(GATHERED, size)

    def before_forward(self, group: Group) -> None:
        """Gather weights into a buffer, while the last group's buffer is there, and copy them out of it."""
        if self.current is not None:  # recomputed in the backward pass: they are there
            return
        if group is self.root:
            self.order = []
        self.add_bytes(group.full_bytes)
        self.add_bytes(-self.buffer_bytes)
        self.add_bytes(group.full_bytes)
        self.buffer_bytes = group.full_bytes

    def after_forward(self, group: Group, output: Any) -> None:
        """Free weights; the backward pass gathers them again."""
        if self.current is not None:
            return
        self.add_bytes(-group.full_bytes)
        if group is self.root:
            self.add_bytes(-self.buffer_bytes)
            self.buffer_bytes = 0
        index = len(self.order)
        self.order.append(group)
        for tensor in find_tensors(output):
            if tensor.requires_grad:
                tensor.register_hook(lambda _: self.before_backward(index))

    def before_backward(self, index: int) -> None:
        """Finish the last group, gather this one's weights, and prefetch the next one's."""
        if index in self.visited:
            return
        if self.current is None:  # at the root, which is finished last
            torch.autograd.Variable._execution_engine.queue_callback(self.after_backward)  # pyright: ignore
        elif self.order[self.current] is not self.root:
            self.finish(self.order[self.current])
        self.current, group = index, self.order[index]
        self.visited.add(index)
        self.add_bytes(group.full_bytes if index in self.prefetched else 2 * group.full_bytes)
        self.add_bytes(-group.full_bytes)
        if index and index - 1 not in self.visited | self.prefetched:
            self.prefetched.add(index - 1)
            self.add_bytes(self.order[index - 1].full_bytes)

    def count_gradient(self, group: Group, parameter: Tensor) -> None:
        """Count an unsharded gradient."""
        size = parameter.numel() * parameter.itemsize
        group.gradient_bytes += size
        self.add_bytes(size)

    def finish(self, group: Group) -> None:
        """Free weights, and gradients once they are copied for their reduction; the copies of the last group go too."""
        self.add_bytes(-group.full_bytes - self.reduced_bytes)
        self.reduced_bytes = group.trained_bytes if group.gradient_bytes else 0
        self.add_bytes(self.reduced_bytes)
        self.add_bytes(-group.gradient_bytes)
        group.gradient_bytes = 0

    def after_backward(self) -> None:
        """Free all that is left after a backward pass."""
        if self.current is not None and self.order[self.current] is not self.root:
            self.finish(self.order[self.current])
        self.finish(self.root)
        left = sum(self.order[index].full_bytes for index in self.prefetched - self.visited)
        self.add_bytes(-self.reduced_bytes - left)
        self.current, self.reduced_bytes, self.visited, self.prefetched = None, 0, set(), set()
