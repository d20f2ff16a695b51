"""Signals, and a closed stdout, that end training after the present step, with a checkpoint, or another command."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = [
    "StopEvent",
    "TrainingStopped",
    "exit_if_closed",
    "exit_on_interrupt",
    "interrupt_event",
    "interrupt_if_closed",
    "stop_signals",
]

VARIABLE = "DMDISTILL_STOP_SIGNALS"
DEFAULT = "SIGTERM SIGHUP SIGUSR1"  # of kill, of a closed terminal, of Slurm's --signal
SIGPIPE = 13  # of a closed stdout; not all systems have it


class TrainingStopped(Exception):  # noqa: N818, as it is none
    """Training ended early, with a checkpoint to resume from, after a signal or as nobody reads stdout any longer.

    Args:
        signal_number: of the signal.

    Attributes:
        exit_code: of the command, as shells and schedulers expect it: 128 plus the signal's number, 130 for Ctrl-C.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"training was stopped by signal {signal_number}; it can be resumed")
        self.exit_code = 128 + signal_number


class StopEvent(threading.Event):
    """An event that a signal sets.

    Attributes:
        number: of the first signal; 0 while there was none.
    """

    number = 0

    def stop(self, number: int) -> None:
        """Set the event for a signal."""
        self.number = self.number or number
        self.set()


def stop_signals() -> list[signal.Signals]:
    """List the signals that end training: SIGINT and those that $DMDISTILL_STOP_SIGNALS names, separated by spaces.

    By default these are SIGTERM, SIGHUP and SIGUSR1, as far as the system has them. ValueError for an unknown name.
    """
    names = os.environ.get(VARIABLE, DEFAULT).replace(",", " ").split()
    known = {one.name: one for one in signal.Signals}
    unknown = [name for name in names if name not in known]
    if unknown and VARIABLE in os.environ:
        raise ValueError(f"${VARIABLE} {unknown[0]!r}, expected names such as {DEFAULT}, separated by spaces")
    return [signal.SIGINT, *(known[name] for name in names if name in known)]


@contextmanager
def interrupt_event(*, single: bool = True) -> Iterator[StopEvent]:
    """Yield an event that `stop_signals` set, so that training can finish its step. A second Ctrl-C raises at once.

    SIGHUP stays ignored if the process was started so, as by nohup.

    Args:
        single: whether this is the only process. Otherwise torchrun repeats the signals of the terminal, and a second
            one says nothing new.
    """
    event = StopEvent()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handle(number: int, frame: Any) -> None:
        if event.is_set() and single and number == signal.SIGINT:
            raise KeyboardInterrupt
        event.stop(number)

    ignored = {number for number in stop_signals() if number.name == "SIGHUP" and is_ignored(number)}
    before = {number: signal.signal(number, handle) for number in {*stop_signals()} - ignored}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_ignored(number: signal.Signals) -> bool:
    """Whether the process ignores a signal."""
    return signal.getsignal(number) is signal.SIG_IGN


def interrupt_if_closed(show: Callable[..., None], event: StopEvent) -> Callable[..., None]:
    """Return a function that prints like `show`, and sets the event if nobody reads stdout any longer."""

    def guarded(*args: Any) -> None:
        try:
            show(*args)
        except (BrokenPipeError, SystemExit):  # rich makes the one into the other
            event.stop(SIGPIPE)

    return guarded


@contextmanager
def exit_if_closed() -> Iterator[None]:
    """Within the block, output that nobody reads, as that to `| head`, ends the process silently with exit code 141."""
    try:
        yield
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise  # rich makes the one into the other, of code 1
        with (
            suppress(OSError, ValueError),
            open(os.devnull, "w") as nothing,
        ):  # else Python flushes again, and complains
            os.dup2(nothing.fileno(), sys.stdout.fileno())
        raise SystemExit(128 + SIGPIPE) from None


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Within the block, Ctrl-C ends the process at once, in one line and with exit code 130.

    It is for imports, where there is nothing to clean up and a KeyboardInterrupt would become a traceback.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: Any) -> None:
        print("dmdistill: interrupted", file=sys.stderr, flush=True)
        os._exit(128 + number)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
