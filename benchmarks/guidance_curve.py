"""The curve of Fréchet distance against alignment over guidance, of what `dmdistill evaluate --json` wrote.

    for g in 1 1.5 2 3 5 7.5; do
        dmdistill evaluate fashion-text --guidance $g --prompts captions.txt --metrics frechet,alignment --json $g.json
    done
    python benchmarks/guidance_curve.py --teacher 1.json 1.5.json 2.json 3.json 5.json 7.5.json --students dmd.json \
        --out curve.png

The points are labelled with the names of their files; those of the teacher are joined in the order given.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure


def read(file: Path) -> tuple[float, float]:
    """Return distance and alignment."""
    report = json.loads(file.read_text(encoding="utf-8"))
    (distance,) = (value for name, value in report["metrics"].items() if name.startswith("frechet"))
    return distance, report["metrics"]["alignment"]


def draw(teacher: list[Path], students: list[Path]) -> Figure:
    """Draw the teacher's curve and the students' points."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    distances, alignments = zip(*map(read, teacher), strict=True)
    axes.plot(alignments, distances, "o-", label="teacher, at the guidance beside the points")
    for file, x, y in zip(teacher, alignments, distances, strict=True):
        axes.annotate(file.stem, (x, y), xytext=(6, 4), textcoords="offset points")
    for file in students:
        distance, alignment = read(file)
        axes.plot(alignment, distance, "s", label=file.stem)
    axes.set(xlabel="alignment, higher is better", ylabel="Fréchet distance, lower is better")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--teacher", nargs="+", type=Path, required=True)
    parser.add_argument("--students", nargs="*", type=Path, default=[])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    draw(options.teacher, options.students).savefig(options.out, dpi=110)
