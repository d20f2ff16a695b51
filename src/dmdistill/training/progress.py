"""Progress with an ETA, for every long piece of work."""

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
    """Yields advance(done, figures={}), which shows a bar, the ETA and the figures; in a log file, a line per tenth."""
    console = Console()
    if not console.is_terminal and not console.is_jupyter:
        yield lines(console, name, total, start)
        return
    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    ]
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=total, completed=start, figures="")

        def advance(done: int, figures: Mapping[str, Any] | None = None) -> None:
            progress.update(task, completed=done, figures=text(figures))

        yield advance


def lines(console: Console, name: str, total: int, start: int) -> Advance:
    """Progress for what is no terminal."""
    began = time.perf_counter()
    shown = [start * 10 // max(total, 1)]

    def advance(done: int, figures: Mapping[str, Any] | None = None) -> None:
        tenth = done * 10 // max(total, 1)
        if tenth > shown[0]:
            shown[0] = tenth
            left = (time.perf_counter() - began) / max(done - start, 1) * (total - done)
            eta = timedelta(seconds=round(left))
            console.print(f"{name} {done}/{total} ETA {eta} {text(figures)}", highlight=False, soft_wrap=True)

    return advance


def text(figures: Mapping[str, Any] | None) -> str:
    return "  ".join(f"{key} {value:.4g}" for key, value in (figures or {}).items())


def track(items: Sequence[Item], name: str) -> Iterator[Item]:
    """The items, with a progress bar."""
    with progress_bar(name, len(items)) as advance:
        for done, item in enumerate(items, 1):
            yield item
            advance(done)
