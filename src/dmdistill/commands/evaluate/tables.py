"""Tables of measured models: each value with its label and which direction is better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dmdistill.io.console import say
from dmdistill.metrics.registry import METRICS, metric_label

__all__ = ["print_comparison", "print_report"]

REFERENCES = "a folder or zip of images, the files of CIFAR-10 or an IDX set, or EDM's statistics (.npz)"

Report = dict[str, Any]
"""What `measure` returns."""


def print_report(report: Report) -> None:
    """Print one model's report, a row for each value, and what its values are relative to."""
    table = Table("", escape(report["model"]), "")
    if report["images"]:
        table.add_row("images", str(report["images"]))
    for key, value in report["metrics"].items():
        label, direction = metric_label(key)
        table.add_row(escape(label), f"{value:.4g}", direction)
    if report["seconds_per_image"] is not None:
        table.add_row("evaluations/image", str(report["evaluations_per_image"]))
        table.add_row("ms/image", f"{1e3 * report['seconds_per_image']:.3f}")
    print_table(table, report, [name for name, metric in METRICS.items() if metric.needs_reference])


def print_comparison(reports: Sequence[Report]) -> None:
    """Print a row for each model of a run, and the ratio of the last to the first."""
    first, last = reports[0], reports[-1]
    keys = list(last["metrics"])
    headings = [escape("\n".join(filter(None, metric_label(key)))) for key in keys]
    table = Table("model", "evaluations", *headings, "ms/image")
    for report in reports:
        values = [f"{report['metrics'][key]:.4g}" for key in keys]
        milliseconds = f"{1e3 * report['seconds_per_image']:.3f}"
        table.add_row(escape(report["model"]), str(report["evaluations_per_image"]), *values, milliseconds)
    pairs = [(last["metrics"][key], first["metrics"][key]) for key in keys]
    ratios = [f"{value / base:.2f} x" if base else "-" for value, base in pairs]
    speed = first["seconds_per_image"] / last["seconds_per_image"]
    table.add_row("ratio", "", *ratios, f"{speed:.1f} x faster")
    print_table(table, last, ["fid"])


def print_table(table: Table, report: Report, comparing: Sequence[str]) -> None:
    """Print a table, then what the metrics compare with, or which metrics are missing without a reference."""
    console = Console(highlight=False)
    for column in table.columns:
        column.overflow = "fold"  # of narrow terminals: names are broken, not cut
    console.print(table)
    lines = [f"compared with {report['compared_with']}"] if report["compared_with"] else []
    if report["reference"] is None:
        labels = ", ".join(METRICS[name].label for name in comparing)
        missing = "" if report["metrics"] else "no quality was measured: "
        lines.append(f"{missing}for {labels} give real images by --reference DATA, {REFERENCES}")
        if missing:
            lines.append(
                "without them `dmdistill evaluate STUDENT --reference model:TEACHER` compares with the teacher; "
                "for images like those of Fashion-MNIST add --metrics frechet --feature-extractor fashion-classifier"
            )
    for line in lines:
        say(line)
