"""How images are brought to a size before they are measured. The ways differ by whole points of a FID."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dmdistill.metrics.features import check_bytes

__all__ = ["resize_bicubic", "resize_lanczos", "resize_tensorflow"]


def resize_tensorflow(images: Tensor, side: int = 299) -> Tensor:
    """Bilinear as the Inception of 2015 has it, and so FID as EDM reports it: float B C side side, on the device.

    TensorFlow 1's place of an output pixel i is i H / side, so corners are not centred, and nothing is smoothed first:
    affine_grid's place, (i + 1/2) H / side - 1/2, is moved by 1 / H - 1 / side of its units. Beyond the border its
    pixels go on.
    """
    x = check_bytes(images).float()
    height, width = x.shape[2:]
    theta = torch.tensor([[1.0, 0.0, 1 / width - 1 / side], [0.0, 1.0, 1 / height - 1 / side]], device=x.device)
    grid = F.affine_grid(theta.expand(len(x), 2, 3), [len(x), x.shape[1], side, side], align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def resize_bicubic(images: Tensor, side: int = 299) -> Tensor:
    """Bicubic and smoothed, each channel in floats (Parmar et al. 2022, clean-fid): B C side side, 0 ... 255."""

    def one(channel: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(channel.astype(np.float32))  # mode F: nothing is rounded
        return np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC)).clip(0, 255)

    return by_channel(images, one)


def resize_lanczos(images: Tensor, side: int = 256) -> Tensor:
    """Lanczos and smoothed, rounded as pictures are: uint8 B C side side. The paper's 512 to 256 for MS-COCO."""

    def one(channel: np.ndarray) -> np.ndarray:
        return np.array(Image.fromarray(channel).resize((side, side), Image.Resampling.LANCZOS))

    return by_channel(images, one)


def by_channel(images: Tensor, one: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    """A function of H W arrays on each channel of each image: Pillow's resizing knows no other channel either."""
    arrays = check_bytes(images).cpu().numpy()
    resized = np.stack([np.stack([one(channel) for channel in image]) for image in arrays])
    return torch.from_numpy(resized).to(images.device)
