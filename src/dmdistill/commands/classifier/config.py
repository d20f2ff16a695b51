"""Configuration of `dmdistill classifier`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes

from dmdistill.commands.options import ComputeOptions, require_at_least, require_positive

__all__ = ["ClassifierConfig"]


@dataclass(frozen=True)
class ClassifierConfig:
    """Train a small classifier as feature extractor of the Frechet distance."""

    data: Path = Path("datasets/fashion-mnist")
    """Folder of the IDX files of Fashion-MNIST or another set, or of CIFAR-10's binary version, with test images."""
    out: Path = Path("runs/classifier")
    """Folder to write."""
    preset: str = ""
    """Settings to start from; the other flags change them."""
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
