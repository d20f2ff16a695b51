"""Diversity within a prompt: how much the images of one prompt differ."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["prompt_diversity"]


def prompt_diversity(features: Tensor, groups: Tensor) -> float:
    """Compute the mean cosine distance, 1 - cos, of two images of one prompt, as the mean over the prompts.

    0 where all images of a prompt are alike. Prompts with one image do not count. Of the unit vectors u of a prompt's
    images, the cosines of all pairs add up to (|sum u|^2 - sum |u|^2) / 2, so no pair is visited.

    Args:
        features: N D, of the images, on any device.
        groups: integers (N,), the same for images of one prompt.

    Raises:
        ValueError: no prompt has two images.
    """
    _, index, counts = groups.to(features.device).unique(return_inverse=True, return_counts=True)
    units = F.normalize(features.double())
    sums = units.new_zeros(len(counts), units.shape[1]).index_add(0, index, units)
    squares = units.new_zeros(len(counts)).index_add(0, index, units.square().sum(1))
    several = counts > 1
    if not bool(several.any()):
        raise ValueError(f"diversity of {len(features)} images of as many prompts, expected at least two of a prompt")
    cosines = (sums.square().sum(1) - squares)[several] / (counts * (counts - 1))[several]
    return float(1 - cosines.mean())
