"""Gradient accumulation and data parallelism around any iteration that yields its losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Protocol

import torch
from torch import Tensor, nn

from dmdistill.distributed.data_parallel import accumulating
from dmdistill.distributed.process_group import SINGLE_PROCESS, ProcessGroup

__all__ = ["NamedLoss", "run_in_lockstep"]


class NamedLoss(Protocol):
    """The loss of one update of a network."""

    @property
    def update(self) -> str:
        """The name of the update."""
        ...

    @property
    def losses(self) -> Mapping[str, Tensor]:
        """The losses that it consists of, by name."""
        ...

    @property
    def total(self) -> Tensor:
        """The scalar to differentiate."""
        ...


def run_in_lockstep(
    iterations: Sequence[Iterator[NamedLoss]],
    updates: Mapping[str, Callable[[Tensor], None]],
    *,
    networks: Iterable[nn.Module] = (),
    processes: ProcessGroup = SINGLE_PROCESS,
) -> dict[str, Tensor]:
    """Run one iteration over all microbatches: each update takes the losses of all of them before the next begins.

    Args:
        iterations: one per microbatch; all yield the losses of the same updates in the same order.
        updates: by name; each takes as many losses as there are microbatches, then updates its network.
        networks: those in training; only with the last microbatch their gradients are exchanged between processes.
        processes: over which the losses are averaged.

    Returns:
        The losses by name, averaged over microbatches and processes; where an update runs several times, its last.
    """
    means: dict[str, Tensor] = {}
    while losses := run_update(iterations, updates, list(networks)):
        means |= {name: torch.stack(parts).mean() for name, parts in losses.items()}
    averaged = processes.all_mean(torch.stack(list(means.values())))
    return dict(zip(means, averaged, strict=True))


def run_update(
    iterations: Sequence[Iterator[NamedLoss]],
    updates: Mapping[str, Callable[[Tensor], None]],
    networks: Sequence[nn.Module],
) -> dict[str, list[Tensor]]:
    """Run the next update over all microbatches. Returns their losses by name; none where the iteration is over."""
    losses: dict[str, list[Tensor]] = {}
    for index, iteration in enumerate(iterations, 1):
        with ExitStack() as stack:
            for network in networks:
                stack.enter_context(accumulating(network, last=index == len(iterations)))
            if (loss := next(iteration, None)) is None:
                return {}
            updates[loss.update](loss.total)
        for name, value in loss.losses.items():
            losses.setdefault(name, []).append(value.detach())
    return losses
