"""Commands that are killed while they write their output."""

from __future__ import annotations

import os
import signal
from unittest import mock

from dmdistill.commands.cli import main


def run_killed(function: str, *arguments: object) -> None:
    """Run a command in a forked process that SIGKILL ends when it calls a function, named by its dotted path."""
    pid = os.fork()
    if pid == 0:
        try:
            with mock.patch(function, side_effect=lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)):
                main([str(argument) for argument in arguments])
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
