"""Labelled images, to train on: whichever official files a folder has."""

from __future__ import annotations

from pathlib import Path

from dmdistill.data.cifar import is_cifar10, load_cifar10
from dmdistill.data.images import ImageSet, load_fashion_mnist

__all__ = ["load_labelled"]


def load_labelled(folder: Path, *, train: bool = True) -> ImageSet:
    """CIFAR-10 or Fashion-MNIST, in memory. ValueError, naming the file, where one is missing or damaged."""
    return load_cifar10(folder, train=train) if is_cifar10(folder) else load_fashion_mnist(folder, train=train)
