"""Configuration of `dmdistill sample`."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg

from dmdistill.commands.options import ComputeOptions, ImageSizeOptions, SolverOptions, require

__all__ = ["SampleConfig"]


if TYPE_CHECKING:  # flat, once the values of a repeated flag are joined
    Texts = tuple[str, ...]
    Labels = tuple[int | str, ...]
else:
    Texts = Annotated[tuple[tuple[str, ...], ...], UseAppendAction]
    Labels = Annotated[tuple[tuple[str, ...], ...], UseAppendAction, arg(aliases=("--class",))]


@dataclass(frozen=True)
class SampleConfig:
    """Generate images with a teacher or a student."""

    model: Positional[str]
    """Model: a name, its folder or run, a .pkl of EDM, a .safetensors or hub id, or module:function."""
    out: Path = Path("samples.png")
    """Image file (PNG) to write."""
    count: int = 64
    """Number of images."""
    columns: int = 8
    """Images per row of the grid."""
    labels: Labels = ()
    """Classes, by number or name, repeated as needed. Default: every class in turn."""
    prompt: Texts = ()
    """Prompts of a text-to-image model, each in quotes, repeated as needed."""
    prompts: str | None = None
    """Source of prompts: a .txt file with one per line, .csv, .parquet, or hf:OWNER/NAME[:COLUMN]."""
    seed: int = 0
    """Random seed of the noise."""
    image_size: Annotated[ImageSizeOptions, OmitArgPrefixes] = field(default_factory=ImageSizeOptions)
    ode: Annotated[SolverOptions, OmitArgPrefixes] = field(default_factory=SolverOptions)
    """Of a teacher: its ODE solver and its guidance."""
    compute: Annotated[ComputeOptions, OmitArgPrefixes] = field(default_factory=ComputeOptions)
    """Where and how to compute."""

    def __post_init__(self) -> None:
        """Join the values of flags that are given several times: `--labels 1 2 --labels 3` is ("1", "2", "3")."""
        for name in ("labels", "prompt"):
            groups = (group if isinstance(group, tuple) else (group,) for group in getattr(self, name))
            object.__setattr__(self, name, tuple(chain.from_iterable(groups)))

    def check(self) -> None:
        """Raise a ValueError for settings that no model supports."""
        require(self, "from 1 to 1000000000", lambda number: 1 <= number <= 10**9, "count", "columns")
        if self.out.suffix.lower() != ".png":
            raise ValueError(f"--out {self.out}, expected a file that ends in .png")
        if self.prompt and self.prompts is not None:
            raise ValueError(f"--prompt and --prompts {self.prompts}, expected one of the two")
        if not all(text.strip() for text in self.prompt):
            raise ValueError("--prompt with an empty text, expected words")
