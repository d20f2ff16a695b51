"""A small classifier as feature extractor, with the statistics of the real images in its features."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dmdistill.data.image_tensors import from_uint8
from dmdistill.io.atomic import read_json
from dmdistill.io.weights import bundled_models, load_weights
from dmdistill.metrics.features import check_uint8
from dmdistill.metrics.frechet import Statistics, load_statistics
from dmdistill.networks.image_classifier import Classifier

__all__ = ["ClassifierFeatures", "load_classifier_features"]


@dataclass(frozen=True)
class ClassifierFeatures:
    """A classifier as feature extractor. The Frechet distance in its features is not FID.

    Attributes:
        name: of its metrics.
        classifier: in evaluation mode.
        reference: statistics of the real images in its features.
    """

    name: str
    classifier: Classifier
    reference: Statistics

    @property
    def id(self) -> str:
        """Its name and a hash of its weights, as folders may share a name."""
        sha = hashlib.sha256()
        for name, tensor in sorted(self.classifier.state_dict().items()):
            sha.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return f"{self.name}-{sha.hexdigest()[:12]}"

    @property
    def channels(self) -> int:
        """Channels of its images."""
        return self.classifier.stem.in_channels

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Compute features, B D, fp32, of uint8 images, B C H W. ValueError for another number of channels."""
        if check_uint8(images).shape[1] != self.channels:
            raise ValueError(
                f"images have {images.shape[1]} channels, the classifier {self.name} takes {self.channels}"
            )
        return self.classifier.features(from_uint8(images.to(self.classifier.stem.weight.device)))


def load_classifier_features(name: str, device: torch.device) -> ClassifierFeatures:
    """Load a classifier and its reference. ValueError, naming the file, where one is missing, damaged or another kind.

    Args:
        name: a bundled classifier's, or a folder as `dmdistill classifier` writes it.
        device: where it computes.
    """
    folder = bundled_models().get(name, Path(name))
    config = read_json(folder / "config.json")
    try:
        classifier = Classifier(**config["network"])
        name = config["name"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'config.json'} describes no classifier of dmdistill: {error!r}") from None
    load_weights(folder / "model.safetensors", classifier)
    classifier.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    classifier.eval().requires_grad_(False)
    return ClassifierFeatures(name, classifier, load_statistics(folder / "reference.safetensors"))
