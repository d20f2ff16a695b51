"""Progress with an ETA: a line that a terminal redraws, or lines in a log file."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task
from rich.table import Column
from rich.text import Text

__all__ = ["Estimate", "Work", "progress_bar", "progress_line", "track", "track_rows"]

Item = TypeVar("Item")
Advance = Callable[..., None]
Clock = Callable[[], float]
Work = Callable[[int], float]

BAR = 10  # columns of the bar
LEAST_METRICS = 10  # columns below which metrics are left out
RECENT_SECONDS, RECENT_COUNT = 120.0, 10  # of the past that a speed is taken from: the longer of the two
FIRST_LINE_SECONDS = 60.0  # after which a log file has a line in any case


class Estimate:
    """Time that is left, from the recent speed, however long a single advance takes.

    Args:
        total: number of steps.
        completed: steps that are completed at the start.
        clock: seconds.
        work: of the first so many steps, in any unit; by default all steps cost the same.
    """

    def __init__(self, total: int, completed: int, clock: Clock, work: Work = float) -> None:
        self.total, self.clock, self.started, self.work = total, clock, clock(), work
        self.samples = deque([(self.started, completed)])

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self.clock() - self.started

    @property
    def completed(self) -> int:
        """The number of steps that are completed."""
        return self.samples[-1][1]

    def advance(self, completed: int) -> None:
        """Note that so many steps are completed now."""
        now = self.clock()
        if completed > self.completed:
            self.samples.append((now, completed))
        while len(self.samples) > RECENT_COUNT and self.samples[1][0] < now - RECENT_SECONDS:
            self.samples.popleft()

    @property
    def left(self) -> float | None:
        """Seconds that are left; None before the first advance."""
        (first, before), (last, completed) = self.samples[0], self.samples[-1]
        if completed == before:
            return None
        done = self.work(completed)
        seconds = (last - first) / (done - self.work(before))
        return max(seconds * (self.work(self.total) - done) - (self.clock() - last), 0.0)


@contextmanager
def progress_bar(
    name: str,
    total: int,
    *,
    start: int = 0,
    work: Work = float,
    console: Console | None = None,
    clock: Clock = time.monotonic,
) -> Iterator[Advance]:
    """Show progress; yield a function (completed, metrics=None) that updates it. Metrics are shown until there are new.

    A terminal or notebook gets a bar with an ETA and the metrics in one line of its width; a log file gets a line per
    tenth of the total, and one after the first minute.

    Args:
        name: description in front.
        total: number of steps.
        start: number of steps that are completed already.
        work: as in `Estimate`.
        console: where to print; standard output by default.
        clock: seconds.
    """
    console, estimate = console or Console(), Estimate(total, start, clock, work)
    if not console.is_terminal and not console.is_jupyter:
        yield print_lines(console, name, estimate)
        return
    line = LineColumn(name, estimate, console)
    with Progress(BarColumn(BAR), line, console=console) as progress:
        task = progress.add_task(name, total=total, completed=start)

        def advance(completed: int, metrics: Mapping[str, Any] | None = None) -> None:
            estimate.advance(completed)
            line.metrics = format_metrics(metrics) or line.metrics
            progress.update(task, completed=completed)

        yield advance


class LineColumn(ProgressColumn):
    """Name, count, time, ETA and metrics in what a terminal's width leaves beside the bar."""

    def __init__(self, name: str, estimate: Estimate, console: Console) -> None:
        super().__init__(Column(no_wrap=True))
        self.name, self.estimate, self.console, self.metrics = name, estimate, console, ""

    def render(self, task: Task) -> Text:
        """Render the line as it is now."""
        return progress_line(self.name, self.estimate, self.metrics, width=self.console.width - BAR - 1)


def progress_line(name: str, estimate: Estimate, metrics: str, *, width: int) -> Text:
    """Return a line of at most `width` columns: count, time and ETA in full, before them what fits of the name.

    The metrics come last, and are the first that is cut.
    """
    left = "-:--:--" if estimate.left is None else format_seconds(estimate.left)
    counts = f" {estimate.completed}/{estimate.total} {format_seconds(estimate.elapsed)} ETA {left}"
    line = Text(name, no_wrap=True)
    line.truncate(max(width - len(counts), 1), overflow="ellipsis")
    line.append(counts)
    if metrics and line.cell_len + LEAST_METRICS <= width:
        line.append(f"  {metrics}")
    line.truncate(width, overflow="ellipsis")
    return line


def print_lines(console: Console, name: str, estimate: Estimate) -> Advance:
    """Return a function that prints a line per tenth of the total, and one after the first minute."""
    total = max(estimate.total, 1)
    shown, waits, figures = estimate.completed * 10 // total, True, ""

    def advance(completed: int, metrics: Mapping[str, Any] | None = None) -> None:
        nonlocal shown, waits, figures
        estimate.advance(completed)
        figures = format_metrics(metrics) or figures
        tenth = completed * 10 // total
        if tenth > shown or (waits and estimate.elapsed > FIRST_LINE_SECONDS):
            shown, waits = tenth, False
            left = estimate.left
            eta = "" if left is None else f" ETA {format_seconds(left)}"
            text = f"{name} {completed}/{estimate.total}{eta} {figures}"
            console.print(text.rstrip(), highlight=False, markup=False, soft_wrap=True)

    return advance


def format_seconds(seconds: float) -> str:
    """Format a duration as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


def format_metrics(metrics: Mapping[str, Any] | None) -> str:
    """Format names and values in one line."""
    return "  ".join(f"{key} {value:.4g}" for key, value in (metrics or {}).items())


def track(items: Sequence[Item], name: str) -> Iterator[Item]:
    """Iterate over items with a progress bar."""
    with progress_bar(name, len(items)) as advance:
        for completed, item in enumerate(items, 1):
            yield item
            advance(completed)


def track_rows(batches: Sequence[range], name: str) -> Iterator[range]:
    """Iterate over batches of rows with a progress bar that counts the rows."""
    completed = 0
    with progress_bar(name, sum(map(len, batches))) as advance:
        for rows in batches:
            yield rows
            completed += len(rows)
            advance(completed)
