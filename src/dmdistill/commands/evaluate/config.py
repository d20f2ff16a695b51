"""Configuration of `dmdistill evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional

from dmdistill.commands.options import ComputeOptions, ImageSizeOptions, SolverOptions, require, require_at_least

__all__ = ["EvaluateConfig"]

MAX_IMAGES, MAX_SIDE = 10_000_000, 4096  # benchmarks take 50,000 images of at most 1024 pixels


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure the quality and speed of a model, or the quality of a set of images."""

    model: Positional[str]
    """Model as for `sample`, or a set of images: a folder, a zip, CIFAR-10's or Fashion-MNIST's official files."""
    reference: str | None = None
    """Real images to compare with: a set of images, EDM's statistics (.npz), or model:NAME for a model's images."""
    metrics: str | None = None
    """Comma-separated: fid, frechet, kid, precision, recall, density, coverage, is, diversity (within a prompt), clip,
    alignment (with Fashion-MNIST's captions). Default: fid with --reference, else frechet."""
    feature_extractor: str | None = None
    """Classifier whose features replace Inception's: a name (fashion-classifier) or a folder."""
    inception: Path | None = None
    """File inception-2015-12-05.pt. By default it is looked for in $DMDISTILL_ASSETS and the cache, else downloaded."""
    clip: str | None = None
    """CLIP model of transformers, a folder or a hub id. The paper's is laion/CLIP-ViT-bigG-14-laion2B-39B-b160k."""
    resizing: Literal["tensorflow", "clean"] = "tensorflow"
    """Resizing to Inception's 299 pixels: tensorflow as for CIFAR-10 and ImageNet, clean as for COCO."""
    prompts: str | None = None
    """Prompts, of a text-to-image model: a .txt of one a line, .csv, .parquet, or hf:OWNER/NAME[:COLUMN]."""
    images: int | None = None
    """Number of images. By default a model generates 10000, and a set of images is measured in full."""
    batch: int | None = None
    """Images generated at once. By default 500 small ones, fewer large ones."""
    side: int | None = None
    """Side in pixels that the middle square of every image is resized to, by Lanczos: 256 for COCO."""
    skip_corrupt: bool = False
    """Skip images that cannot be read."""
    seed: int = 1
    """Seed of the noise."""
    json: Path | None = None
    """File to write the report to."""
    image_size: Annotated[ImageSizeOptions, OmitArgPrefixes] = field(default_factory=ImageSizeOptions)
    ode: Annotated[SolverOptions, OmitArgPrefixes] = field(default_factory=SolverOptions)
    """Of a teacher that is measured: its ODE solver and its guidance."""
    compute: Annotated[ComputeOptions, OmitArgPrefixes] = field(default_factory=ComputeOptions)
    """Device, precision and threads."""

    def check(self) -> None:
        """Raise a ValueError for a number that an option cannot have."""
        require_at_least(self, 1, "batch")
        for name, least, most in (("images", 2, MAX_IMAGES), ("side", 1, MAX_SIDE)):
            require(self, f"from {least} to {most}", lambda value, least=least, most=most: least <= value <= most, name)
