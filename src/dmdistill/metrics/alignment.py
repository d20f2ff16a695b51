"""Alignment with captions of Fashion-MNIST: whether images have the class and the attributes of their prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dmdistill.data.fashion_captions import ATTRIBUTES, measure, read_caption
from dmdistill.data.image_tensors import from_uint8
from dmdistill.metrics.classifier_features import ClassifierFeatures

__all__ = ["Alignment"]


class Alignment:
    """1 for each image of a batch that has all that its prompt names, else 0.

    The classifier tells the class; brightness, width and texture are measured, and divided at the middle between the
    ranges of neighbouring words.

    Args:
        classifier: of Fashion-MNIST's classes, in their order.
    """

    def __init__(self, classifier: ClassifierFeatures) -> None:
        self.classifier, self.id = classifier, f"alignment-{classifier.id}"

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score images (uint8, B 1 H W) by their prompts (B): fp32, B, on the CPU. Prompts without any word score 1."""
        if len(prompts) != len(images):
            raise ValueError(f"{len(images)} images and {len(prompts)} prompts, expected one of each")
        labels = self.classifier.predict(images).tolist()
        values = measure(from_uint8(images.cpu()))
        words = {key: [one.words[number] for number in one.nearest(values[key])] for key, one in ATTRIBUTES.items()}

        def has_all(row: int, prompt: str) -> bool:
            caption = read_caption(prompt)
            right = all(words[key][row] == word for key, word in caption.words.items())
            return right and caption.label in (None, labels[row])

        return torch.tensor([has_all(row, prompt) for row, prompt in enumerate(prompts)], dtype=torch.float32)
