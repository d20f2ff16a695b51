"""Timings that can be compared: in rounds, every piece of work in turn, so that a busy machine burdens all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from dmdistill.training.device import out_of_memory
from dmdistill.training.progress import track

__all__ = ["Clock", "Spread", "Work", "best_batch", "clock_on", "in_rounds"]

Work = Callable[[], object]
Clock = Callable[[], float]
Name = TypeVar("Name", bound=Hashable)

LEAST = 0.1  # seconds of one piece of work in a round: of shorter ones so many calls, and of these the median
GAIN = 1.02  # what a better batch must gain at least: less is noise


@dataclass(frozen=True)
class Spread:
    """Seconds of one call: the median of all rounds, and the quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, timings: list[float]) -> Spread:
        low, median, high = statistics.quantiles(timings, n=4, method="inclusive") if timings[1:] else 3 * timings
        return cls(median, low, high)


def clock_on(device: torch.device) -> Clock:
    """Tells the seconds once all that the device was given is done."""

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def seconds_of(work: Work, clock: Clock) -> float:
    start = clock()
    work()
    return clock() - start


def least_seconds_of(work: Work, clock: Clock) -> float:
    """The least of as many calls as LEAST has room for, and of one at the least."""
    first = seconds_of(work, clock)
    others = range(min(10, int(LEAST / max(first, 1e-6))))
    return min([first, *(seconds_of(work, clock) for _ in others)])


def in_rounds(works: dict[Name, Work], clock: Clock, *, repeats: int, name: str) -> dict[Name, Spread]:
    """Seconds of one call of each, warm. In a round all have their turn, and short ones several, one after another."""
    calls = {}
    for key, work in works.items():
        work()
        calls[key] = max(1, round(LEAST / max(seconds_of(work, clock), 1e-6)))
    rounds: dict[Name, list[float]] = {key: [] for key in works}
    for _ in track(range(repeats), name):
        taken: dict[Name, list[float]] = {key: [] for key in works}
        for turn in range(max(calls.values())):
            for key, work in works.items():
                if turn < calls[key]:
                    taken[key].append(seconds_of(work, clock))
        for key in works:
            rounds[key].append(statistics.median(taken[key]))
    return {key: Spread.of(timings) for key, timings in rounds.items()}


def best_batch(work_at: Callable[[int], Work], clock: Clock, *, most: int) -> tuple[int, dict[int, float]]:
    """The batch that takes the least time per image, and the seconds per image of all that were tried.

    Tried are 1, 2, 4 ... up to `most`, until two in a row are no better than the best, or memory runs out.
    """
    best, tried = 1, {}
    for batch in powers_of_two(most):
        try:
            work = work_at(batch)
            work()
            tried[batch] = least_seconds_of(work, clock) / batch
        except (RuntimeError, MemoryError) as error:
            if batch == 1 or not out_of_memory(error):
                raise
            break
        if GAIN * tried[batch] < tried[best]:
            best = batch
        elif batch >= 4 * best:
            break
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # of what larger batches had taken
    return best, tried


def powers_of_two(most: int) -> Iterator[int]:
    batch = 1
    while batch <= most:
        yield batch
        batch *= 2
