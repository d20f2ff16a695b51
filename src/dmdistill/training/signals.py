"""Ctrl-C and SIGTERM, as an event that a loop asks for between its steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["interrupt_event"]


@contextmanager
def interrupt_event(*, alone: bool = True) -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets, so that the step in hand can end. A second Ctrl-C interrupts at once.

    alone: False where torchrun passes on what the terminal has already sent: then a second signal says nothing new.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handle(number: int, frame: Any) -> None:
        if event.is_set() and alone:
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
