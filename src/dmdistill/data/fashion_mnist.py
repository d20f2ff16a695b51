"""Fashion-MNIST from its official files."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dmdistill.data.image_tensors import LabelledImages

__all__ = ["load_fashion_mnist", "read_idx"]


FASHION_CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


def read_idx(path: Path) -> Tensor:
    """A gzipped IDX file (the MNIST family's format) of unsigned bytes."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as gzip: {error}") from None
    dims = content[3] if len(content) > 3 else 0
    shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(dims)]
    data = np.frombuffer(content, np.uint8, offset=min(4 + 4 * dims, len(content)))
    if content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * dims or data.size != math.prod(shape):
        raise ValueError(f"{path} is not an IDX file of unsigned bytes, or is cut short")
    return torch.from_numpy(data.reshape(shape).copy())


def load_fashion_mnist(folder: Path, *, train: bool = True) -> LabelledImages:
    """The official *-ubyte.gz files of Fashion-MNIST (Xiao et al. 2017, MIT licence)."""
    part = "train" if train else "t10k"
    files = [folder / f"{part}-images-idx3-ubyte.gz", folder / f"{part}-labels-idx1-ubyte.gz"]
    for file in files:
        if not file.is_file():
            raise ValueError(
                f"no {file.name} in {folder}: --data takes the folder of Fashion-MNIST's official .gz files, or of "
                "CIFAR-10's"
            )
    images, labels = (read_idx(file) for file in files)
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{folder} holds {part} images {tuple(images.shape)} and labels {tuple(labels.shape)}, expected N H W and N"
        )
    about = {"name": "fashion", "licence": "MIT", "feature_extractor": "fashion-classifier"}
    return LabelledImages(images[:, None], labels.long(), FASHION_CLASSES, **about)
