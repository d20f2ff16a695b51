"""Tables of repeated experiments: each quantity with its mean and standard deviation over the seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dmdistill.io.console import say

__all__ = ["Summary", "format_cell", "print_rows", "summarize_seeds"]

Summary = Mapping[str, Any]
"""{"mean", "std", "values"} over seeds. The mean is None without any value, the std with fewer than two."""


def summarize_seeds(runs: Sequence[Mapping[str, float | None]]) -> dict[str, Summary]:
    """Convert one mapping of names to values per seed into the mean, sample std and values of each name."""
    return {name: summarize([run[name] for run in runs]) for name in runs[0]}


def summarize(values: Sequence[float | None]) -> Summary:
    """Compute mean and sample std of the values that are not None."""
    known = [value for value in values if value is not None]
    return {
        "mean": statistics.fmean(known) if known else None,
        "std": statistics.stdev(known) if len(known) > 1 else None,
        "values": list(values),
    }


def format_cell(value: Any, style: str = ".3f", *, error_style: str | None = None) -> str:
    """Format a summary as `0.450 ± 0.012`, as `-` without a mean; other numbers with three digits."""
    if not isinstance(value, Mapping):
        return f"{value:.3g}" if isinstance(value, float) else str(value)
    if value["mean"] is None:
        return "-"
    return f"{value['mean']:{style}}" + ("" if value["std"] is None else f" ± {value['std']:{error_style or style}}")


def print_rows(
    rows: Sequence[Mapping[str, Any]], plot: Path, *, style: str = ".3f", error_style: str | None = None
) -> None:
    """Print a table of rows with the same keys, and the names of the plot and the JSON file beside it."""
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(escape(format_cell(value, style, error_style=error_style)) for value in row.values()))
    console = Console()
    if not console.is_terminal:
        console.width = 140  # a log file needs no line breaks
    console.print(table)
    say(f"{plot}, {plot.with_suffix('.json').name}")
