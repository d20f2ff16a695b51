"""Where a run stands and how it fares, in words, from its config.toml and metrics.jsonl."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from dmdistill.commands.distill.diagnostics import BINS
from dmdistill.commands.presets import read_toml

__all__ = ["health", "run_status"]

Rows = Sequence[Mapping[str, float]]
RECENT = 5  # rows of the log whose speed the ETA goes by


def run_status(run: Path, rows: Rows) -> dict[str, str]:
    """step, training time, and what is left at the speed of the last rows."""
    step, seconds = int(rows[-1]["step"]), rows[-1]["seconds"]
    file = run / "config.toml"
    steps = read_toml(file).get("steps") if file.is_file() else None
    found = {"step": f"{step} of {steps}" if steps else str(step), "training": f"{seconds / 60:.1f} min"}
    if steps and step < steps:
        found["left"] = f"{timedelta(seconds=round((steps - step) * pace(rows)))} of training, without pairs and report"
    return found


def pace(rows: Rows) -> float:
    """Seconds a step, over the last rows."""
    first = rows[-1 - RECENT] if len(rows) > RECENT else {"step": 0, "seconds": 0.0}
    return (rows[-1]["seconds"] - first["seconds"]) / max(rows[-1]["step"] - first["step"], 1)


def health(rows: Rows) -> dict[str, str]:
    """What can be said of the figures that move in a good run; nothing where they were never measured."""
    found = {}
    if odd := sorted({key for row in rows for key, value in row.items() if not math.isfinite(value)}):
        found["not finite"] = ", ".join(odd)
    for prefix, name in (("gap_", "mean|mu_fake - mu_real|"), ("fake_loss_", "Eq. 6 by noise")):
        if measured := [row for row in rows if f"{prefix}0" in row]:
            found[name] = course_of_bins(measured, prefix)
    for key in sorted({key for row in rows for key in row if key.startswith("frechet_")}):
        found[f"course of {key}"] = course(rows, key)
    return found


def course_of_bins(rows: Rows, prefix: str) -> str:
    """The last figure of each part of the time range, least noise first, and what became of their mean."""
    first, last = ([row[f"{prefix}{i}"] for i in range(BINS)] for row in (rows[0], rows[-1]))
    figures = " ".join(f"{value:.2g}" for value in last)
    if len(rows) == 1:
        return f"{figures}, least noise first"
    return f"{figures}, least noise first; their mean {change(sum(first) / BINS, sum(last) / BINS)}"


def course(rows: Rows, key: str) -> str:
    """From its first figure to its last, and its best."""
    known = [(int(row["step"]), row[key]) for row in rows if key in row]
    step, best = min(known, key=lambda one: one[1])
    if len(known) == 1:
        return f"{best:.4g}, measured once"
    late = "the last" if step == known[-1][0] else f"at step {step}: since then it is no better"
    return f"{change(known[0][1], known[-1][1])}; best {best:.4g}, {late}"


def change(first: float, last: float) -> str:
    """fell, rose or stayed within a twentieth."""
    if not abs(last - first) > 0.05 * abs(first):
        return f"stayed at {last:.3g}"
    return f"{'fell' if last < first else 'rose'} from {first:.3g} to {last:.3g}"
