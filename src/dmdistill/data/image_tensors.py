"""Images as tensors: conversions, crops, labelled sets, grids."""

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
    "make_grid",
    "save_grid",
    "to_uint8",
]


@dataclass(frozen=True)
class LabelledImages:
    """Images in memory, with class labels where they have any.

    Attributes:
        images: uint8, N C H W.
        labels: int64, N; zeros where there are no classes.
        names: of the classes; none for images without labels.
        captions: of the images; none where they have none, or where they were not read.
        name: of the data set.
        licence: of the data set.
        feature_extractor: name of the classifier whose features measure such images, or None.
    """

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]
    name: str = "images"
    licence: str = "unknown"
    feature_extractor: str | None = None
    captions: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)


def from_uint8(images: Tensor) -> Tensor:
    """Convert uint8, 0 to 255, to fp32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Convert floats in [-1, 1] to uint8, rounded to nearest and clipped. ValueError where one is NaN or infinite."""
    if not torch.isfinite(images).all():
        raise ValueError("images hold NaN or infinity")
    return (images.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def center_crop(image: Image.Image, side: int) -> Image.Image:
    """Crop an image to a square around its middle and resize it to side x side by PIL's Lanczos filter."""
    if image.size == (side, side):
        return image
    least = min(image.size)
    left, top = (image.width - least) // 2, (image.height - least) // 2
    square = image.crop((left, top, left + least, top + least))
    return square.resize((side, side), Image.Resampling.LANCZOS)


def center_crop_batch(images: Tensor, side: int) -> Tensor:
    """Crop and resize uint8 images, B C H W, like `center_crop`; the result is on the CPU."""
    planes = images.cpu().flatten(0, 1).numpy()
    resized = np.empty((len(planes), side, side), np.uint8)
    for i, plane in enumerate(planes):
        resized[i] = np.asarray(center_crop(Image.fromarray(plane), side))
    return torch.from_numpy(resized).reshape(*images.shape[:2], side, side)


def save_grid(path: Path | str, images: Tensor | Sequence[Tensor], *, columns: int, zoom: int = 2) -> None:
    """Write images as one PNG: the grid of `make_grid`, whose arguments the others are."""
    picture = make_grid(images, columns=columns, zoom=zoom)
    with atomic_write(Path(path)) as temporary:
        picture.save(temporary, "PNG")


def make_grid(images: Tensor | Sequence[Tensor], *, columns: int, zoom: int = 2) -> Image.Image:
    """Join images to one picture, row by row, with a pixel between.

    Args:
        images: N C H W in [-1, 1], C 1 or 3; or a sequence of such batches.
        columns: images per row.
        zoom: pixels per side of an image's pixel.
    """
    images = images if isinstance(images, Tensor) else torch.cat(list(images))
    n, c, height, width = images.shape
    rows = math.ceil(n / columns)
    canvas = torch.full((c, rows * (height + 1) - 1, columns * (width + 1) - 1), 255, dtype=torch.uint8)
    for i, image in enumerate(to_uint8(images).cpu()):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        canvas[:, top : top + height, left : left + width] = image
    array = canvas[0].numpy() if c == 1 else canvas.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array)
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
