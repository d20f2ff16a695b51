"""Lines for the user."""

from __future__ import annotations

import sys

__all__ = ["say"]


def say(text: str, *, stderr: bool = False) -> None:
    """Print a line at once, as it is: to stdout, or to stderr what is not the result."""
    print(text, file=sys.stderr if stderr else sys.stdout, flush=True)
