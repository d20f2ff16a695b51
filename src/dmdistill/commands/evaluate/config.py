"""Configuration of `dmdistill evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional

from dmdistill.commands.options import ComputeOptions

__all__ = ["EvaluateConfig"]


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure the quality of a model's images, or of a set of images, and a model's speed."""

    model: Positional[str]
    """A model as of `sample`, or a set of images: a folder, a zip, CIFAR-10's or Fashion-MNIST's official files."""
    reference: str | None = None
    """Real images to compare with: such a set, EDM's statistics (.npz), or model:NAME for what a teacher draws."""
    metrics: str | None = None
    """fid, kid, precision, recall, density, coverage, is, clip, frechet (in a judge's features), with commas."""
    feature_extractor: str | None = None
    """Judge whose features measure in Inception's place: a name (fashion-classifier) or a folder."""
    inception: Path | None = None
    """Inception's file, inception-2015-12-05.pt; looked for in $DMDISTILL_ASSETS and the cache, else downloaded."""
    clip: str | None = None
    """CLIP model of transformers', a folder or a hub id; the paper's is laion/CLIP-ViT-bigG-14-laion2B-39B-b160k."""
    resizing: Literal["tensorflow", "clean"] = "tensorflow"
    """To Inception's 299 pixels: as FID is reported for CIFAR-10 and ImageNet, or as clean-fid does for COCO."""
    prompts: str | None = None
    """What a text-to-image model is told: a .txt of one prompt a line, .csv, .parquet, or hf:OWNER/NAME[:COLUMN]."""
    images: int | None = None
    """Images to draw, 10000 where no number is given; of a set of images the first so many, else all."""
    batch: int | None = None
    """Images drawn at once; where no number is given 500 small ones, fewer large ones."""
    side: int | None = None
    """Pixels on a side that all images are cut to, square, and brought to by Lanczos: 256 for COCO."""
    skip_corrupt: bool = False
    """Leave out pictures that cannot be read."""
    seed: int = 1
    """Seed of the noise."""
    json: Path | None = None
    """File for the figures."""
    compute: Annotated[ComputeOptions, OmitArgPrefixes] = field(default_factory=ComputeOptions)
    """Where and how to compute."""
