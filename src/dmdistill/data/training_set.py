"""Training sets of labelled images: random batches from bytes in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from dmdistill.core.noise import NoiseSource
from dmdistill.core.samples import Samples
from dmdistill.data.augmentation import Augmentation, GeometricAugmentation, NoAugmentation
from dmdistill.data.cifar10 import is_cifar10, load_cifar10
from dmdistill.data.conditions import Labels, LabelSpace
from dmdistill.data.idx_images import is_idx_folder, load_idx_images
from dmdistill.data.image_folder import has_images
from dmdistill.data.image_sources import open_images
from dmdistill.data.image_tensors import LabelledImages, from_uint8

__all__ = ["AugmentedLabels", "SampleAugmentation", "TrainingSet", "load_labelled_images"]


@dataclass(frozen=True)
class AugmentedLabels(Labels):
    """Class labels with the augmentation labels of the images, (B, labels of the augmentation), for training."""

    augment: Tensor


@dataclass(frozen=True)
class SampleAugmentation:
    """Augments the images that a loss sees, and tells the network of it; draws come from the loss's source of noise."""

    augmentation: GeometricAugmentation

    def __call__(self, samples: Samples, noise: NoiseSource) -> Samples:
        """Return changed images with augmentation labels beside their own, of class or none."""
        x, augment = self.augmentation.apply(samples.x, noise.draw(samples, self.augmentation.draw))
        one_hot = x.new_zeros(len(x), 0) if samples.cond is None else samples.cond.one_hot  # type: ignore[attr-defined]
        return replace(samples, x=x, cond=AugmentedLabels(one_hot, augment))


class TrainingSet:
    """Random batches of a set of images, which lies as bytes on the device of the random generator.

    Args:
        data: the images and their labels.
        rng: of every draw.
        augmentation: of the images; None for none.
        label_dropout: probability that a label is dropped, for classifier-free guidance.
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
        """Draw n images with replacement: fp32 in about [-1, 1], n C H W, and their labels."""
        rows = torch.randint(len(self.images), (n,), generator=self.rng, device=self.rng.device)
        x, augment = self.augmentation(from_uint8(self.images[rows]), rng=self.rng)
        labels = self.space.select(self.labels[rows]).drop(self.label_dropout, rng=self.rng)
        return x, labels if augment is None else AugmentedLabels(labels.one_hot, augment)


def load_labelled_images(folder: Path, *, train: bool = True) -> LabelledImages:
    """Load the training or test part of CIFAR-10, Fashion-MNIST or another IDX set, or all pictures with their labels.

    Args:
        folder: of the set, or a zip of pictures; ~ is expanded. Sets of pictures have no test part.
        train: which part.

    Raises:
        ValueError: a file is missing or damaged, or the pictures have no labels.
    """
    folder = folder.expanduser()
    if is_cifar10(folder):
        return load_cifar10(folder, train=train)
    if is_idx_folder(folder) or not has_images(folder):  # for its message
        return load_idx_images(folder, train=train)
    pictures = open_images(str(folder) if train else f"{folder}:test")
    if (labels := pictures.labels) is None:
        raise ValueError(f"{folder}: no labels: put the images of each class in a folder of its own")
    return LabelledImages(pictures.images(range(len(pictures))), labels.index, labels.names, name=folder.resolve().stem)
