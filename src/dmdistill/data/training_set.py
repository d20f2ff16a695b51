"""What a teacher learns from: batches of labelled images, drawn at random from bytes in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dmdistill.data.augmentation import Augmentation, NoAugmentation
from dmdistill.data.cifar10 import is_cifar10, load_cifar10
from dmdistill.data.conditions import Labels, LabelSpace
from dmdistill.data.fashion_mnist import load_fashion_mnist
from dmdistill.data.image_tensors import LabelledImages, from_uint8

__all__ = ["AugmentedLabels", "TrainingSet", "load_labelled"]


@dataclass(frozen=True)
class AugmentedLabels(Labels):
    """Classes, and what was done to the images, (B, labels of the augmentation): of training, where none is null."""

    augment: Tensor


class TrainingSet:
    """Draws from a set of images, which lies on the device of `rng` as bytes.

    Args:
        augmentation: what is done to the images. label_dropout: how often a class is forgotten.
        rng: of every draw.
    """

    def __init__(
        self,
        data: LabelledImages,
        *,
        rng: torch.Generator,
        augmentation: Augmentation | None = None,
        label_dropout: float = 0.0,
    ) -> None:
        self.images, self.labels = data.images.to(rng.device), data.labels.to(rng.device)
        self.space, self.rng = LabelSpace(data.names), rng
        self.augmentation, self.label_dropout = augmentation or NoAugmentation(), label_dropout

    def draw(self, n: int) -> tuple[Tensor, Labels]:
        """n images, each as likely as any other, fp32 in about [-1, 1], n C H W; and what the network is told."""
        rows = torch.randint(len(self.images), (n,), generator=self.rng, device=self.rng.device)
        x, told = self.augmentation(from_uint8(self.images[rows]), rng=self.rng)
        cond = self.space.select(self.labels[rows]).dropped(self.label_dropout, rng=self.rng)
        return x, cond if told is None else AugmentedLabels(cond.one_hot, told)


def load_labelled(folder: Path, *, train: bool = True) -> LabelledImages:
    """CIFAR-10 or Fashion-MNIST, in memory. ValueError, naming the file, where one is missing or damaged."""
    return load_cifar10(folder, train=train) if is_cifar10(folder) else load_fashion_mnist(folder, train=train)
