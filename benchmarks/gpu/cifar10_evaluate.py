"""Teacher and students of CIFAR-10 in one table: FID, KID, precision and recall, seconds an image.

    DMDISTILL_ASSETS=STORE python benchmarks/gpu/cifar10_evaluate.py --data DATA --out OUT NAME=MODEL [NAME=MODEL ...]
        [--images 50000]

The metrics are those of `dmdistill evaluate`, 50,000 images against the 50,000 training images, whose features are
cached in $DMDISTILL_CACHE. Each model's metrics are written to OUT/NAME.json as soon as they are computed, and a grid
of its samples to OUT/NAME.png: a repeated call continues with the models that lack them. OUT/table.md is the table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from lease import compute

from dmdistill.commands.cli import main as dmdistill

METRICS = ("fid", "kid", "precision", "recall")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--batch", type=int, default=2500)
    parser.add_argument("--metrics", default=",".join(METRICS))
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL")
    options = parser.parse_args()
    models = dict(model.split("=", 1) for model in options.models)
    for name, model in models.items():
        if not (options.out / f"{name}.json").is_file():
            evaluate(model, options.out / f"{name}.json", options)
        if not (options.out / f"{name}.png").is_file():
            dmdistill(["sample", model, "--out", str(options.out / f"{name}.png"), "--count", "100", "--columns", "10"])
    reports = {name: json.loads((options.out / f"{name}.json").read_text()) for name in models}
    (options.out / "table.md").write_text(table(reports))
    print(table(reports) + json.dumps(compute()))


def evaluate(model: str, file: Path, options: argparse.Namespace) -> None:
    """Write a model's metrics to a file."""
    numbers = {"images": options.images, "batch": options.batch, "metrics": options.metrics}
    flags = [word for name, value in numbers.items() for word in (f"--{name}", str(value))]
    dmdistill(["evaluate", model, "--reference", str(options.data), "--json", str(file), *flags])


def table(reports: dict[str, dict[str, Any]]) -> str:
    """Return a Markdown table with a row per model."""
    names = list(dict.fromkeys(metric for report in reports.values() for metric in report["metrics"]))
    titles = ["", "evaluations per image", "images", *names, "ms per image"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for name, report in reports.items():
        metrics = [f"{report['metrics'][metric]:.4g}" for metric in names]
        plain = [name, str(report["evaluations_per_image"]), str(report["images"])]
        lines.append("| " + " | ".join([*plain, *metrics, f"{1e3 * report['seconds_per_image']:.3g}"]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
