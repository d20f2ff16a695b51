"""`dmdistill info`: what a model is, the progress and health of a run, whether pairs are undamaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dmdistill.commands.info.config import InfoConfig
from dmdistill.commands.info.model_description import describe_model
from dmdistill.commands.info.pairs_description import describe_pairs
from dmdistill.commands.info.run_status import describe_run
from dmdistill.models.load import load_model
from dmdistill.models.model import Model
from dmdistill.training.metrics_log import read_metrics

__all__ = ["info"]


def info(config: InfoConfig) -> None:
    """Print a table of a run and its model, of a model, or of pairs.

    A set of pairs is verified, and described. ValueError for an unknown model and for a damaged file. A run whose model
    cannot be loaded is printed all the same.
    """
    run = Path(config.model)
    if (run / "pairs.json").is_file():
        print_table(describe_pairs(run))
    else:
        print_model(config.model, run)


def print_model(name: str, run: Path) -> None:
    """Print a table of the run, where the folder is one, and of its model."""
    metrics = read_metrics(run) if run.is_dir() else []
    finished = any((run / kind / "config.json").exists() for kind in ("student", "teacher"))
    begun = (run / "config.toml").is_file() and not finished
    rows = describe_run(run, metrics) if metrics or begun else {}
    if not rows or finished:
        try:
            model = load_model(name)
            check_log_end(run, metrics, model)
            rows |= describe_model(model)
        except ValueError:
            print_table(rows)
            raise
    print_table(rows)


def check_log_end(run: Path, metrics: Sequence[Mapping[str, float]], model: Model) -> None:
    """Raise ValueError where the log of a run ends before the last of the steps after which its student was written.

    A log that is missing as a whole was removed by the user.
    """
    distilled = model.config.get("distilled")
    steps = distilled.get("steps") if isinstance(distilled, dict) else None
    last = metrics[-1]["step"] if metrics else 0
    if (run / "metrics.jsonl").exists() and isinstance(steps, int) and last < steps:
        raise ValueError(
            f"{run}/metrics.jsonl ends at step {last}, its student was written after step {steps}: rows "
            "are missing, or the run began anew"
        )


def print_table(rows: Mapping[str, str]) -> None:
    """Print names and texts in two columns; nothing without rows."""
    table = Table(show_header=False)
    for name, text in rows.items():
        table.add_row(escape(name), escape(text))
    if rows:
        Console().print(table)
