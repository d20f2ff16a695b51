"""Labelled images in IDX files, the format of MNIST and of the sets that follow it."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dmdistill.data.image_tensors import LabelledImages
from dmdistill.io.errors import first_line
from dmdistill.io.limits import check_expansion

__all__ = ["FASHION_CLASSES", "FASHION_SHA256", "is_idx_folder", "load_idx_images", "read_idx", "required_file"]

FASHION_CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
FASHION_CLASSIFIER = "fashion-classifier"  # bundled
FASHION_SHA256 = {  # of the pixels of its training and of its test images (Xiao et al. 2017, MIT licence)
    "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
    "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
}
PARTS = {True: "train", False: "t10k"}
DIMENSIONS = {"images": 3, "labels": 1}


def find_idx_file(folder: Path, kind: str, *, train: bool) -> Path | None:
    """Return the file of the "images" or "labels" of a set's training or test part, gzipped or not; None for none."""
    names = [
        f"{PARTS[train]}-{kind}{sign}idx{DIMENSIONS[kind]}-ubyte{ending}" for sign in "-." for ending in (".gz", "")
    ]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def is_idx_folder(folder: Path) -> bool:
    """Return whether a folder has IDX files of images."""
    return any(find_idx_file(folder, "images", train=train) for train in PARTS)


def read_idx(file: Path) -> Tensor:
    """Read an IDX file of unsigned bytes, gzipped or not. ValueError, naming it, where it is damaged or foreign."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            head = stream.read(4)
            sizes = stream.read(4 * head[3]) if head[:3] == b"\0\0\x08" and len(head) == 4 else b""
            shape = [int.from_bytes(sizes[i : i + 4], "big") for i in range(0, len(sizes), 4)]
            size = math.prod(shape) if shape else 0
            check_expansion(size, file.stat().st_size)
            content = stream.read(size + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"{file} cannot be read as an IDX file: {first_line(error)}") from None
    if not shape or len(shape) != head[3] or len(content) != size:
        raise ValueError(f"{file} is not an IDX file of unsigned bytes, or is truncated")
    return torch.from_numpy(np.frombuffer(content, np.uint8).reshape(shape).copy())


def load_idx_images(folder: Path, *, train: bool = True) -> LabelledImages:
    """Load the training or test part of a set, whose files have MNIST's names.

    Fashion-MNIST is recognised by its pixels; other sets have the name of their folder, and classes by their labels.
    ValueError, naming the file, where one is missing, truncated or something else.
    """
    images, labels = (read_idx(required_file(folder, kind, train=train)) for kind in DIMENSIONS)
    if images.ndim != 3 or labels.shape != images.shape[:1] or not images.numel():
        raise ValueError(
            f"{folder} holds {PARTS[train]} images {tuple(images.shape)} and labels {tuple(labels.shape)}, "
            "expected N H W and N"
        )
    if hashlib.sha256(images.numpy().tobytes()).hexdigest() in FASHION_SHA256:
        return LabelledImages(
            images[:, None],
            labels.long(),
            FASHION_CLASSES,
            "fashion",
            licence="MIT",
            feature_extractor=FASHION_CLASSIFIER,
        )
    other = find_idx_file(folder, "labels", train=not train)
    known = labels if other is None else torch.cat([labels, read_idx(other).flatten()])
    values = known.unique()  # letters count from 1
    names = tuple(f"class {value}" for value in values.tolist())
    return LabelledImages(images[:, None], torch.searchsorted(values, labels), names, name=folder.resolve().name)


def required_file(folder: Path, kind: str, *, train: bool) -> Path:
    """Return an IDX file. ValueError where it is missing."""
    file = find_idx_file(folder, kind, train=train)
    if file is None:
        name = f"{PARTS[train]}-{kind}-idx{DIMENSIONS[kind]}-ubyte.gz"
        raise ValueError(f"no {name} in {folder}: expected all IDX files of the set")
    return file
