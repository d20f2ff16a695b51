"""Configuration of `dmdistill completion`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

__all__ = ["CompletionConfig"]


@dataclass(frozen=True)
class CompletionConfig:
    """Print a script that completes commands, options and their values in a shell."""

    shell: Positional[Literal["bash", "zsh"]]
    """For bash: `dmdistill completion bash > ~/.local/share/bash-completion/completions/dmdistill`."""
