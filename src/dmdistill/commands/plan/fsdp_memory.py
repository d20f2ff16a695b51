"""What FSDP2 holds of sharded networks while they work, foretold in one process and told to a ledger.

The order of events is that of torch's fully_shard with reshard_after_forward=True. A block's weights come in one buffer
and are copied out of it; forward, the buffer stays until the next block has its own. Backward, the next block's buffer
is asked for ahead, and a block's gradients are whole until it is done; then they are copied, to be exchanged.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dmdistill.commands.plan.tensor_ledger import Ledger, find_tensors, shard_bytes
from dmdistill.distributed.data_parallel import blocks, untie_frozen

__all__ = ["Sharded", "ShardingRecorder"]

GATHERED = "gathered"


class ShardingRecorder:
    """Sharder for a dry run: it shards nothing, and reports to a ledger what sharded networks would gather.

    Args:
        ledger: of the dry run's memory.
        world_size: number of processes that would share the networks.

    Attributes:
        peak_host_bytes: largest total size of networks in the host's memory before they are sharded.
    """

    def __init__(self, ledger: Ledger, *, world_size: int) -> None:
        self.ledger, self.world_size = ledger, world_size
        self.peak_host_bytes = self.sharded_bytes = 0  # sharded_bytes: of networks that would be in shards by now

    def __call__(self, network: nn.Module) -> None:
        """Record that a network, complete in memory, is sharded now."""
        self.peak_host_bytes = max(self.peak_host_bytes, self.ledger.now.total() - self.sharded_bytes)
        untie_frozen(network)
        self.sharded_bytes += sum(parameter.untyped_storage().nbytes() for parameter in network.parameters())
        Sharded(network, self.ledger, world_size=self.world_size)


class Group:
    """Weights that are gathered together: a block's, or what is outside of all blocks."""

    def __init__(self, parameters: list[nn.Parameter], world_size: int) -> None:
        self.parameters = [one for one in parameters if one.requires_grad]
        self.full = sum(world_size * shard_bytes(one, world_size) for one in parameters)
        self.trained = sum(world_size * shard_bytes(one, world_size) for one in self.parameters)
        self.gradients = 0  # bytes that are whole at present


class Sharded:
    """Follows the passes of one network.

    Attributes:
        root: the group of what is outside of all blocks.
        order: the groups in the order in which they were done forward; the root is the last.
        at: index of the one that backward is at; None while there is no backward pass.
    """

    def __init__(self, network: nn.Module, ledger: Ledger, *, world_size: int) -> None:
        self.ledger = ledger
        self.order: list[Group] = []
        self.at: int | None = None
        self.buffer = self.all_gather = 0  # bytes
        self.asked: set[int] = set()  # indices of what backward asked for ahead
        self.turned: set[int] = set()  # of what it came to
        inner = [*blocks(network)]
        taken = {parameter for block in inner for parameter in block.parameters()}
        for block in inner:
            self.watch(block, Group([*block.parameters()], world_size))
        self.root = Group([one for one in network.parameters() if one not in taken], world_size)
        self.watch(network, self.root)

    def watch(self, module: nn.Module, group: Group) -> None:
        module.register_forward_pre_hook(lambda *_: self.enter(group))
        module.register_forward_hook(lambda _, __, answer: self.leave(group, answer))
        for parameter in group.parameters:
            parameter.register_post_accumulate_grad_hook(lambda one: self.learn(group, one))

    def add_bytes(self, size: int) -> None:
        self.ledger.add_bytes(GATHERED, size)

    def enter(self, group: Group) -> None:
        """Forward: into a buffer, while the one before is there, and out of it."""
        if self.at is not None:  # recomputed: it is there
            return
        if group is self.root:
            self.order = []
        self.add_bytes(group.full)
        self.add_bytes(-self.buffer)
        self.add_bytes(group.full)
        self.buffer = group.full

    def leave(self, group: Group, answer: Any) -> None:
        """Forward: the weights go; backward will ask for them again."""
        if self.at is not None:
            return
        self.add_bytes(-group.full)
        if group is self.root:
            self.add_bytes(-self.buffer)
            self.buffer = 0
        index = len(self.order)
        self.order.append(group)
        for tensor in find_tensors(answer):
            if tensor.requires_grad:
                tensor.register_hook(lambda _: self.turn(index))

    def turn(self, index: int) -> None:
        """Backward comes to a group: the one before it is done, its weights come, the next one's are asked for."""
        if index in self.turned:
            return
        if self.at is None:  # at the root, which is done last
            torch.autograd.Variable._execution_engine.queue_callback(self.end)  # pyright: ignore
        elif self.order[self.at] is not self.root:
            self.finish(self.order[self.at])
        self.at, group = index, self.order[index]
        self.turned.add(index)
        self.add_bytes(group.full if index in self.asked else 2 * group.full)
        self.add_bytes(-group.full)
        if index and index - 1 not in self.turned | self.asked:
            self.asked.add(index - 1)
            self.add_bytes(self.order[index - 1].full)

    def learn(self, group: Group, parameter: Tensor) -> None:
        """A gradient is there, whole."""
        size = parameter.numel() * parameter.itemsize
        group.gradients += size
        self.add_bytes(size)

    def finish(self, group: Group) -> None:
        """Weights go, and gradients once they are copied to be exchanged, as those before them have been."""
        self.add_bytes(-group.full - self.all_gather)
        self.all_gather = group.trained if group.gradients else 0
        self.add_bytes(self.all_gather)
        self.add_bytes(-group.gradients)
        group.gradients = 0

    def end(self) -> None:
        """After a backward pass."""
        if self.at is not None and self.order[self.at] is not self.root:
            self.finish(self.order[self.at])
        self.finish(self.root)
        left = sum(self.order[index].full for index in self.asked - self.turned)
        self.add_bytes(-self.all_gather - left)
        self.at, self.all_gather, self.turned, self.asked = None, 0, set(), set()
