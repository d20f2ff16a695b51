"""How the diagnostics and Frechet distances of a run changed, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dmdistill.commands.distill.diagnostics import BINS
from dmdistill.commands.info.log_series import Rows, bin_means, group, series

__all__ = ["describe_trends"]

BINNED = {"gap_": "mean |mu_fake - mu_real|", "fake_loss_": "loss of the fake score"}  # at BINS noise levels


def describe_trends(rows: Rows) -> dict[str, str]:
    """Describe how the diagnostics and Frechet distances changed; empty where they were never measured."""
    trends = {
        f"{prefix}0 ... {BINS - 1}": f"{title}: {binned_trend(rows, prefix)}"
        for prefix, title in BINNED.items()
        if series(rows, f"{prefix}0")
    }
    return trends | {key: distance_trend(values) for key, values in group(rows, "frechet_").items()}


def binned_trend(rows: Rows, prefix: str) -> str:
    """Return the last value at each noise level, and how their mean changed."""
    means = bin_means(rows, prefix)
    latest = next(row for row in reversed(rows) if f"{prefix}0" in row)
    values = " ".join(f"{latest[f'{prefix}{i}']:.2g}" for i in range(BINS))
    trend = f"; their mean {change(means[0], means[-1])}" if len(means) > 1 else ""
    return f"{values}, from least to most noise{trend}"


def distance_trend(values: Sequence[tuple[int, float]]) -> str:
    """Return how a distance, lower is better, changed, and its best value."""
    step, best = min(values, key=lambda one: one[1])
    if len(values) == 1:
        return f"{best:.4g}, measured once"
    since = ", no better since" if step < values[-1][0] else ""
    return f"{change(values[0][1], values[-1][1])}; best {best:.4g} at step {step}{since}"


def change(first: float, last: float) -> str:
    """Say whether a value fell, rose, or stayed within 5 %."""
    if not math.isfinite(first + last):
        return f"went from {first:.3g} to {last:.3g}"
    if not abs(last - first) > 0.05 * abs(first):
        return f"stayed at {last:.3g}"
    return f"{'fell' if last < first else 'rose'} from {first:.3g} to {last:.3g}"
