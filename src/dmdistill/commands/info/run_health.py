"""The health of a run, in words, from the metrics that change in a good run: DMD's losses hardly do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from dmdistill.commands.distill.diagnostics import BINS

__all__ = ["describe_trends", "verdict"]

Rows = Sequence[Mapping[str, float]]
BINNED = {"gap_": "mean |mu_fake - mu_real|", "fake_loss_": "loss of the fake score"}  # at BINS noise levels


def verdict(rows: Rows, clip: float | None) -> str:
    """Say whether a run is healthy by its log, and what is wrong where it is not. `clip` is the run's --grad-clip."""
    checks = [
        check_finite(rows),
        check_gradients(rows, clip),
        check_distances(rows),
        check_gap(rows),
        check_sample_std(rows),
    ]
    findings = [check for check in checks if check is not None]
    if problems := [text for healthy, text in findings if not healthy]:
        return f"unhealthy: {'; '.join(problems)}"
    texts = ", ".join(text for _, text in findings)
    return f"healthy so far: {texts}" if findings[1:] else f"too early to tell: {texts}"


Check = tuple[bool, str] | None
"""Whether a check finds the run healthy, and the finding; None where nothing was measured."""


def check_finite(rows: Rows) -> Check:
    """Look for NaN and infinity."""
    keys = sorted({key for row in rows for key, value in row.items() if not math.isfinite(value)})
    return (False, f"{', '.join(keys)}: NaN or infinite") if keys else (True, "all values are finite")


def check_gradients(rows: Rows, clip: float | None) -> Check:
    """Look for gradients that are clipped in more than half of the rows."""
    norms = group(rows, "gradient_")
    if clip is None or len(rows) < 5 or not norms:
        return None
    for key, values in norms.items():
        clipped = sum(norm >= clip for _, norm in values)
        if 2 * clipped > len(values):
            share = f"{clipped} of {len(values)} rows"
            return False, f"{key} is above --grad-clip {clip:g} in {share}, lower the learning rate"
    return True, "gradients are below --grad-clip"


def check_distances(rows: Rows) -> Check:
    """Look for a Frechet distance of twice its best value, measured later."""
    distances = group(rows, "frechet_")
    if not any(len(values) > 1 for values in distances.values()):
        return None
    for key, values in distances.items():
        step, best = min(values, key=lambda one: one[1])
        if values[-1][1] > 2 * best:
            return False, f"{key} rose from {best:.3g} at step {step} to {values[-1][1]:.3g}, the run diverges"
    return True, "the Frechet distance does not diverge"


def check_gap(rows: Rows) -> Check:
    """Look for a gap between the fake and the real score that grows up to the last of at least four measurements.

    A fake score that has not begun to learn equals the real one, so that a first rise from zero is healthy.
    """
    means = [mean for mean in bin_means(rows, "gap_") if mean > 0]
    if len(means) < 4:
        return None
    last = means[len(means) // 2 :]
    if last == sorted(last) and means[-1] == max(means) and means[-1] > 2 * last[0]:
        return False, f"the gap grew from {last[0]:.3g} to {means[-1]:.3g}, the fake score no longer follows"
    return True, "the fake score follows the generator"


def check_sample_std(rows: Rows) -> Check:
    """Look for samples that lost nine tenths of their standard deviation."""
    values = series(rows, "sample_std")
    if len(values) < 2:
        return None
    largest, last = max(value for _, value in values), values[-1][1]
    if last < 0.1 * largest:
        return False, f"sample_std fell from {largest:.3g} to {last:.3g}, the samples collapse"
    return True, "samples keep their spread"


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


def bin_means(rows: Rows, prefix: str) -> list[float]:
    """Return the mean over the noise levels of each measurement. ValueError where a level is missing."""
    means = []
    for row in rows:
        if f"{prefix}0" in row:
            if missing := [f"{prefix}{i}" for i in range(BINS) if f"{prefix}{i}" not in row]:
                raise ValueError(f"metrics.jsonl is damaged: the row of step {row.get('step')} has no {missing[0]!r}")
            means.append(fmean(row[f"{prefix}{i}"] for i in range(BINS)))
    return means


def distance_trend(values: Sequence[tuple[int, float]]) -> str:
    """Return how a distance, lower is better, changed, and its best value."""
    step, best = min(values, key=lambda one: one[1])
    if len(values) == 1:
        return f"{best:.4g}, measured once"
    since = ", no better since" if step < values[-1][0] else ""
    return f"{change(values[0][1], values[-1][1])}; best {best:.4g} at step {step}{since}"


def series(rows: Rows, key: str) -> list[tuple[int, float]]:
    """Return the steps and values at which a metric was logged."""
    return [(int(row.get("step", 0)), row[key]) for row in rows if key in row]


def group(rows: Rows, prefix: str) -> dict[str, list[tuple[int, float]]]:
    """Return the series of all metrics whose name starts with a prefix, by their names."""
    return {key: series(rows, key) for key in sorted({key for row in rows for key in row}) if key.startswith(prefix)}


def change(first: float, last: float) -> str:
    """Say whether a value fell, rose, or stayed within 5 %."""
    if not math.isfinite(first + last):
        return f"went from {first:.3g} to {last:.3g}"
    if not abs(last - first) > 0.05 * abs(first):
        return f"stayed at {last:.3g}"
    return f"{'fell' if last < first else 'rose'} from {first:.3g} to {last:.3g}"
