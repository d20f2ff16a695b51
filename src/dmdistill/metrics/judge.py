"""A judge: a small classifier and the statistics of real images in its features."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dmdistill.data.images import to_bytes, to_floats
from dmdistill.files import read_json
from dmdistill.metrics.frechet import Statistics, frechet_distance, gather, load_statistics
from dmdistill.networks.classifier import Classifier
from dmdistill.teachers.folder import bundled, load_weights

__all__ = ["Judge", "load_judge"]


@dataclass(frozen=True)
class Judge:
    """Measures images by the Frechet distance to real ones in a classifier's features. It is not FID.

    classifier: in evaluation mode. reference: statistics of the real images. name: of the metric's source.
    """

    name: str
    classifier: Classifier
    reference: Statistics

    def features(self, images: Tensor) -> Tensor:
        """Features of images as a viewer gets them: rounded to 8 bits first."""
        return self.classifier.features(to_floats(to_bytes(images)))

    def distance(self, batches: Iterable[Tensor]) -> float:
        """Frechet distance of images (B C H W in [-1, 1], batch by batch) to the reference."""
        return frechet_distance(gather(self.features, batches), self.reference)


def load_judge(name: str, device: torch.device) -> Judge:
    """A bundled judge by name, or one's folder."""
    folder = bundled().get(name, Path(name))
    config = read_json(folder / "config.json")
    try:
        classifier = Classifier(**config["network"])
        name = config["name"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'config.json'} describes no judge of dmdistill: {error!r}") from None
    load_weights(folder / "model.safetensors", classifier)
    classifier.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    classifier.eval().requires_grad_(False)
    return Judge(name, classifier, load_statistics(folder / "reference.safetensors"))
