"""Resizing of images to a feature extractor's input. The ways differ by whole points of FID."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dmdistill.metrics.features import check_uint8

__all__ = ["resize_bicubic", "resize_tensorflow"]


def resize_tensorflow(images: Tensor, side: int = 299) -> Tensor:
    """Resize bilinearly as the Inception of 2015 does, and so FID as EDM reports it: float B C side side.

    TensorFlow 1 puts output pixel i at i H / side: corners are not centred, and nothing is smoothed first. The place
    that affine_grid takes, (i + 1/2) H / side - 1/2, is moved by 1 / H - 1 / side of its units. The border is repeated.
    """
    x = check_uint8(images).float()
    height, width = x.shape[2:]
    theta = torch.tensor([[1.0, 0.0, 1 / width - 1 / side], [0.0, 1.0, 1 / height - 1 / side]], device=x.device)
    grid = F.affine_grid(theta.expand(len(x), 2, 3), [len(x), x.shape[1], side, side], align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def resize_bicubic(images: Tensor, side: int = 299) -> Tensor:
    """Resize bicubically with antialiasing in floats, as clean-fid (Parmar et al. 2022): B C side side, 0 ... 255."""
    channels = check_uint8(images).cpu().flatten(0, 1).numpy().astype(np.float32)  # Pillow's mode F rounds nothing
    resized = [Image.fromarray(channel).resize((side, side), Image.Resampling.BICUBIC) for channel in channels]
    stacked = torch.from_numpy(np.stack([np.asarray(channel).clip(0, 255) for channel in resized]))
    return stacked.reshape(*images.shape[:2], side, side).to(images.device)
