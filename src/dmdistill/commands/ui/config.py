"""Configuration of `dmdistill ui`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional

from dmdistill.commands.options import ComputeOptions, require

__all__ = ["UiConfig"]


@dataclass(frozen=True)
class UiConfig:
    """Try a student beside its teacher, or watch a run, on a local page in the browser."""

    model: Positional[str] = "fashion-student"
    """A student, beside its teacher, or a teacher: a name, or its folder; or the folder of a run, also of one that
    trains at present."""
    teacher: str | None = None
    """Teacher to show the student with. Default: the one that its config.json names."""
    host: str = "127.0.0.1"
    """Address to listen at. The page has no password: 0.0.0.0 shows it to the whole network."""
    port: int = 7860
    """Port to listen at; 0 chooses a free one."""
    compute: Annotated[ComputeOptions, OmitArgPrefixes] = field(default_factory=ComputeOptions)
    """Where and how to compute."""

    def check(self) -> None:
        """Raise a ValueError for a port that there cannot be."""
        require(self, "from 0 to 65535", lambda number: 0 <= number <= 65535, "port")
