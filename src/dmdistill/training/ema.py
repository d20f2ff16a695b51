"""Exponential moving averages of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dmdistill.distributed.data_parallel import local_tensor
from dmdistill.networks.copying import copy_sharing_frozen

__all__ = ["EMA", "ImplicitAlignment"]


class EMA:
    """Exponential moving average of a network's trained parameters; frozen ones are shared with the network.

    Args:
        network: network to copy.
        halflife: number of updates after which a state's weight has halved. It is at most a tenth of the updates so
            far, so that the average forgets its start (the ramp-up of Karras et al. 2022).

    Attributes:
        network: the averaged copy, which requires no gradient.
    """

    def __init__(self, network: nn.Module, *, halflife: float) -> None:
        self.network = copy_sharing_frozen(network).requires_grad_(False)
        self.halflife = halflife
        self.averages: list[Tensor] = []
        self.sources: list[Tensor] = []

    def follow(self, network: nn.Module) -> None:
        """Average this network's parameters; call it before the first update, once both networks are sharded."""
        pairs = [*zip(self.network.parameters(), network.parameters(), strict=True)]
        trained = [(average, source.detach()) for average, source in pairs if source.requires_grad]
        self.averages = [local_tensor(average) for average, _ in trained]
        self.sources = [local_tensor(source) for _, source in trained]

    def is_capped(self, count: int) -> bool:
        """Whether the half-life is at its limit until the update `count`: all such averages of a network are equal."""
        return self.halflife >= count / 10

    def update(self, count: int) -> None:
        """Include the network's state after its update number `count`, from 1."""
        halflife = min(self.halflife, count / 10)
        weight = 1 - 0.5 ** (1 / max(halflife, 1e-6))
        torch._foreach_lerp_(self.averages, self.sources, weight)  # pyright: ignore[reportPrivateImportUsage]


class ImplicitAlignment:
    """Implicit distribution alignment (IDA, SenseFlow: Ge et al. 2026): fake <- (1 - w) fake + w G.

    It takes place after each update of G.

    Args:
        moved: the fake score; those of its parameters move that both networks train.
        towards: G, of the same architecture. What it trains the fake score trains, too.
        weight: w, from 0 to 1.
        first: updates of `towards` before which nothing moves.

    Raises:
        ValueError: `towards` trains a parameter that the other one does not, or has in another shape.
    """

    def __init__(self, moved: nn.Module, towards: nn.Module, *, weight: float, first: int = 0) -> None:
        own, others = ({name: p for name, p in net.named_parameters() if p.requires_grad} for net in (moved, towards))
        if any(name not in own or own[name].shape != p.shape for name, p in others.items()):
            raise ValueError("a network is to move towards one with other parameters in training")
        self.moved, self.towards = ([local_tensor(net[name].detach()) for name in others] for net in (own, others))
        self.weight, self.first = weight, first

    def update(self, count: int) -> None:
        """Move after the update number `count`, from 1, of the other network."""
        if count > self.first:
            torch._foreach_lerp_(self.moved, self.towards, self.weight)  # pyright: ignore[reportPrivateImportUsage]
