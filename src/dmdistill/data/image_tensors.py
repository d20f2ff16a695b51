"""Image data sets as official files, and pictures of many images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dmdistill.io.atomic import atomic_write

__all__ = [
    "LabelledImages",
    "center_crop",
    "center_crop_batch",
    "from_uint8",
    "save_grid",
    "to_uint8",
]


@dataclass(frozen=True)
class LabelledImages:
    """images: uint8, N C H W. labels: int64, N. names: of the classes. name, licence: of the data.

    judge: name of the classifier whose features measure such images; None where there is none.
    """

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]
    name: str = "images"
    licence: str = "unknown"
    feature_extractor: str | None = None

    def __len__(self) -> int:
        return len(self.images)


def from_uint8(images: Tensor) -> Tensor:
    """uint8 0 ... 255 -> fp32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Floats in [-1, 1] -> uint8, rounded to the nearest, clipped. ValueError where one is NaN or infinite."""
    if not torch.isfinite(images).all():
        raise ValueError("images hold NaN or infinity: they are no pictures")
    return (images.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def center_crop(picture: Image.Image, side: int) -> Image.Image:
    """A picture cut to a square around its middle and brought to side x side by PIL's Lanczos filter."""
    if picture.size == (side, side):
        return picture
    least = min(picture.size)
    left, top = (picture.width - least) // 2, (picture.height - least) // 2
    cut = picture.crop((left, top, left + least, top + least))
    return cut.resize((side, side), Image.Resampling.LANCZOS)


def center_crop_batch(images: Tensor, side: int) -> Tensor:
    """The same of uint8 images, B C H W, on the CPU."""
    planes = images.cpu().flatten(0, 1).numpy()
    found = np.empty((len(planes), side, side), np.uint8)
    for i, plane in enumerate(planes):
        found[i] = np.asarray(center_crop(Image.fromarray(plane), side))
    return torch.from_numpy(found).reshape(*images.shape[:2], side, side)


def save_grid(path: Path | str, images: Tensor | Sequence[Tensor], *, columns: int, zoom: int = 2) -> None:
    """Write images (N C H W in [-1, 1], C 1 or 3) as one PNG, row by row, with a pixel between."""
    path = Path(path)
    images = images if isinstance(images, Tensor) else torch.cat(list(images))
    n, c, height, width = images.shape
    rows = math.ceil(n / columns)
    canvas = torch.full((c, rows * (height + 1) - 1, columns * (width + 1) - 1), 255, dtype=torch.uint8)
    for i, image in enumerate(to_uint8(images).cpu()):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        canvas[:, top : top + height, left : left + width] = image
    array = canvas[0].numpy() if c == 1 else canvas.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array)
    with atomic_write(path) as temporary:
        picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST).save(temporary, "PNG")
