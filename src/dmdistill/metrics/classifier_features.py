"""A judge: a small classifier and the statistics of real images in its features."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dmdistill.data.image_tensors import from_uint8, to_uint8
from dmdistill.io.atomic import read_json
from dmdistill.io.weights import bundled, load_weights
from dmdistill.metrics.features import check_bytes
from dmdistill.metrics.frechet import Statistics, frechet_distance, gather, load_statistics
from dmdistill.networks.image_classifier import Classifier

__all__ = ["ClassifierFeatures", "load_classifier_features"]


@dataclass(frozen=True)
class ClassifierFeatures:
    """Measures images by the Frechet distance to real ones in a classifier's features. It is not FID.

    It is `Features` too, for the other metrics.

    classifier: in evaluation mode. reference: statistics of the real images. name: of the metric's source.
    """

    name: str
    classifier: Classifier
    reference: Statistics

    @property
    def id(self) -> str:
        """Its name and a hash of its weights: folders may share a name."""
        sha = hashlib.sha256()
        for name, tensor in sorted(self.classifier.state_dict().items()):
            sha.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return f"{self.name}-{sha.hexdigest()[:12]}"

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 B C H W -> B D, fp32. ValueError for grey images where the judge's are in colour, or the reverse."""
        weight = self.classifier.stem.weight
        if check_bytes(images).shape[1] != weight.shape[1]:
            raise ValueError(f"images of {images.shape[1]} channels, the judge {self.name} knows {weight.shape[1]}")
        return self.classifier.features(from_uint8(images.to(weight.device)))

    def features(self, images: Tensor) -> Tensor:
        """Features of images as a viewer gets them: rounded to 8 bits first."""
        return self.classifier.features(from_uint8(to_uint8(images)))

    def distance(self, batches: Iterable[Tensor]) -> float:
        """Frechet distance of images (B C H W in [-1, 1], batch by batch) to the reference."""
        return frechet_distance(gather(self.features, batches), self.reference)


def load_classifier_features(name: str, device: torch.device) -> ClassifierFeatures:
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
    return ClassifierFeatures(name, classifier, load_statistics(folder / "reference.safetensors"))
