"""Networks for points in the plane, many side by side: the students of Fig. 3."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmdistill.core.denoisers import Condition

__all__ = ["MLPEnsemble"]


class MLPEnsemble(nn.Module):
    """Independent networks of a U-Net's signature: x (B, 2), noise (B,) -> (B, 2).

    Sample i is the affair of network i mod `networks` alone. Each learns as if it were the only one, and all together
    take hardly longer than one: at this size time goes into calls, not into numbers.

    Args:
        networks: how many; B must be a multiple.
        rng: of the first weights, uniform within 1/sqrt(inputs) as in nn.Linear.
    """

    def __init__(self, networks: int, rng: torch.Generator, *, width: int = 64) -> None:
        super().__init__()
        self.networks = networks
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for inputs, outputs in pairwise((3, width, width, width, 2)):
            both = torch.rand(networks, inputs + 1, outputs, generator=rng, device=rng.device) * 2 - 1
            weight, bias = (both * inputs**-0.5).split([inputs, 1], dim=1)
            self.weights.append(nn.Parameter(weight.clone()))
            self.biases.append(nn.Parameter(bias.clone()))

    def forward(self, x: Tensor, noise: Tensor, cond: Condition | None = None) -> Tensor:
        if len(x) % self.networks:
            raise ValueError(f"{len(x)} samples for {self.networks} networks, expected a multiple")
        hidden = torch.cat([x, noise[:, None]], 1).unflatten(0, (-1, self.networks)).transpose(0, 1)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, F.silu(hidden) if i else hidden, weight)
        return hidden.transpose(0, 1).flatten(0, 1)
