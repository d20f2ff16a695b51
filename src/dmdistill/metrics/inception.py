"""The Inception network of FID (Heusel et al. 2017): TensorFlow's of 2015-12-05, in NVIDIA's TorchScript file.

TorchScript is code, so only two files are loaded, whose hashes are known: NVIDIA's, and a copy of its layers without
the output layer, which the Inception score needs.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from dmdistill.io.download import download
from dmdistill.io.errors import first_line
from dmdistill.io.folders import cache_folder
from dmdistill.metrics.assets import asset_places, find_asset
from dmdistill.metrics.features import check_uint8
from dmdistill.metrics.resizing import resize_bicubic, resize_tensorflow

__all__ = ["FILE", "Inception", "load_inception"]

FILE = "inception-2015-12-05.pt"
URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
ORIGINAL = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"  # sha256 of NVIDIA's file
LAYERS = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"  # and of the copy without output layer
BATCH, BATCH_CPU = 64, 4  # activations of 500 images take gigabytes; 4 fit in the caches of a CPU, a third faster
RESIZINGS = {"tensorflow": resize_tensorflow, "clean": resize_bicubic}


class Inception:
    """Inception as feature extractor: 2048 features of an image, and the probabilities of its 1008 classes.

    Args:
        layers: B 3 299 299 in [-1, 1) -> B 2048 1 1, in evaluation mode.
        output_weight: of the output layer, 1008 2048; None where the file lacks it.
        resizing: "tensorflow" gives FID as EDM reports it, "clean" as clean-fid does, on the CPU.
    """

    name = "inception"

    def __init__(self, layers: nn.Module, output_weight: Tensor | None = None, *, resizing: str = "tensorflow") -> None:
        if resizing not in RESIZINGS:
            raise ValueError(f"resizing {resizing!r}, expected one of {', '.join(RESIZINGS)}")
        self.layers: nn.Module = layers.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.output_weight, self.resizing = output_weight, resizing
        self.id = f"inception-2015-12-05-{resizing}"

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.layers.parameters()).device

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Compute features, B 2048, fp32, of uint8 images, B C H W. A grey image counts as three equal channels."""
        parts = check_uint8(images).split(BATCH_CPU if self.device.type == "cpu" else BATCH)
        return torch.cat([self.features(part.to(self.device)) for part in parts])

    def features(self, images: Tensor) -> Tensor:
        """Compute the features of a few images in one pass."""
        x = RESIZINGS[self.resizing](images)
        x = (x - 128) / 128  # as in TensorFlow's graph: 255 is not quite 1
        x = x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)  # a fifth faster on CPUs
        return self.layers(x).flatten(1).float()

    @torch.inference_mode()
    def classify(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute features and class probabilities, without the output layer's bias as in every Inception score."""
        if self.output_weight is None:
            raise ValueError(f"this copy of {FILE} lacks the output layer, which the Inception score needs: {advice()}")
        features = self(images)
        return features, (features @ self.output_weight.T).softmax(1)


def load_inception(
    path: Path | None = None, *, device: torch.device | str = "cpu", resizing: str = "tensorflow"
) -> Inception:
    """Load the network. ValueError, naming the file, where it cannot be had, or has another hash than the known ones.

    Args:
        path: its file; by default it is looked for in $DMDISTILL_ASSETS and the cache, else downloaded into the cache.
        device: where it computes.
        resizing: see `Inception`.
    """
    file = path.expanduser() if path is not None else find_asset(FILE) or download_file()
    content = io.BytesIO(read_verified(file))
    with warnings.catch_warnings():  # TorchScript is deprecated, but no other format of this file is published
        warnings.simplefilter("ignore")
        module = torch.jit.load(content, map_location=device).eval()
    module = getattr(module, "net", module)  # where the copy holds it
    output_weight = module.output.weight if hasattr(module, "output") else None
    return Inception(module.layers, output_weight, resizing=resizing)


def download_file() -> Path:
    """Download the file into the cache."""
    file = cache_folder() / FILE
    url = os.environ.get("DMDISTILL_INCEPTION_URL", URL).rstrip("/")
    try:
        download(f"{url}/{FILE}", file, check=read_verified)
    except ValueError as error:
        other = (
            "--metrics frechet --feature-extractor NAME measures in another network's features: fashion-classifier for "
            "grey images, or one that `dmdistill classifier --data IMAGES` trains on yours"
        )
        raise ValueError(f"{error}; without it `dmdistill evaluate` with {other}") from None
    return file


def read_verified(file: Path) -> bytes:
    """Read the file. ValueError where it is missing, or its hash is not a known one."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror or first_line(error)}): {advice()}") from None
    sha = hashlib.sha256(content).hexdigest()
    if sha not in (ORIGINAL, LAYERS):
        raise ValueError(f"{file} has sha256 {sha}, expected {ORIGINAL}: it is code, and not run. {advice()}")
    return content


def advice() -> str:
    """Say where to get the file and where to put it."""
    return f"put {URL}{FILE} into {asset_places()}"
