"""Exponential moving averages of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dmdistill.distributed.data_parallel import local_tensor
from dmdistill.networks.copying import copy_sharing_frozen

__all__ = ["EMA"]


class EMA:
    """Exponential moving average of a network's trained parameters; the others are shared with it.

    Args:
        halflife: in updates, after which a state counts half; before, it is at most a tenth of the updates so far, so
            that the average forgets its start (Karras et al. 2022's ramp-up).
    """

    def __init__(self, network: nn.Module, *, halflife: float) -> None:
        self.network = copy_sharing_frozen(network).requires_grad_(False)
        self.halflife = halflife

    def follow(self, network: nn.Module) -> None:
        """Average this network's parameters. Call it before the first update, after both are spread over processes."""
        pairs = zip(self.network.parameters(), network.parameters(), strict=True)
        trained = [
            (local_tensor(mine), local_tensor(theirs.detach())) for mine, theirs in pairs if theirs.requires_grad
        ]
        self.mine: list[Tensor] = [mine for mine, _ in trained]
        self.theirs: list[Tensor] = [theirs for _, theirs in trained]

    def update(self, count: int) -> None:
        """Take in the network's state after its `count`-th update."""
        halflife = min(self.halflife, count / 10)
        weight = 1 - 0.5 ** (1 / max(halflife, 1e-6))
        torch._foreach_lerp_(self.mine, self.theirs, weight)  # pyright: ignore[reportPrivateImportUsage]
