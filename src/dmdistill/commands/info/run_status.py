"""The progress of a run, from its config.toml, metrics.jsonl and report.json."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

from dmdistill.commands.info.log_series import Rows
from dmdistill.commands.info.run_health import verdict
from dmdistill.commands.info.run_trends import describe_trends
from dmdistill.commands.presets import flatten, read_toml
from dmdistill.data.pairs import count_pairs
from dmdistill.io.atomic import read_json
from dmdistill.io.checksums import pop_checksum

__all__ = ["describe_run"]

LONGEST = 1e9  # seconds of a run
SUMMARIZED = re.compile(r"step|seconds|gap_|fake_loss_|frechet_|\w+_(mean|std)_\d+$")
RECENT = 5  # rows of the log that the time left is estimated from


def describe_run(run: Path, rows: Rows) -> dict[str, str]:
    """Return the rows of a table about a run from its log's rows. ValueError, naming the file, where one is damaged."""
    for row in rows:
        if not 0 <= row.get("seconds", -1) < LONGEST:
            raise ValueError(f"{run / 'metrics.jsonl'} is damaged: seconds {row.get('seconds')} at step {row['step']}")
    settings = read_settings(run / "config.toml")
    if not rows:
        return {"run": str(run), **describe_beginning(run, settings.get("steps"))}
    trends = describe_trends(rows)
    ended = rows[-1]["step"] >= settings.get("steps", float("inf"))
    known = {name: settings[name] for name in ("start", "warmup") if name in settings}
    latest = {key: value for row in rows for key, value in row.items()}
    return {
        "run": str(run),
        **progress(rows, settings.get("steps")),
        "verdict": verdict(rows, settings.get("grad_clip"), **known, ended=ended),
        **{key: f"{value:.4g}" for key, value in latest.items() if not SUMMARIZED.match(key)},
        **trends,
        **describe_report(run / "report.json"),
    }


def describe_beginning(run: Path, steps: int | None) -> dict[str, str]:
    """Return how far a run is whose log has no row yet."""
    if saved := sorted((run / "checkpoints").glob("step-*")):
        step = int(saved[-1].stem.removeprefix("step-"))
        return {"step": f"{step} of {steps}", "log": "no row yet: --log-every is the number of steps between two"}
    made = "{} of {} made".format(*count_pairs(run / "pairs")) if (run / "pairs" / "pairs.json").is_file() else None
    return {"step": f"0 of {steps}"} | ({} if made is None else {"pairs": made})


def read_settings(file: Path) -> dict[str, Any]:
    """Return a run's settings, empty without the file. ValueError where one that is shown is out of range."""
    settings = dict(flatten(read_toml(file))) if file.is_file() else {}
    for name in ("steps", "grad_clip", "warmup"):
        value = settings.get(name, 0)
        if not isinstance(value, int | float) or not 0 <= value < 1e12:
            raise ValueError(f"{file}: {name} = {value!r:.50}, expected a number from 0 to 1e12")
    return settings


def progress(rows: Rows, steps: int | None) -> dict[str, str]:
    """Return the step, the time of training, and the time left at the speed of the last rows."""
    step, seconds = int(rows[-1]["step"]), rows[-1]["seconds"]
    status = {"step": f"{step} of {steps}" if steps else str(step), "training": f"{seconds / 60:.1f} min"}
    if steps and step < steps:
        left = timedelta(seconds=min(round((steps - step) * seconds_per_step(rows)), 10**12))
        status["left"] = f"{left} of training, without pairs and report"
    return status


def seconds_per_step(rows: Rows) -> float:
    """Return the mean time of a step over the last rows."""
    first = rows[-1 - RECENT] if len(rows) > RECENT else {"step": 0, "seconds": 0.0}
    return (rows[-1]["seconds"] - first["seconds"]) / max(rows[-1]["step"] - first["step"], 1)


def describe_report(file: Path) -> dict[str, str]:
    """Return the metrics of the final report, the student's beside the teacher's; empty without the file."""
    if not file.is_file():
        return {}
    report = read_json(file)
    if isinstance(report, dict):
        pop_checksum(report, file)
    try:
        teacher, student = report["teacher"], report["student"]
        rows = {}
        for name, value in student["metrics"].items():
            ratio = f"ratio {value / teacher['metrics'][name]:.2f}, over {student['images']} images each"
            rows[f"final {name}"] = f"student {value:.4g}, teacher {teacher['metrics'][name]:.4g}; {ratio}"
        times = [1e3 * model["seconds_per_image"] for model in (student, teacher)]
        rows["final ms per image"] = (
            f"student {times[0]:.4g}, teacher {times[1]:.4g}; {times[1] / times[0]:.1f} x faster"
        )
        return rows
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged: {type(error).__name__} {error}") from None
