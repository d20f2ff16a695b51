"""How several processes hold networks and move them together. No network and no algorithm knows of it.

ddp: each process holds every network whole, and gradients are averaged while they are computed.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dmdistill.processes import ALONE, Processes

__all__ = ["UNDIVIDED", "Parallel", "Replica", "added_up"]


@dataclass(frozen=True)
class Parallel:
    """How a batch is divided: equally among processes, and by each of them into `parts` that it takes in turn.

    An update of a network is by the mean over all processes' parts, which is that of the batch.
    """

    processes: Processes = ALONE
    parts: int = 1

    def called(self, network: nn.Module) -> nn.Module:
        """The network as it is to be called in training, so that its gradients become the mean of all processes'."""
        return network if self.processes.count == 1 else Replica(network)

    def check(self, flag: str, batch: int) -> None:
        """ValueError where a batch cannot be divided."""
        count, parts = self.processes.count, self.parts
        if batch % (count * parts):
            among = f"{count} process{'es' if count > 1 else ''}"
            each = f" of {parts} parts each (--accumulate {parts})" if parts > 1 else ""
            raise ValueError(
                f"{flag} {batch} cannot be divided equally among {among}{each}: expected a multiple of {count * parts}"
            )


UNDIVIDED = Parallel()


class Replica(DistributedDataParallel):
    """One process's copy of a network that all processes move alike; to its caller it is the network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, gradient_as_bucket_view=True)
        self.broadcast_buffers = False  # they are constants

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


def added_up(network: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
    """Around a part's passes, forward and backward: only after the last one gradients are exchanged."""
    return network.no_sync() if isinstance(network, Replica) and not last else nullcontext()
