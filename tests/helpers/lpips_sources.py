"""The two published files that LPIPS' weights are made of, with random weights."""

from pathlib import Path

import torch
from torch import Tensor

from dmdistill.metrics.lpips import LPIPS
from dmdistill.metrics.lpips_weights import HEADS, VGG16, published_name


def write_lpips_sources(folder: Path, weights: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Write both files, of random weights unless some are given; return the weights by their published names."""
    weights = weights or {published_name(name): tensor for name, tensor in LPIPS().state_dict().items()}
    features = {name: tensor for name, tensor in weights.items() if name.startswith("features.")}
    heads = {name: weights[name] for name in weights.keys() - features.keys()}
    features |= {"classifier.0.weight": torch.zeros(2, 2)}
    torch.save(features, folder / VGG16.name, _use_new_zipfile_serialization=False)  # as torchvision's
    torch.save(heads, folder / HEADS.name, _use_new_zipfile_serialization=False)
    return weights
