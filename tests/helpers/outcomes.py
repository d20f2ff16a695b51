"""What a command does with a damaged file, in bounded time and memory, and the table of the counts."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dmdistill.commands.cli import main
from dmdistill.io.checksums import note_once

OUTCOMES = ("reported", "recovered", "harmless", "named", "other data", "silent", "traceback", "slow", "large")
FAULTS = ("silent", "traceback", "slow", "large")
TABLE: dict[str, Counter[str]] = defaultdict(Counter)
"""Counts of outcomes by kind of file; a hook of `tests/hard/conftest.py` prints it."""


class ReportedError(Exception):
    """A command ended with exit code 2 and one line."""


class TooSlow(BaseException):
    """A reader took longer than it may."""


def run_command(*arguments: object) -> str:
    """Run a command in this process; return what it prints. ReportedError where it ended in one line."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main([str(argument) for argument in arguments])
    except SystemExit as error:
        lines = [line for line in err.getvalue().splitlines() if "not verified" not in line]
        if (error.code, len(lines)) != (2, 1):
            raise AssertionError(err.getvalue()) from error
        raise ReportedError(lines[0]) from None
    print(err.getvalue(), file=sys.stderr)  # where `Trial` looks for notes
    return out.getvalue()


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TooSlow after so many seconds of this process's own time."""

    def stop(*_: object) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def memory_status(name: str) -> int:
    """Bytes of this process's memory: VmRSS now, VmHWM at most since `reset_peak`; 0 where the system does not tell."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])
    return 0


def reset_peak() -> None:
    """Begin to count the peak of memory anew, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


class Trial:
    """Reads of files of one kind, each compared with what the undamaged ones give.

    Args:
        name: of the kind, in the table.
        read: takes a folder, returns something that compares.
        folder: undamaged, which the first read is of.
        detects: whether a result that differs must have been reported, as the files have checksums.
        unread: names of files that decide no result.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[Path], Any],
        folder: Path,
        *,
        detects: bool = True,
        unread: tuple[str, ...] = (),
    ) -> None:
        self.name, self.read, self.detects, self.unread = name, read, detects, unread
        began = time.process_time()
        self.right = read(folder)
        self.seconds = time.process_time() - began
        assert memory_status("VmRSS") or os.name != "posix" or not Path("/proc/self/status").exists()

    def __call__(self, folder: Path, file: Path, what: str = "") -> str:
        """Read a folder of which one file is damaged; return the outcome, which is counted."""
        outcome = self.outcome(folder, file)
        TABLE[self.name][outcome] += 1
        if outcome in FAULTS:
            print(f"{self.name}, {file.name}: {outcome} {what}")
        return outcome

    def outcome(self, folder: Path, file: Path) -> str:
        """Read the folder within bounds that grow with the file's size."""
        size = file.stat().st_size if file.exists() else 0
        note_once.cache_clear()
        notes, before = io.StringIO(), memory_status("VmRSS")
        reset_peak()
        try:
            with time_limit(5 + 10 * self.seconds + 5e-6 * size), contextlib.redirect_stderr(notes):
                found = self.read(folder)
        except TooSlow:
            return "slow"
        except (ReportedError, ValueError, OSError) as error:
            if len(str(error).splitlines()) != 1:
                print(f"not one line: {error!r:.2000}")
                return "traceback"
            outcome = "reported"
        except BaseException:
            traceback.print_exc()
            return "traceback"
        else:
            outcome = self.compare(found, file, notes.getvalue())
        grown = memory_status("VmHWM") - before
        return "large" if grown > 400e6 + 30 * size else outcome

    def compare(self, found: Any, file: Path, notes: str) -> str:
        """Name the outcome of a read that ended."""
        if found == self.right:
            return "harmless" if file.name in self.unread else "recovered"
        if not self.detects:
            return "other data"
        return "named" if "not verified" in notes or "not the published" in notes else "silent"


def faults(name: str) -> dict[str, int]:
    """The counts of what must not happen, of a kind."""
    return {outcome: TABLE[name][outcome] for outcome in FAULTS if TABLE[name][outcome]}
