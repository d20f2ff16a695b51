"""Sets of images of any supported format, read by range and never loaded in full where their format allows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dmdistill.data.cifar10 import CLASSES, is_cifar10, map_cifar10
from dmdistill.data.idx_images import is_idx_folder, load_idx_images, required_file
from dmdistill.data.image_folder import has_images, is_table, open_image_folder, open_image_table
from dmdistill.data.image_labels import ImageLabels
from dmdistill.data.image_names import is_image_name
from dmdistill.data.image_tensors import center_crop_batch
from dmdistill.io.file_hashes import hash_files

__all__ = ["ArrayImages", "ImageSource", "StoredImages", "check_images", "has_test_images", "is_images", "open_images"]

PARTS = ("train", "test")
MODELS = ("config.json", "model_index.json")  # files of a model's folder
RUNS = ("config.toml", "metrics.jsonl")  # files of a run's folder
FORMATS = (
    "a folder or a .zip of images, a .csv, .tsv, .jsonl or .parquet of their names, the files of CIFAR-10's binary "
    "version, or IDX files (test images by :test)"
)
PUBLISHED = {
    "fashionmnist": "Fashion-MNIST's four .gz files are at https://github.com/zalandoresearch/fashion-mnist",
    "cifar10": "CIFAR-10's binary version is at https://www.cs.toronto.edu/~kriz/cifar.html",
}


class ImageSource(Protocol):
    """A numbered set of images.

    Attributes:
        name: in messages.
        shape: C H W of every image.
    """

    name: str

    @property
    def shape(self) -> tuple[int, int, int]: ...

    def __len__(self) -> int: ...

    def digest(self) -> str:
        """Return hexadecimal digits that tell this set of images from another."""
        ...

    def images(self, rows: range) -> Tensor:
        """Return images by their numbers: uint8, B C H W, on any device; fewer where corrupt ones are left out."""
        ...


class StoredImages(ImageSource, Protocol):
    """Images of a file or a folder, which can be read in any order, and what is known of them.

    Attributes:
        labels: of the images; None where they have none. ValueError where some have none.
        captions: of the images, in their order; None where they have none. ValueError where some have none.
        about: name, licence and feature_extractor of the data set, as far as they are known.
    """

    @property
    def labels(self) -> ImageLabels | None: ...

    @property
    def captions(self) -> Sequence[str] | None: ...

    @property
    def about(self) -> Mapping[str, str]: ...

    def images(self, rows: Sequence[int]) -> Tensor:
        """Return images by their numbers, in any order and repeated: uint8, B C H W; fewer where corrupt ones are."""
        ...


class ArrayImages:
    """Images in arrays.

    Args:
        name: in messages.
        parts: uint8, N M each, mapped from a file or in memory; the last C H W bytes of a row are its image.
        shape: C H W of the stored images.
        files: they came from, whose content tells them from others.
        labels: of the images.
        about: name, licence and feature_extractor of the data set, as far as they are known.
        side: pixels that each image is cropped and resized to; None for images as they are.
    """

    captions = None

    def __init__(
        self,
        name: str,
        parts: Sequence[np.ndarray],
        *,
        shape: tuple[int, ...],
        files: Sequence[Path],
        labels: ImageLabels,
        about: Mapping[str, str],
        side: int | None,
    ) -> None:
        self.name, self.parts, self.stored_shape, self.files, self.side = name, parts, shape, files, side
        self.labels, self.about = labels, about
        self.starts = np.cumsum([0, *map(len, parts)])

    @property
    def shape(self) -> tuple[int, int, int]:
        """C H W of every image."""
        channels, height, width = self.stored_shape
        return (channels, self.side or height, self.side or width)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def digest(self) -> str:
        """Return hexadecimal digits that tell this set of images from another."""
        return hash_files(self.files, f"{self.stored_shape} {self.side}")

    def images(self, rows: Sequence[int]) -> Tensor:
        """Return images by their numbers, in any order: uint8, B C H W."""
        index = np.array(rows, np.int64)
        size = int(np.prod(self.stored_shape))
        pixels = np.empty((len(index), size), np.uint8)
        for part, start in zip(self.parts, self.starts, strict=False):
            here = (start <= index) & (index < start + len(part))
            pixels[here] = part[index[here] - start, -size:]
        images = torch.from_numpy(pixels).reshape(-1, *self.stored_shape)
        return images if self.side is None else center_crop_batch(images, self.side)


def open_images(source: str, *, side: int | None = None, skip_corrupt: bool = False) -> StoredImages:
    """Open the images of a source, one of `FORMATS`.

    Args:
        source: path, with :train or :test behind it for the parts of CIFAR-10 and of IDX sets.
        side: pixels that each image is cropped to, a square around its middle, and resized to by PIL's Lanczos filter;
            None for images as they are, which must be of one size.
        skip_corrupt: leave out files that cannot be read; else they are an error.

    Raises:
        ValueError: the source is missing, of another kind, empty or damaged.
    """
    check_images(source)
    path, part = split_source(source)
    train = part != "test"
    if is_cifar10(path):
        rows, files = map_cifar10(path, train=train)
        labels = ImageLabels(torch.from_numpy(np.concatenate([part[:, 0] for part in rows])).long(), CLASSES)
        about = {"name": "cifar10"}
        return ArrayImages(source, rows, shape=(3, 32, 32), files=files, labels=labels, about=about, side=side)
    if is_idx_folder(path):
        data = load_idx_images(path, train=train)
        shape, pixels = tuple(data.images.shape[1:]), [data.images.flatten(1).numpy()]
        labels, files = ImageLabels(data.labels, data.names), [required_file(path, "images", train=train)]
        about = {"name": data.name, "licence": data.licence}
        if data.feature_extractor is not None and side in (None, *shape[1:]):  # it knows images of this size
            about["feature_extractor"] = data.feature_extractor
        return ArrayImages(source, pixels, shape=shape, files=files, labels=labels, about=about, side=side)
    if part is not None:
        raise ValueError(f"{source}: only the files of CIFAR-10 and IDX files have test images; give {path}")
    opened = open_image_table if is_table(path) else open_image_folder
    return opened(path, side=side, skip_corrupt=skip_corrupt)


def check_images(source: str) -> None:
    """Raise a ValueError where a source is missing or is not one of images, of which none is read."""
    path, _ = split_source(source)
    if not path.exists():
        folder, _, part = source.rpartition(":")
        if folder and Path(folder).exists():
            raise ValueError(f"{source}: {folder} has no part {part!r}, expected :train or :test")
        where = next((f". {at}" for name, at in PUBLISHED.items() if name in path.name.replace("-", "").lower()), "")
        raise ValueError(f"{path} does not exist: expected {FORMATS}{where}")
    if is_model_or_run(path):
        raise ValueError(f"{source} is a model's or a run's folder; expected {FORMATS}")
    if not is_images(source):
        parts_of_sets = is_image_name(path.name), is_idx_folder(path.parent), is_cifar10(path.parent)
        if path.is_file() and any(parts_of_sets):
            raise ValueError(f"{source} is one file of a set of images: give its folder, {path.parent}")
        raise ValueError(f"{source} holds no images; expected {FORMATS}")


def is_images(source: str) -> bool:
    """Return whether a source is one of images. The folder of a model or run is none, though it has pictures too."""
    path, _ = split_source(source)
    return not is_model_or_run(path) and (is_cifar10(path) or is_idx_folder(path) or has_images(path))


def has_test_images(path: Path) -> bool:
    """Whether a set has test images of its own, source:test."""
    return is_cifar10(path) or is_idx_folder(path)


def is_model_or_run(path: Path) -> bool:
    """Return whether a path is the folder of a model or of a run, finished or not."""
    models = [folder / file for folder in (path, path / "student", path / "teacher") for file in MODELS]
    return any(file.is_file() for file in models) or all((path / file).is_file() for file in RUNS)


def split_source(source: str) -> tuple[Path, str | None]:
    """Return the path of a source, ~ expanded, and train or test where it ends so."""
    path, _, part = source.rpartition(":")
    return (Path(path).expanduser(), part) if path and part in PARTS else (Path(source).expanduser(), None)
