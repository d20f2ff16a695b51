"""`dmdistill info`: what a model is, and the progress and health of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dmdistill.commands.info.config import InfoConfig
from dmdistill.commands.info.model_description import describe_model
from dmdistill.commands.info.run_status import describe_run
from dmdistill.models.load import load_model
from dmdistill.training.metrics_log import read_metrics

__all__ = ["info"]


def info(config: InfoConfig) -> None:
    """Print a table of the run, where the folder is one, and of its model.

    ValueError for an unknown model and for a damaged file. A run whose model cannot be loaded is printed all the same.
    """
    run = Path(config.model)
    metrics = read_metrics(run) if run.is_dir() else []
    rows = describe_run(run, metrics) if metrics else {}
    if not metrics or any((run / kind / "config.json").exists() for kind in ("student", "teacher")):
        try:
            rows |= describe_model(load_model(config.model))
        except ValueError:
            print_table(rows)
            raise
    print_table(rows)


def print_table(rows: Mapping[str, str]) -> None:
    """Print names and texts in two columns; nothing without rows."""
    table = Table(show_header=False)
    for name, text in rows.items():
        table.add_row(escape(name), escape(text))
    if rows:
        Console().print(table)
