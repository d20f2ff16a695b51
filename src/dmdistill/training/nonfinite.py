"""Which network was the first to return NaN or infinity."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dmdistill.distributed.process_group import ProcessGroup

__all__ = ["NonFiniteError", "OutputMonitor"]


class NonFiniteError(FloatingPointError):
    """A loss or a gradient is NaN or infinite."""


class OutputMonitor:
    """Finds the first network with a non-finite output, by forward hooks.

    It inspects outputs, which waits for the device, only where `enabled`.

    Args:
        networks: by the names that messages use; each returns one tensor, B .... Where a network's second argument is
            a tensor, it holds the times (B) that the message names.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        self.enabled = False
        self.finding: str | None = None
        for name, network in networks.items():
            network.register_forward_hook(partial(self.inspect, name))

    def start(self, *, enabled: bool) -> None:
        """Begin a step: forget what was found, and inspect outputs or not."""
        self.enabled, self.finding = enabled, None

    def describe(self, processes: ProcessGroup) -> str:
        """Return the first finding of several processes, all of which call this, for a message; "" for none."""
        for rank, finding in enumerate(processes.all_gather(self.finding)):
            if finding is not None:
                return f": {finding}" + (f" (process {rank})" if processes.world_size > 1 else "")
        return ""

    @torch.no_grad()
    def inspect(self, name: str, network: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """Note the first output with NaN or infinity."""
        if not self.enabled or self.finding is not None:
            return
        bad = (~torch.isfinite(output.flatten(1)).all(1)).nonzero()
        if len(bad):
            sample = int(bad[0])
            times = args[1] if len(args) > 1 and isinstance(args[1], Tensor) else None
            at = f" at time {times[sample].item():.4g}" if times is not None else ""
            self.finding = (
                f"{name} returned NaN or infinity for {len(bad)} of {len(output)} samples, the first of them sample "
                f"{sample}{at}"
            )
