"""Tables of repeated experiments: each figure with its mean and standard deviation over the seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Figure = Mapping[str, Any]
"""{"mean", "std", "values"}: mean and std are None where no seed has a value, std where only one has."""


def over_seeds(runs: Sequence[Mapping[str, float | None]]) -> dict[str, Figure]:
    """One mapping of names to values per seed -> each name's mean, sample std and values."""
    return {name: figure([run[name] for run in runs]) for name in runs[0]}


def figure(values: Sequence[float | None]) -> Figure:
    known = [value for value in values if value is not None]
    return {
        "mean": statistics.fmean(known) if known else None,
        "std": statistics.stdev(known) if len(known) > 1 else None,
        "values": list(values),
    }


def with_error(value: Any, style: str = ".3f", *, error: str | None = None) -> str:
    """0.450 ± 0.012; no error where there is none, - where there is nothing. Other numbers in three digits.

    style: of means; error: of errors, the same by default.
    """
    if not isinstance(value, Mapping):
        return f"{value:.3g}" if isinstance(value, float) else str(value)
    if value["mean"] is None:
        return "-"
    return f"{value['mean']:{style}}" + ("" if value["std"] is None else f" ± {value['std']:{error or style}}")


def print_rows(
    rows: Sequence[Mapping[str, Any]], picture: Path, *, style: str = ".3f", error: str | None = None
) -> None:
    """A table of rows with the same keys, and where its picture and figures are."""
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(with_error(value, style, error=error) for value in row.values()))
    console = Console()
    if not console.is_terminal:
        console.width = 140  # a file has no edge to break lines at
    console.print(table)
    console.print(f"{picture}, {picture.with_suffix('.json').name}", markup=False, highlight=False, soft_wrap=True)
