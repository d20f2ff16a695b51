"""Teacher and students of CIFAR-10 in one table: FID, KID, precision and recall, seconds an image.

    DMDISTILL_ASSETS=STORE python benchmarks/gpu/cifar10_evaluate.py --data DATA --out OUT NAME=MODEL [NAME=MODEL ...]
        [--images 50000]

The figures are those of `dmdistill evaluate`, 50,000 images against the 50,000 training images; what Inception sees of
these is kept in $DMDISTILL_CACHE. Each model's are written to OUT/NAME.json as soon as they are known, and a grid of
its samples to OUT/NAME.png: a call that is made again goes on with the models that lack them. OUT/table.md is the
table.
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
    asked = parser.parse_args()
    models = dict(model.split("=", 1) for model in asked.models)
    for name, model in models.items():
        if not (asked.out / f"{name}.json").is_file():
            evaluate(model, asked.out / f"{name}.json", asked)
        if not (asked.out / f"{name}.png").is_file():
            dmdistill(["sample", model, "--out", str(asked.out / f"{name}.png"), "--count", "100", "--columns", "10"])
    found = {name: json.loads((asked.out / f"{name}.json").read_text()) for name in models}
    (asked.out / "table.md").write_text(table(found))
    print(table(found) + json.dumps(compute()))


def evaluate(model: str, file: Path, asked: argparse.Namespace) -> None:
    numbers = {"images": asked.images, "batch": asked.batch, "metrics": asked.metrics}
    flags = [word for name, value in numbers.items() for word in (f"--{name}", str(value))]
    dmdistill(["evaluate", model, "--reference", str(asked.data), "--json", str(file), *flags])


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown: a row per model."""
    names = list(dict.fromkeys(metric for report in found.values() for metric in report["metrics"]))
    titles = ["", "evaluations per image", "images", *names, "ms per image"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for name, report in found.items():
        figures = [f"{report['metrics'][metric]:.4g}" for metric in names]
        plain = [name, str(report["evaluations_per_image"]), str(report["images"])]
        lines.append("| " + " | ".join([*plain, *figures, f"{1e3 * report['seconds_per_image']:.3g}"]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
