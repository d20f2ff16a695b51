"""Series of a run's metrics over its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from dmdistill.commands.distill.diagnostics import BINS

__all__ = ["Rows", "bin_means", "columns", "group", "later", "series"]

Rows = Sequence[Mapping[str, float]]


def series(rows: Rows, key: str) -> list[tuple[int, float]]:
    """Return the steps and values at which a metric was logged."""
    return [(int(row.get("step", 0)), row[key]) for row in rows if key in row]


def group(rows: Rows, prefix: str) -> dict[str, list[tuple[int, float]]]:
    """Return the series of all metrics whose name starts with a prefix, by their names."""
    return {key: series(rows, key) for key in sorted({key for row in rows for key in row}) if key.startswith(prefix)}


def columns(rows: Rows, *keys: str) -> list[list[float]]:
    """Return the values of several metrics in each row that has all of them."""
    return [[row[key] for key in keys] for row in rows if all(key in row for key in keys)]


def later(values: list[float]) -> list[float]:
    """Return the later half of measurements; of an odd number the one in the middle too."""
    return values[len(values) // 2 :]


def bin_means(rows: Rows, prefix: str) -> list[float]:
    """Return the mean over the noise levels of each measurement. ValueError where a level is missing."""
    means = []
    for row in rows:
        if f"{prefix}0" in row:
            if missing := [f"{prefix}{i}" for i in range(BINS) if f"{prefix}{i}" not in row]:
                raise ValueError(f"metrics.jsonl is damaged: the row of step {row.get('step')} has no {missing[0]!r}")
            means.append(fmean(row[f"{prefix}{i}"] for i in range(BINS)))
    return means
