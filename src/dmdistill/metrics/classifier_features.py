"""A small classifier as feature extractor, with the statistics of the real images in its features."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dmdistill.data.image_tensors import from_uint8
from dmdistill.io.atomic import read_json, read_safetensors
from dmdistill.io.checksums import note_unverified, pop_checksum, tensor_digest
from dmdistill.io.errors import did_you_mean
from dmdistill.io.weights import bundled_models, check_weights, copy_weights
from dmdistill.metrics.features import check_uint8
from dmdistill.metrics.frechet import Statistics, load_statistics
from dmdistill.networks.image_classifier import Classifier

__all__ = ["ClassifierFeatures", "load_classifier_features"]

SIZES = {"in_channels": 3, "classes": 100_000, "width": 4096}  # arguments of the network, and the largest sensible
MAX_RESOLUTION = 4096


@dataclass(frozen=True)
class ClassifierFeatures:
    """A classifier as feature extractor. The Frechet distance in its features is not FID.

    Attributes:
        name: of its metrics.
        classifier: in evaluation mode.
        reference: statistics of the real images in its features.
        resolution: sides of its images in pixels; larger images are cropped to the middle, as padded ones have to be.
            None takes images of any size as they are.
    """

    name: str
    classifier: Classifier
    reference: Statistics
    resolution: int | None = None

    @property
    def id(self) -> str:
        """Its name and a hash of its weights, as folders may share a name."""
        return f"{self.name}-{tensor_digest(self.classifier.state_dict())[:12]}"

    @property
    def channels(self) -> int:
        """Channels of its images."""
        return self.classifier.stem.in_channels

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Compute features, B D, fp32, of uint8 images, B C H W. ValueError for another number of channels."""
        return self.classifier.features(self.prepare(images))

    @torch.inference_mode()
    def predict(self, images: Tensor) -> Tensor:
        """Predict the classes, int64 (B,), of uint8 images, B C H W. ValueError as for features."""
        return self.classifier(self.prepare(images)).argmax(1)

    def prepare(self, images: Tensor) -> Tensor:
        """Return uint8 images, B C H W, as the classifier takes them."""
        if check_uint8(images).shape[1] != self.channels:
            raise ValueError(
                f"images have {images.shape[1]} channels, the classifier {self.name} takes {self.channels}"
            )
        if self.resolution is not None:
            top, left = (max(side - self.resolution, 0) // 2 for side in images.shape[2:])
            images = images[:, :, top : top + self.resolution, left : left + self.resolution]
        return from_uint8(images.to(self.classifier.stem.weight.device))


def load_classifier_features(name: str, device: torch.device) -> ClassifierFeatures:
    """Load a classifier and its reference. ValueError, naming the file, where one is missing, damaged or another kind.

    Args:
        name: a bundled classifier's, or a folder as `dmdistill classifier` writes it.
        device: where it computes.
    """
    folder = bundled_models().get(name, Path(name).expanduser())
    if not folder.is_dir():
        raise ValueError(
            f"feature extractor {name}: there is no such folder{did_you_mean(name, bundled_models())}; "
            "`dmdistill classifier --data IMAGES` trains one and writes it"
        )
    config_file, weights_file, reference_file = (
        folder / file for file in ("config.json", "model.safetensors", "reference.safetensors")
    )
    name, network, resolution = read_config(config_file)
    weights = read_safetensors(weights_file)
    with torch.device("meta"):  # sizes are compared before memory is taken
        check_weights(weights, Classifier(**network), weights_file)
    classifier, reference = Classifier(**network), load_statistics(reference_file)
    copy_weights(weights, classifier)
    if len(reference.mean) != classifier.num_features:
        raise ValueError(
            f"{reference_file} has {len(reference.mean)} features, the classifier has {classifier.num_features}"
        )
    note_unverified(config_file, weights_file, reference_file)
    classifier.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    classifier.eval().requires_grad_(False)
    return ClassifierFeatures(name, classifier, reference, resolution)


def read_config(file: Path) -> tuple[str, dict[str, int], int | None]:
    """Read name, network and resolution (optional, else None) of a classifier's config.json.

    ValueError, naming the file, for unexpected values, or where its checksum differs.
    """
    config = read_json(file)
    if not isinstance(config, dict) or config.get("kind") != "feature_extractor":
        raise ValueError(f"{file} describes no classifier of dmdistill")
    name, network = config.get("name"), config.get("network")
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]{1,200}", name):
        raise ValueError(f"{file}: name is {name!r:.200}, expected a word")
    if not isinstance(network, dict) or not {"in_channels", "classes"} <= network.keys() <= set(SIZES):
        raise ValueError(f"{file}: network is {network!r:.200}, expected {', '.join(SIZES)}")
    for key, value in network.items():
        if type(value) is not int or not 1 <= value <= SIZES[key]:
            raise ValueError(f"{file}: {key} is {value!r:.200}, expected an integer from 1 to {SIZES[key]}")
    resolution = config.get("resolution")
    if resolution is not None and not (type(resolution) is int and 1 <= resolution <= MAX_RESOLUTION):
        raise ValueError(f"{file}: resolution is {resolution!r:.200}, expected an integer from 1 to {MAX_RESOLUTION}")
    pop_checksum(config, file)
    return name, network, resolution
