"""`dmdistill completion`: the script of the command-line parser. Loads no torch."""

from __future__ import annotations

import subprocess
import sys

from dmdistill.commands.completion.config import CompletionConfig

__all__ = ["completion"]


def completion(config: CompletionConfig) -> None:
    """Print the script, which the parser makes in a process of its own, as it ends the process."""
    flags = ["--tyro-print-completion", config.shell]
    print(subprocess.check_output([sys.executable, "-m", "dmdistill", *flags], text=True), end="")
