"""The metrics beside independent implementations, on real images and with the real networks.

python benchmarks/metrics_check.py CIFAR_FOLDER [--images 1400] [--pairwise 400] [--changed 150] [--cache F.npz]

CIFAR_FOLDER holds CIFAR-10's binary version: data_batch_1.bin and test_batch.bin. $DMDISTILL_ASSETS has Inception's and
LPIPS's weights. Beside numpy, the packages torchmetrics, scipy, prdc and lpips are compared if they are installed.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor, nn

from dmdistill.metrics.accumulate import FeatureStatistics
from dmdistill.metrics.frechet import Moments, frechet_distance
from dmdistill.metrics.inception import load_inception
from dmdistill.metrics.kid import squared_mmd
from dmdistill.metrics.lpips_weights import load_lpips
from dmdistill.metrics.precision_recall import density_coverage, precision_recall
from dmdistill.metrics.registry import MetricOptions, compute_metrics

LAYERS = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]  # VGG16's
MANIFOLD = ("precision", "recall", "density", "coverage")


def cifar(file: Path) -> Tensor:
    """uint8, 10000 3 32 32."""
    rows = np.fromfile(file, np.uint8).reshape(-1, 3073)
    return torch.from_numpy(rows[:, 1:].reshape(-1, 3, 32, 32).copy())


def add_noise(images: Tensor, level: float) -> Tensor:
    noise = level * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + noise).round().clamp(0, 255).to(torch.uint8)


def blur(images: Tensor, size: int) -> Tensor:
    return F.avg_pool2d(images.float(), size, 1, size // 2, count_include_pad=False).round().to(torch.uint8)


def shift(images: Tensor, pixels: int) -> Tensor:
    """Shift images down and to the right, repeating the edge."""
    return F.pad(images.float(), (pixels, 0, pixels, 0), mode="replicate")[..., :-pixels, :-pixels].to(torch.uint8)


def sets(folder: Path, images: int) -> dict[str, Tensor]:
    return {"test": cifar(folder / "test_batch.bin")[:images], "train": cifar(folder / "data_batch_1.bin")[:images]}


def degrade(some: Tensor) -> dict[str, Tensor]:
    """Return degraded copies of images."""
    return {
        "noise 10": add_noise(some, 10),
        "noise 40": add_noise(some, 40),
        "blur 3": blur(some, 3),
        "blur 7": blur(some, 7),
        "moved 3": shift(some, 3),
        "moved 10": shift(some, 10),
    }


def extract_features(images: dict[str, Tensor], cache: Path | None) -> dict[str, Tensor]:
    """Extract Inception's features of each set, or take them from the cache."""
    held: dict[str, Any] = dict(np.load(cache)) if cache is not None and cache.is_file() else {}
    network = load_inception()
    for name, pictures in images.items():
        if len(held.get(name, ())) < len(pictures):
            start = time.perf_counter()
            held[name] = torch.cat([network(batch) for batch in pictures.split(10)]).numpy()
            print(f"{name}: {len(pictures) / (time.perf_counter() - start):.2f} images/s", flush=True)
            if cache is not None:
                np.savez(cache, **held)
    return {name: torch.from_numpy(held[name][: len(pictures)]) for name, pictures in images.items()}


def statistics(features: Tensor) -> Any:
    moments = Moments()
    moments.add(features)
    return moments.statistics()


def import_if_installed(name: str) -> Any:
    """Import a package; return None if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def frechet_others(x: Tensor, y: Tensor) -> Iterator[tuple[str, float]]:
    """Compute FID of features by other packages, in fp64."""
    a, b = (f.double().numpy() for f in (x, y))
    means, covariances = (a.mean(0), b.mean(0)), (np.cov(a.T), np.cov(b.T))
    if (linalg := import_if_installed("scipy.linalg")) is not None:
        root = linalg.sqrtm(covariances[0] @ covariances[1])
        yield (
            "scipy's sqrtm, as EDM",
            float(np.square(means[0] - means[1]).sum() + np.trace(sum(covariances) - 2 * root.real)),
        )
    if (fid := import_if_installed("torchmetrics.image.fid")) is not None:
        tensors = [torch.from_numpy(array) for pair in zip(means, covariances, strict=True) for array in pair]
        yield "torchmetrics", float(fid._compute_fid(*tensors))


def kernel_others(x: Tensor, y: Tensor) -> Iterator[tuple[str, float]]:
    """Compute the squared MMD of all images."""
    a, b = (f.double().numpy() for f in (x, y))

    def mean(p: np.ndarray, q: np.ndarray, *, same: bool) -> float:
        kernel = (p @ q.T / p.shape[1] + 1) ** 3
        return kernel[~np.eye(len(p), dtype=bool)].mean() if same else kernel.mean()

    yield "numpy", mean(a, a, same=True) + mean(b, b, same=True) - 2 * mean(a, b, same=False)
    if (kid := import_if_installed("torchmetrics.image.kid")) is not None:
        yield "torchmetrics", float(kid.poly_mmd(x.double(), y.double()))


def manifold_others(x: Tensor, y: Tensor, k: int) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Compute precision, recall, density and coverage of one k."""
    a, b = (f.double().numpy() for f in (x, y))

    def distances(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        return np.stack([np.sqrt(np.square(q - row).sum(1)) for row in p])

    reach_a, reach_b = (np.sort(distances(f, f), axis=1)[:, k] for f in (a, b))
    between = distances(a, b)
    inside = between <= reach_b
    recall, coverage = (between <= reach_a[:, None]).any(0).mean(), (between.min(0) <= reach_b).mean()
    yield "numpy, pair by pair", (inside.any(1).mean(), recall, inside.sum() / (k * len(a)), coverage)
    if (prdc := import_if_installed("prdc")) is not None:
        found = prdc.compute_prdc(real_features=b, fake_features=a, nearest_k=k)
        yield "prdc", tuple(found[name] for name in MANIFOLD)


def plain_lpips(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Compute LPIPS directly from the file's tensors, in fp64."""
    shift, scale = (torch.tensor(v).double()[:, None, None] for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))
    a, b = (image.double().sub(shift).div(scale) for image in (x, y))
    total, head, number = torch.zeros(len(x), dtype=torch.float64), 0, 0
    for layer in LAYERS:
        if layer == "M":
            unit = [f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10) for f in (a, b)]
            weight = weights[f"lin{head}.model.1.weight"].double()
            total += (weight * (unit[0] - unit[1]).square()).sum(1).mean((1, 2))
            a, b, head, number = F.max_pool2d(a, 2), F.max_pool2d(b, 2), head + 1, number + 1
        else:
            kernel, bias = (weights[f"features.{number}.{part}"].double() for part in ("weight", "bias"))
            a, b = (F.conv2d(f, kernel, bias, padding=1).relu() for f in (a, b))
            number += 2
    return total


def package_lpips(weights: dict[str, Tensor]) -> nn.Module | None:
    """Build the reference package with its own heads and the file's VGG16; torchvision only gives the layout."""

    def vgg16(**_: Any) -> Any:
        layers: list[nn.Module] = []
        width = 3
        for layer in LAYERS:
            layers += [nn.MaxPool2d(2)] if layer == "M" else [nn.Conv2d(width, int(layer), 3, padding=1), nn.ReLU()]
            width = width if layer == "M" else int(layer)
        network = nn.Module()
        network.features = nn.Sequential(*layers)
        network.load_state_dict({name: tensor for name, tensor in weights.items() if name.startswith("features")})
        return network

    stand_in: Any = types.ModuleType("torchvision")
    stand_in.models = types.SimpleNamespace(vgg16=vgg16)
    sys.modules["torchvision"] = stand_in
    try:
        package = import_if_installed("lpips")
        return None if package is None else package.LPIPS(net="vgg", verbose=False).eval()
    finally:
        del sys.modules["torchvision"]


@torch.no_grad()
def perceptual(x: Tensor, y: Tensor) -> list[tuple[str, str, str, float]]:
    """Compare LPIPS of real pairs; return the largest relative difference of a pair."""
    file = Path(os.environ["DMDISTILL_ASSETS"]) / "lpips_vgg16.safetensors"
    weights, ours = load_file(file), load_lpips(file, resize=None)
    x, y = (images.float() / 127.5 - 1 for images in (x, y))
    mine, others = ours(x, y).double(), {"plain formula, fp64": plain_lpips(weights, x, y)}
    if (package := package_lpips(weights)) is not None:
        others["lpips 0.1.4, its own heads"] = package(x, y).flatten().double()
    pairs = f"{len(x)} pairs, mean {float(mine.mean()):.6f}"
    return [("LPIPS", pairs, name, float(((mine - other) / other).abs().max())) for name, other in others.items()]


def agreement(x: Tensor, y: Tensor, pairwise: int) -> list[tuple[str, str, str, float]]:
    """Return rows (metric, our value, other implementation, difference); `pairwise` images are compared pair by pair.

    At most half as many features as images: if a covariance lacks rank, the others' square roots lose digits.
    """
    rows = []
    x, y = (f[:, : len(f) // 2] for f in (x, y))
    measures: list[tuple[str, Callable[[], float], Callable[..., Iterator[tuple[str, float]]]]] = [
        ("FID", lambda: frechet_distance(statistics(x), statistics(y)), frechet_others),
        ("KID, all images at once", lambda: float(squared_mmd(x, y)), kernel_others),
    ]
    for metric, ours, others in measures:
        mine = ours()
        rows += [(metric, f"{mine:.8g}", name, abs(mine / other - 1)) for name, other in others(x, y)]
    x, y = x[:pairwise], y[:pairwise]
    for k, names in ((3, MANIFOLD[:2]), (5, MANIFOLD[2:])):
        mine = dict(zip(MANIFOLD, (*precision_recall(x, y, k=k), *density_coverage(x, y, k=k)), strict=True))
        for who, found in manifold_others(x, y, k):
            other = dict(zip(MANIFOLD, found, strict=True))
            rows += [(f"{name}, k {k}", f"{mine[name]:.6f}", who, abs(mine[name] - other[name])) for name in names]
    return rows


def describe(features: Tensor) -> FeatureStatistics:
    return FeatureStatistics("inception", "inception", statistics(features), features)


def format_metrics(generated: Tensor, reference: Tensor, size: int) -> list[str]:
    """Format all six metrics."""
    options, rng = MetricOptions(kid_subsets=20, kid_subset_size=size), torch.Generator().manual_seed(0)
    names = ("fid", "kid", *MANIFOLD)
    found = compute_metrics(names, describe(generated), describe(reference), rng=rng, options=options)
    return [f"{value:.5f}" for value in found.values()]


def rank_degraded(some: Tensor, changed: dict[str, Tensor], train: Tensor) -> Iterator[list[str]]:
    """Compute the metrics of degraded sets, all of one size, against the training images."""
    collapsed = some[: len(some) // 10].repeat(10, 1)
    for name, found in ({"real, held out": some} | changed | {"a tenth of them, ten times": collapsed}).items():
        yield [name, *format_metrics(found, train, len(found))]


def show(title: str, head: list[str], rows: list[list[str]]) -> None:
    table = Table(*head, title=title)
    for row in rows:
        table.add_row(*row)
    Console(width=140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=1400)
    parser.add_argument("--pairwise", type=int, default=400)
    parser.add_argument("--changed", type=int, default=150)
    parser.add_argument("--cache", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    images = sets(arguments.data, arguments.images)
    features, count = extract_features(images, arguments.cache), arguments.images
    head = ["metric", "ours", "beside", "difference (relative; of shares absolute)"]
    rows = perceptual(images["train"][:100], images["test"][:100]) + agreement(
        features["test"], features["train"], arguments.pairwise
    )
    show(f"agreement, on {min(2048, count // 2)} features", head, [[*row[:3], f"{row[3]:.1e}"] for row in rows])
    names = ["", "fid", "kid", "kid_error", *MANIFOLD]
    sizes = {"test images": features["test"], "the training images themselves": features["train"]}
    rows = [[name, *format_metrics(found, features["train"], min(1000, count))] for name, found in sizes.items()]
    show(f"CIFAR-10: {count} images against {count} training images", names, rows)
    if arguments.changed:
        changed = extract_features(degrade(images["test"][: arguments.changed]), arguments.cache)
        rows = list(rank_degraded(features["test"][: arguments.changed], changed, features["train"]))
        show(f"{arguments.changed} images against {count} training images", names, rows)


if __name__ == "__main__":
    main()
