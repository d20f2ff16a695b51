"""CIFAR-10 from the official files of its binary version (Krizhevsky 2009), memory-mapped.

cifar-10-batches-bin/data_batch_1.bin ... data_batch_5.bin, test_batch.bin    rows of a label and 3 x 32 x 32 bytes
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

__all__ = ["CLASSES", "is_cifar10", "map_cifar10"]

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN, TEST = tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",)
PIXELS = 3 * 32 * 32


def is_cifar10(folder: Path) -> bool:
    """Return whether a folder has one of CIFAR-10's files, of whichever version."""
    return any((folder / f"{name}{ending}").is_file() for name in (*TRAIN, *TEST) for ending in (".bin", ""))


def map_cifar10(folder: Path, *, train: bool = True) -> tuple[list[np.ndarray], list[Path]]:
    """Map the files of the training or test images: rows of a label and an image, C H W, per file; and the files.

    ValueError, naming the file, where one is missing, truncated or something else.
    """
    files = [folder / f"{name}.bin" for name in (TRAIN if train else TEST)]
    for file in files:
        if not file.is_file():
            hint = ": its python version is not read" if file.with_suffix("").is_file() else ""
            raise ValueError(f"no {file.name} in {folder}{hint}; expected all files of CIFAR-10's binary version")
    return [map_file(file) for file in files], files


def map_file(file: Path) -> np.ndarray:
    """Map one file."""
    size = file.stat().st_size
    if size == 0 or size % (1 + PIXELS):
        raise ValueError(
            f"{file} has {size} bytes, expected a multiple of {1 + PIXELS}: it is truncated or not CIFAR-10"
        )
    rows = np.memmap(file, np.uint8, "r").reshape(-1, 1 + PIXELS)
    if (worst := int(rows[:, 0].max())) > 9:
        raise ValueError(f"{file} holds the label {worst}, expected 0 to 9: it is not CIFAR-10")
    return rows
