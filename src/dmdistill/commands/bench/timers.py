"""Timing in rounds: each round runs every workload in turn, so that other load on the computer affects all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TypeVar

import torch

from dmdistill.training.device import is_out_of_memory
from dmdistill.training.progress import track

__all__ = ["Clock", "Spread", "Workload", "device_clock", "find_best_batch", "time_call", "time_in_rounds"]

Workload = Callable[[], object]
Clock = Callable[[], float]
Name = TypeVar("Name", bound=Hashable)

ROUND_SECONDS = 0.1  # of one workload in a round: a shorter one is called so many times, and the median is taken
MIN_GAIN = 1.02  # by which a better batch size must be faster: less is noise


@dataclass(frozen=True)
class Spread:
    """Seconds of one call: the median over the rounds, and the quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def from_timings(cls, timings: list[float]) -> Spread:
        """Compute the quartiles of one timing or more."""
        low, median, high = statistics.quantiles(timings, n=4, method="inclusive") if timings[1:] else 3 * timings
        return cls(median, low, high)


def device_clock(device: torch.device) -> Clock:
    """Return a clock, in seconds, that first waits for the device to finish its queued work."""

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def time_call(work: Workload, clock: Clock) -> float:
    """Return the seconds of one call."""
    start = clock()
    work()
    return clock() - start


def shortest_call(work: Workload, clock: Clock) -> float:
    """Return the least seconds of a call, of at most 11 calls within about ROUND_SECONDS."""
    first = time_call(work, clock)
    others = range(min(10, int(ROUND_SECONDS / max(first, 1e-6))))
    return min([first, *(time_call(work, clock) for _ in others)])


def time_in_rounds(works: dict[Name, Workload], clock: Clock, *, repeats: int, name: str) -> dict[Name, Spread]:
    """Time warm calls of every workload in `repeats` interleaved rounds, short ones several times in each."""
    calls = {}
    for key, work in works.items():
        work()
        calls[key] = max(1, round(ROUND_SECONDS / max(time_call(work, clock), 1e-6)))
    rounds: dict[Name, list[float]] = {key: [] for key in works}
    for _ in track(range(repeats), name):
        timings: dict[Name, list[float]] = {key: [] for key in works}
        for turn in range(max(calls.values())):
            for key, work in works.items():
                if turn < calls[key]:
                    timings[key].append(time_call(work, clock))
        for key in works:
            rounds[key].append(statistics.median(timings[key]))
    return {key: Spread.from_timings(timings) for key, timings in rounds.items()}


def find_best_batch(
    make_work: Callable[[int], Workload], clock: Clock, *, max_batch: int
) -> tuple[int, dict[int, float]]:
    """Search for the batch size with the least time per image, among 1, 2, 4 ... up to `max_batch`.

    The search ends when two sizes in a row are no better than the best, or when memory runs out. Returns the best size
    and the seconds per image of all sizes that were tried.
    """
    best, tried = 1, {}
    for batch in (2**i for i in range(max_batch.bit_length())):
        try:
            work = make_work(batch)
            work()
            tried[batch] = shortest_call(work, clock) / batch
        except (RuntimeError, MemoryError) as error:
            if batch == 1 or not is_out_of_memory(error):
                raise
            break
        if MIN_GAIN * tried[batch] < tried[best]:
            best = batch
        elif batch >= 4 * best:
            break
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # memory of the larger batches
    return best, tried
