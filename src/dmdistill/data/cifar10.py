"""CIFAR-10's official files (Krizhevsky 2009): the binary version mapped, the python version read without running it.

cifar-10-batches-bin/data_batch_1.bin ... data_batch_5.bin, test_batch.bin    rows of a label and 3 x 32 x 32 bytes
cifar-10-batches-py/data_batch_1 ... data_batch_5, test_batch                 pickles of such rows, without labels
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dmdistill.data.image_tensors import LabelledImages
from dmdistill.io.pickle_vm import Record, load
from dmdistill.io.safe_pickle import FAILURES

__all__ = ["CLASSES", "is_cifar10", "load_cifar10", "read_cifar10"]

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN, TEST = tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",)
PIXELS = 3 * 32 * 32
CORES = ("numpy.core.multiarray", "numpy._core.multiarray")


def is_cifar10(folder: Path) -> bool:
    return any((folder / f"{name}{suffix}").is_file() for name in (*TRAIN, *TEST) for suffix in (".bin", ""))


def load_cifar10(folder: Path, *, train: bool = True) -> LabelledImages:
    """All images with their labels, in memory: 154 MB to train on.

    ValueError as of `read_cifar10`, and where a file of the python version has no labels.
    """
    rows, files = read_cifar10(folder, train=train)
    labels = [own[:, 0] if own.shape[1] > PIXELS else read_labels(file) for own, file in zip(rows, files, strict=True)]
    if odd := next((file for file, a, b in zip(files, rows, labels, strict=True) if len(a) != len(b)), None):
        raise ValueError(f"{odd} has another number of labels than of images: it is damaged, or no CIFAR-10")
    images = torch.from_numpy(np.concatenate([own[:, -PIXELS:] for own in rows]))
    index = torch.from_numpy(np.concatenate(labels).astype(np.int64))
    return LabelledImages(images.reshape(-1, 3, 32, 32), index, CLASSES, name="cifar10")


def read_cifar10(folder: Path, *, train: bool = True) -> tuple[list[np.ndarray], list[Path]]:
    """Rows whose last 3,072 bytes are an image, C H W, per file; and the files.

    ValueError, naming the file, where one is missing, cut short or something else.
    """
    suffix = ".bin" if any(folder.glob("*_batch*.bin")) else ""
    files = [folder / f"{name}{suffix}" for name in (TRAIN if train else TEST)]
    for file in files:
        if not file.is_file():
            raise ValueError(f"no {file.name} in {folder}: expected all of CIFAR-10's official files")
    return [read_binary(file) if suffix else read_batch(file) for file in files], files


def read_binary(file: Path) -> np.ndarray:
    size = file.stat().st_size
    if size == 0 or size % (1 + PIXELS):
        raise ValueError(
            f"{file} has {size} bytes, expected a multiple of {1 + PIXELS}: it is cut short or no CIFAR-10"
        )
    rows = np.memmap(file, np.uint8, "r").reshape(-1, 1 + PIXELS)
    if (worst := int(rows[:, 0].max())) > 9:
        raise ValueError(f"{file} holds the label {worst}, expected 0 to 9: it is no CIFAR-10")
    return rows


def read_batch(file: Path) -> np.ndarray:
    """The rows of a file of the python version."""
    return read_entry(file, "data", array)


def read_labels(file: Path) -> np.ndarray:
    """The labels of a file of the python version."""
    return read_entry(file, "labels", numbers)


def read_entry(file: Path, name: str, understand: Callable[[Any], np.ndarray]) -> np.ndarray:
    """One entry of a file of the python version. ValueError, naming the file, where it is not what it should be."""
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as stream:
            found = load(stream, CALLS)[name]  # type: ignore[arg-type]
        return understand(found)
    except FAILURES as error:
        why = " ".join(f"{error or type(error).__name__}".split())[:300]
        raise ValueError(f"{file} cannot be read as a batch of CIFAR-10: {why}") from None


def numbers(labels: Any) -> np.ndarray:
    """A list of labels, 0 to 9."""
    if type(labels) is not list or not all(type(label) is int and 0 <= label <= 9 for label in labels):
        raise ValueError("its labels are no list of numbers from 0 to 9")
    return np.array(labels, np.uint8)


def array(record: Record) -> np.ndarray:
    """The bytes that NumPy wrote of an array of bytes, as rows of images."""
    _, shape, kind, fortran, content = record.state
    if (record.kind, kind.kind, kind.state[1], fortran) != ("array", "dtype u1", "|", False):
        raise ValueError("its data are no array of bytes")
    raw = content.encode("latin1") if type(content) is str else content
    if type(raw) is not bytes or len(shape) != 2 or shape[1] != PIXELS or len(raw) != shape[0] * PIXELS:
        raise ValueError(f"its data have the shape {shape}, expected (images, {PIXELS})")
    return np.frombuffer(raw, np.uint8).reshape(shape)


def array_of(kind: Any, shape: tuple[int, ...], code: Any) -> Record:
    return Record("array")


def dtype(name: str, *_: Any) -> Record:
    return Record(f"dtype {name}")


def refused(*_: Any) -> None:
    raise ValueError("it makes an array by its class")


def encoded(words: str, encoding: str) -> bytes:
    """Bytes, as Python 3 writes them by protocol 2."""
    if encoding != "latin1":
        raise ValueError("bytes that are not written as text in latin1")
    return words.encode("latin1")


CALLS: dict[str, Callable[..., Any]] = {"numpy.ndarray": refused, "numpy.dtype": dtype}
CALLS |= {f"{core}._reconstruct": array_of for core in CORES}
CALLS |= {"_codecs.encode": encoded}
