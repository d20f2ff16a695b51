"""The Inception network of FID (Heusel et al. 2017): TensorFlow's of 2015-12-05, as NVIDIA's TorchScript file of it.

TorchScript is code, so no file is loaded but the two whose hashes are known: NVIDIA's, and a copy of its layers alone,
whose last layer is missing and with it the Inception score.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from dmdistill.io.download import download
from dmdistill.io.errors import first_line
from dmdistill.io.folders import cache_folder
from dmdistill.metrics.features import check_bytes
from dmdistill.metrics.resizing import resize_bicubic, resize_tensorflow

__all__ = ["FILE", "Inception", "load_inception"]

FILE = "inception-2015-12-05.pt"
URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
ORIGINAL = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"  # sha256 of NVIDIA's file
LAYERS = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"  # and of the copy without the last layer
AT_ONCE = 4  # images, on a CPU: its caches hold the first layers of no more, and 64 at once take a third longer
RESIZINGS = {"tensorflow": resize_tensorflow, "clean": resize_bicubic}


class Inception:
    """Features: 2048 of an image, and where the file has the last layer the probabilities of its 1008 classes.

    Args:
        layers: B 3 299 299 in [-1, 1) -> B 2048 1 1, in evaluation mode.
        last: the last layer's weights, 1008 2048, or None.
        resizing: "tensorflow" is FID as EDM reports it, "clean" as clean-fid does, on the CPU.
    """

    name = "inception"

    def __init__(self, layers: nn.Module, last: Tensor | None = None, *, resizing: str = "tensorflow") -> None:
        if resizing not in RESIZINGS:
            raise ValueError(f"resizing {resizing!r}, expected one of {', '.join(RESIZINGS)}")
        self.layers: nn.Module = layers.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.last, self.resizing = last, resizing
        self.id = f"inception-2015-12-05-{resizing}"

    @property
    def device(self) -> torch.device:
        return next(self.layers.parameters()).device

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 B 1|3 H W -> B 2048, fp32. Grey is three equal channels."""
        parts = check_bytes(images).split(AT_ONCE if self.device.type == "cpu" else max(1, len(images)))
        return torch.cat([self.features(part.to(self.device)) for part in parts])

    def features(self, images: Tensor) -> Tensor:
        x = RESIZINGS[self.resizing](images)
        x = (x - 128) / 128  # TensorFlow's graph has it so: 255 is not quite 1
        x = x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)  # a fifth faster on CPUs
        return self.layers(x).flatten(1).float()

    @torch.inference_mode()
    def classify(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features and probabilities, which leave out the last layer's bias, as the Inception score always has."""
        if self.last is None:
            raise ValueError(f"this copy of {FILE} lacks the last layer, which the Inception score needs: {where()}")
        features = self(images)
        return features, (features @ self.last.T).softmax(1)


def load_inception(
    path: Path | None = None, *, device: torch.device | str = "cpu", resizing: str = "tensorflow"
) -> Inception:
    """The network from `path`, else $DMDISTILL_ASSETS, else the cache, else downloaded into it.

    ValueError, naming the file, where it cannot be had, or is another than the two known.
    """
    file = path if path is not None else find()
    module = torch.jit.load(io.BytesIO(known(file)), map_location=device).eval()
    module = getattr(module, "net", module)  # so does the copy name it
    last = module.output.weight if hasattr(module, "output") else None
    return Inception(module.layers, last, resizing=resizing)


def find() -> Path:
    """The file in the first folder that has it; in none, it is downloaded."""
    cached = cache_folder() / FILE
    assets = os.environ.get("DMDISTILL_ASSETS")
    if assets and (Path(assets) / FILE).is_file():
        return Path(assets) / FILE
    if not cached.is_file():
        download(os.environ.get("DMDISTILL_INCEPTION_URL", URL).rstrip("/") + f"/{FILE}", cached, check=known)
    return cached


def known(file: Path) -> bytes:
    """The file's content. ValueError where it is missing, or its hash is not a known one."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror or first_line(error)}): {where()}") from None
    sha = hashlib.sha256(content).hexdigest()
    if sha not in (ORIGINAL, LAYERS):
        raise ValueError(f"{file} has sha256 {sha}, expected {ORIGINAL}: it is code, and not run. {where()}")
    return content


def where() -> str:
    return f"put {URL}{FILE} into $DMDISTILL_ASSETS or {cache_folder()}"
