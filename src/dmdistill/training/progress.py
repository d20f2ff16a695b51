"""Progress with an ETA, for every long piece of work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["progress_bar", "track"]

Item = TypeVar("Item")


@contextmanager
def progress_bar(name: str, total: int, *, start: int = 0) -> Iterator[Callable[..., None]]:
    """Yields advance(done, figures={}): figures are shown behind the ETA."""
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    ]
    with Progress(*columns) as progress:
        task = progress.add_task(name, total=total, completed=start, figures="")

        def advance(done: int, figures: Mapping[str, Any] | None = None) -> None:
            text = "  ".join(f"{key} {value:.4g}" for key, value in (figures or {}).items())
            progress.update(task, completed=done, figures=text)

        yield advance


def track(items: Sequence[Item], name: str) -> Iterator[Item]:
    """The items, with a progress bar."""
    with progress_bar(name, len(items)) as advance:
        for done, item in enumerate(items, 1):
            yield item
            advance(done)


Track = Callable[[Sequence[Any], str], Iterable[Any]]
