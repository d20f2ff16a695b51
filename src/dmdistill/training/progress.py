"""Progress bars with an ETA."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["progress_bar", "track"]

Item = TypeVar("Item")
Advance = Callable[..., None]


@contextmanager
def progress_bar(name: str, total: int, *, start: int = 0) -> Iterator[Advance]:
    """Show progress; yield a function (completed, metrics=None) that updates it.

    A terminal or notebook gets a bar with an ETA and the metrics; a log file gets a line per tenth of the total.

    Args:
        name: description in front of the bar.
        total: number of steps.
        start: number of steps that are completed already.
    """
    console = Console()
    if not console.is_terminal and not console.is_jupyter:
        yield line_progress(console, name, total, start)
        return
    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[metrics]}", markup=False),
    ]
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=total, completed=start, metrics="")

        def advance(completed: int, metrics: Mapping[str, Any] | None = None) -> None:
            progress.update(task, completed=completed, metrics=format_metrics(metrics))

        yield advance


def line_progress(console: Console, name: str, total: int, start: int) -> Advance:
    """Print a line per tenth of the total, for output that is no terminal."""
    started = time.perf_counter()
    shown = start * 10 // max(total, 1)

    def advance(completed: int, metrics: Mapping[str, Any] | None = None) -> None:
        nonlocal shown
        tenth = completed * 10 // max(total, 1)
        if tenth > shown:
            shown = tenth
            left = (time.perf_counter() - started) / max(completed - start, 1) * (total - completed)
            eta = timedelta(seconds=round(left))
            text = f"{name} {completed}/{total} ETA {eta} {format_metrics(metrics)}"
            console.print(text, highlight=False, markup=False, soft_wrap=True)

    return advance


def format_metrics(metrics: Mapping[str, Any] | None) -> str:
    """Format names and values in one line."""
    return "  ".join(f"{key} {value:.4g}" for key, value in (metrics or {}).items())


def track(items: Sequence[Item], name: str) -> Iterator[Item]:
    """Iterate over items with a progress bar."""
    with progress_bar(name, len(items)) as advance:
        for completed, item in enumerate(items, 1):
            yield item
            advance(completed)
