"""Configuration of `dmdistill classifier`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes

from dmdistill.commands.options import ComputeOptions, require, require_at_least, require_positive

__all__ = ["ClassifierConfig"]


@dataclass(frozen=True)
class ClassifierConfig:
    """Train a small classifier as feature extractor of the Frechet distance."""

    data: Path = Path("datasets/fashion-mnist")
    """Labelled images: IDX files, CIFAR-10's binary version, or images with a folder for each class. Of sets without
    test images a tenth is held out."""
    side: int | None = None
    """Side in pixels to which the middle square of each image is resized. By default images keep their size."""
    out: Path = Path("runs/classifier")
    """Folder to write."""
    epochs: int = 8
    """Passes over the training images."""
    batch: int = 256
    """Images per step."""
    lr: float = 3e-3
    """Highest learning rate of the one-cycle schedule."""
    seed: int = 0
    """Seed of every random draw."""
    compute: Annotated[ComputeOptions, OmitArgPrefixes] = field(default_factory=ComputeOptions)
    """Where and how to compute."""

    def check(self) -> None:
        """Raise a ValueError for a number that an option cannot have."""
        require_at_least(self, 1, "epochs", "batch")
        require_positive(self, "lr")
        require(self, "from 4 to 4096", lambda side: side is None or 4 <= side <= 4096, "side")
