"""Configuration of `dmdistill reproduce`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional

from dmdistill.commands.options import ComputeOptions, require

__all__ = ["ReproduceConfig"]

UNUSED_OPTIONS = {
    "fig3": ("guidance", "start", "data"),
    "fig4": ("guidance", "start", "data", "steps"),
    "ablation": ("data",),
    "weighting": ("data",),
    "family": ("guidance",),
}


@dataclass(frozen=True)
class ReproduceConfig:
    """Repeat an experiment of the DMD paper at a small size, with error bars over seeds; or compare methods."""

    experiment: Positional[Literal["fig3", "fig4", "ablation", "weighting", "family"]]
    """fig3: what each loss does; fig4: why densities are diffused; ablation: table 2; weighting: table 3; family: all
    methods at equal compute."""
    out: Path = Path("runs/reproduce")
    """Output folder for the plot (PNG) and the table (JSON)."""
    seeds: int = 5
    """Number of random seeds, over which the error bars are computed."""
    steps: int | None = None
    """Generator updates of each training run. Default: the experiment's own number. fig4 trains nothing."""
    guidance: float | None = None
    """Classifier-free guidance scale of ablation and weighting; 1 disables guidance, and is the default."""
    start: str | None = None
    """Student that every run of ablation, weighting and family starts from. Default: the teacher's weights."""
    data: str | None = None
    """Fashion-MNIST's files, the real images of family: those that its GANs learn from."""
    compute: Annotated[ComputeOptions, OmitArgPrefixes] = field(default_factory=ComputeOptions)
    """Where and how to compute."""

    def check(self) -> None:
        """Raise a ValueError for a number out of range, and for an option that the experiment would ignore."""
        require(self, "from 1 to 1000000000", lambda number: 1 <= number <= 10**9, "seeds", "steps")
        unused = {name: getattr(self, name) for name in UNUSED_OPTIONS.get(self.experiment, ())}
        unused = {name: value for name, value in unused.items() if value is not None}
        if self.experiment in ("fig3", "fig4") and self.compute.precision == "bf16":  # fig3 is fp32, fig4 fp64
            unused["precision"] = "bf16"
        if self.experiment == "fig4" and self.compute.device not in ("auto", "cpu"):
            unused["device"] = self.compute.device
        if unused:
            flags = " ".join(f"--{name} {value}" for name, value in unused.items())
            raise ValueError(f"{self.experiment} does not use {flags}: omit it")
        if self.experiment == "family" and self.data is None:
            raise ValueError(
                "family compares methods that learn from real images too: give --data, Fashion-MNIST's files"
            )
