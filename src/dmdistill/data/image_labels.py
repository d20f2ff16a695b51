"""Class labels of sets of images, by the folders that the images lie in or by EDM's dataset.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import torch
from torch import Tensor

__all__ = ["ImageLabels", "labels_by_folder", "labels_by_table"]

MAX_CLASSES = 100_000


@dataclass(frozen=True)
class ImageLabels:
    """Class labels of a set of images.

    Attributes:
        index: of the class of each image, int64, N.
        names: of the classes, in the order of their labels.
    """

    index: Tensor
    names: tuple[str, ...]


def labels_by_folder(names: Sequence[str]) -> ImageLabels | None:
    """Label images by the folders that they lie in: the first level at which their paths part.

    Classes are in the order of Python's `sorted`, as with torchvision, datasets and EDM's tool. None where an image
    lies in no such folder, or all in one.
    """
    folders = [PurePosixPath(name.replace("\\", "/")).parent.parts for name in names]  # some zips have backslashes
    depth = 0  # of the first level at which they part; `min` and `max` part first
    for low, high in zip(min(folders), max(folders), strict=False):
        if low != high:
            break
        depth += 1
    if any(len(folder) == depth for folder in folders):
        return None
    owners = [folder[depth] for folder in folders]
    classes = tuple(sorted(set(owners)))
    label = {name: number for number, name in enumerate(classes)}
    return ImageLabels(torch.tensor([label[owner] for owner in owners]), classes)


def labels_by_table(names: Sequence[str], table: Mapping[str, int]) -> ImageLabels:
    """Label images by a table of their names, of as many classes as the highest label says.

    ValueError where an image has no label, or one has a label that is no integer of 0 or more.
    """
    if unlabelled := [name for name in names if name not in table]:
        raise ValueError(f"{len(unlabelled)} of {len(names)} images have no label, first {unlabelled[0]}")
    labels = [table[name] for name in names]
    if odd := [label for label in labels if type(label) is not int or not 0 <= label < MAX_CLASSES]:
        raise ValueError(f"{odd[0]!r} is no label, expected integers from 0 to {MAX_CLASSES - 1}")
    return ImageLabels(torch.tensor(labels), tuple(f"class {number}" for number in range(max(labels) + 1)))
