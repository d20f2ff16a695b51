"""Training sets of labelled images: random batches from bytes in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from dmdistill.core.denoisers import Condition
from dmdistill.core.noise import NoiseSource
from dmdistill.core.samples import Samples
from dmdistill.data.augmentation import Augmentation, GeometricAugmentation, NoAugmentation
from dmdistill.data.conditions import Labels, LabelSpace
from dmdistill.data.image_sources import open_images
from dmdistill.data.image_tensors import LabelledImages, from_uint8

__all__ = ["AugmentedLabels", "SampleAugmentation", "TrainingSet", "load_labelled_images"]

BLOCK = 1024  # images that are decoded at once


@dataclass(frozen=True)
class AugmentedLabels(Labels):
    """Class labels with the augmentation labels of the images, (B, labels of the augmentation), for training."""

    augment: Tensor


def with_augmentation(cond: Condition | None, augment: Tensor) -> AugmentedLabels:
    """Return labels, of class or none, with those of the augmentation beside them."""
    one_hot = augment.new_zeros(len(augment), 0) if cond is None else cond.one_hot  # type: ignore[attr-defined]
    return AugmentedLabels(one_hot, augment)


@dataclass(frozen=True)
class SampleAugmentation:
    """Augments the images of a loss and adds augmentation labels to their conditions; the loss's noise source draws."""

    augmentation: GeometricAugmentation

    def __call__(self, samples: Samples, noise: NoiseSource) -> Samples:
        """Return changed images with augmentation labels beside their own, of class or none."""
        x, augment = self.augmentation.apply(samples.x, noise.draw(samples, self.augmentation.draw))
        return replace(samples, x=x, cond=with_augmentation(samples.cond, augment))


class TrainingSet:
    """Random batches of a set of images, which lies as bytes on the device of the random generator.

    Args:
        data: the images, and their labels if they have any.
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
        self.space, self.rng = LabelSpace(data.names) if data.names else None, rng
        self.augmentation, self.label_dropout = augmentation or NoAugmentation(), label_dropout

    def draw(self, n: int) -> tuple[Tensor, Labels | None]:
        """Draw n images with replacement: fp32 in about [-1, 1], n C H W, and their labels, None for none."""
        rows = torch.randint(len(self.images), (n,), generator=self.rng, device=self.rng.device)
        x, augment = self.augmentation(from_uint8(self.images[rows]), rng=self.rng)
        labels = None
        if self.space is not None:
            labels = self.space.select(self.labels[rows]).drop(self.label_dropout, rng=self.rng)
        return x, labels if augment is None else with_augmentation(labels, augment)


def load_labelled_images(
    folder: Path, *, train: bool = True, side: int | None = None, captions: bool = False
) -> LabelledImages:
    """Load all images of a source with their labels, if they have any.

    Args:
        folder: of a set, or another source of `open_images`. Sets of pictures have no test part.
        train: which part.
        side: pixels that each image is cropped and resized to; None for images as they are, which must be of one size.
        captions: read the captions, too, where the images have some.

    Raises:
        ValueError: a file is missing or damaged, sizes differ, or only some images have labels or captions.
    """
    pictures = open_images(str(folder) if train else f"{folder}:test", side=side)
    labels, count = pictures.labels, len(pictures)
    images = torch.empty(count, *pictures.shape, dtype=torch.uint8)
    for start in range(0, count, BLOCK):
        images[start : start + BLOCK] = pictures.images(range(start, min(start + BLOCK, count)))
    index, names = (torch.zeros(count, dtype=torch.int64), ()) if labels is None else (labels.index, labels.names)
    texts = tuple(pictures.captions or ()) if captions else ()
    return LabelledImages(images, index, names, **pictures.about, captions=texts)
