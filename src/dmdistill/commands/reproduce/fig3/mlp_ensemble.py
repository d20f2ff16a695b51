"""Independent MLPs evaluated side by side: the students of Fig. 3."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmdistill.core.denoisers import Condition

__all__ = ["MLPEnsemble"]


class MLPEnsemble(nn.Module):
    """Independent MLPs for points in the plane, with the call signature of a U-Net: x (B, 2), noise (B,) -> (B, 2).

    Sample i goes through network i mod `networks` only, so each network trains as if it were the only one. One batched
    product per layer makes the ensemble about as fast as a single network of this size.

    Args:
        networks: number of networks; B must be a multiple.
        rng: draws the initial weights, uniform within 1/sqrt(inputs) as in nn.Linear.
        width: channels of the three hidden layers.
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
        """Evaluate every network on its samples. ValueError unless B is a multiple of the number of networks."""
        if len(x) % self.networks:
            raise ValueError(f"{len(x)} samples for {self.networks} networks, expected a multiple")
        hidden = torch.cat([x, noise[:, None]], 1).unflatten(0, (-1, self.networks)).transpose(0, 1)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, F.silu(hidden) if i else hidden, weight)
        return hidden.transpose(0, 1).flatten(0, 1)
