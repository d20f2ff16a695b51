"""Sets of images to measure: read by range, never held whole where their format allows it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dmdistill.data.cifar10 import is_cifar10, read_cifar10
from dmdistill.data.fashion_mnist import load_fashion_mnist
from dmdistill.data.image_folder import ImageFolder, has_images
from dmdistill.data.image_tensors import center_crop_batch
from dmdistill.io.file_hashes import hash_files

__all__ = ["ArrayImages", "ImageSource", "is_images", "open_images"]

PARTS = ("train", "test")
MODELS = ("config.json", "model_index.json")  # what a model's folder has
FORMATS = (
    "a folder or a .zip of pictures, CIFAR-10's or Fashion-MNIST's official files (their test images by :test behind)"
)


class ImageSource(Protocol):
    """A numbered set of images.

    name: to speak of it. shape: C H W of every image.
    """

    name: str

    @property
    def shape(self) -> tuple[int, int, int]: ...

    def __len__(self) -> int: ...

    def digest(self) -> str:
        """Hexadecimal digits that tell one set of images from another."""
        ...

    def images(self, rows: range) -> Tensor:
        """Those of these numbers: uint8, B C H W, on any device; fewer where damaged ones are to be left out."""
        ...


class ArrayImages:
    """Images in arrays.

    Args:
        parts: uint8, N M each, mapped from a file or in memory; the last C H W bytes of a row are its image.
        shape: C H W. files: they came from, whose content tells them from others.
        side: see `open_images`.
    """

    def __init__(
        self, name: str, parts: Sequence[np.ndarray], *, shape: tuple[int, ...], files: Sequence[Path], side: int | None
    ) -> None:
        self.name, self.parts, self.own_shape, self.files, self.side = name, parts, shape, files, side
        self.starts = np.cumsum([0, *map(len, parts)])

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.own_shape
        return (channels, self.side or height, self.side or width)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def digest(self) -> str:
        return hash_files(self.files, f"{self.own_shape} {self.side}")

    def images(self, rows: range) -> Tensor:
        index = np.array(rows, np.int64)
        size = int(np.prod(self.own_shape))
        found = np.empty((len(index), size), np.uint8)
        for part, start in zip(self.parts, self.starts, strict=False):
            here = (start <= index) & (index < start + len(part))
            found[here] = part[index[here] - start, -size:]
        images = torch.from_numpy(found).reshape(-1, *self.own_shape)
        return images if self.side is None else center_crop_batch(images, self.side)


def open_images(source: str, *, side: int | None = None, skip_corrupt: bool = False) -> ImageSource:
    """The images of a source, one of `FORMATS`.

    Args:
        side: pixels that each image is cut to, square around its middle, and brought to by PIL's Lanczos filter; the
            images as they are, which must be of one size, where None.
        skip_corrupt: leave out pictures that cannot be read; else they are an error.

    ValueError, naming the source, where it is missing, of another kind, empty or damaged.
    """
    path, part = parted(source)
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    if is_cifar10(path):
        rows, files = read_cifar10(path, train=part != "test")
        return ArrayImages(source, rows, shape=(3, 32, 32), files=files, side=side)
    if is_fashion(path):
        data = load_fashion_mnist(path, train=part != "test")
        file = path / f"{'t10k' if part == 'test' else 'train'}-images-idx3-ubyte.gz"
        shape, rows = tuple(data.images.shape[1:]), data.images.flatten(1).numpy()
        return ArrayImages(source, [rows], shape=shape, files=[file], side=side)
    if part is not None:
        raise ValueError(f"{source}: only CIFAR-10's and Fashion-MNIST's files have test images; give {path}")
    if has_images(path):
        return ImageFolder(path, side=side, skip_corrupt=skip_corrupt)
    raise ValueError(f"{source} holds no images; expected {FORMATS}")


def is_images(source: str) -> bool:
    """Whether a name is that of a source of images, and of no model: a run's folder holds pictures too."""
    path, _ = parted(source)
    models = [folder / file for folder in (path, path / "student", path / "teacher") for file in MODELS]
    if any(file.is_file() for file in models):
        return False
    return is_cifar10(path) or is_fashion(path) or has_images(path)


def parted(source: str) -> tuple[Path, str | None]:
    """The path of a source and train or test, where it ends so."""
    path, _, part = source.rpartition(":")
    return (Path(path), part) if path and part in PARTS else (Path(source), None)


def is_fashion(path: Path) -> bool:
    return any((path / f"{part}-images-idx3-ubyte.gz").is_file() for part in ("train", "t10k"))
