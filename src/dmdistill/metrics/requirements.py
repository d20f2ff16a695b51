"""The metrics of `dmdistill evaluate` by name: what each needs, and what is to be known of its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dmdistill.io.errors import did_you_mean

__all__ = ["METRICS", "SUBSET", "Metric", "asked", "rounded", "warnings_of"]

DIGITS = 4  # of a figure: those behind change with the batch, as networks' results do
FEW = 10_000  # images: FID rises as their number falls, below this by whole points
USUAL = (30_000, 50_000)  # images of the benchmarks: of COCO, and of CIFAR-10 and ImageNet
SUBSET = 1000  # images of each of KID's subsets


@dataclass(frozen=True)
class Metric:
    """What one needs.

    network: whose features; None where any will do. compared: a reference. keep: features of single images. classes:
    their probabilities. least: images of each set.
    """

    network: str | None = None
    compared: bool = True
    keep: bool = True
    classes: bool = False
    least: int = 2


METRICS = {
    "fid": Metric(network="inception", keep=False),
    "kid": Metric(),
    "precision": Metric(least=4),
    "recall": Metric(least=4),
    "density": Metric(least=6),
    "coverage": Metric(least=6),
    "is": Metric(network="inception", compared=False, keep=False, classes=True, least=10),
    "clip": Metric(network="clip", compared=False, keep=False),
    "frechet": Metric(network="feature_extractor", compared=False, keep=False),  # a judge has a reference of its own
}


def asked(words: str) -> list[str]:
    """Names with commas between. ValueError, naming the nearest, for one that is unknown."""
    names = [word.strip() for word in words.split(",") if word.strip()]
    for name in names:
        if name not in METRICS:
            raise ValueError(f"unknown metric {name!r}{did_you_mean(name, METRICS) or '.'} Known: {', '.join(METRICS)}")
    if not names:
        raise ValueError(f"--metrics {words!r}, expected some of {', '.join(METRICS)}")
    return list(dict.fromkeys(names))


def rounded(figure: float) -> float:
    """To as many digits as mean something."""
    return float(f"{figure:.{DIGITS}g}")


def warnings_of(names: Sequence[str], *, images: int, reference: int | None) -> list[str]:
    """What the reader of the figures must know of the counts; reference: None where its count is not known."""
    said = []
    if "fid" in names and images < FEW:
        said.append(f"FID of {images} images is far above that of 50000: compare it with that of as many images alone")
    elif "fid" in names and images not in USUAL:
        said.append(f"FID of {images} images: the benchmarks take 50000, COCO's 30000")
    least = min(images, reference or images)
    if "kid" in names and least < SUBSET:
        said.append(f"KID's subsets have {least} images, usual are {SUBSET}")
    alike = [name for name in ("precision", "recall", "density", "coverage") if name in names]
    if alike and reference is not None and reference != images:
        said.append(f"{', '.join(alike)} of {images} images against {reference}: usual are as many of each")
    return said
