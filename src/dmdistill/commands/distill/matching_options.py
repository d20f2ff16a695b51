"""Options of distribution matching. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from dmdistill.commands.options import require, require_at_least, require_name, require_positive

__all__ = ["MatchingOptions"]

WEIGHTS = ("eq8", "sigma", "sigma3")


@dataclass(frozen=True)
class MatchingOptions:
    """Distribution matching (Eq. 7 and 8)."""

    match: bool = True
    """Match distributions. Without it regression is the only loss."""
    match_from: float = 0.0
    """Fraction of the run after which distributions are matched; before it regression is the only loss."""
    phase_steps: int = 0
    """Number of steps of which --match-from and the other phases are fractions; 0 for --steps. A run that is resumed
    with other --steps keeps its own."""
    match_pairs: bool = False
    """Match the images of the pairs' noise too, x = concat(x, x_ref), as the paper does on LAION."""
    min_t: float = 0.02
    """Lower end of the time range of distribution matching, as a fraction."""
    max_t: float = 0.98
    """Upper end of the time range of distribution matching, as a fraction."""
    time_shift: float = 1.0
    """Shift s of a flow's times t, drawn from --min-t to --max-t: t <- s t/(1 + (s - 1) t), towards noise; 1: none."""
    weight: str = "eq8"
    """Weight of the gradient: eq8 (Eq. 8), sigma, sigma3 (table 3), or your own function as module:function."""
    real_guidance: tuple[float, ...] = ()
    """Guidance scale of mu_real in place of --guidance, which pairs keep; or two, between which one is drawn for each
    sample. A lower one than the pairs' gives images of more variety."""
    guidance_cap: float = 0.0
    """Largest norm of the guided mean, as a multiple of that of the conditional one, such as 1; 0 for no cap."""

    def check(self) -> None:
        """Raise a ValueError for a value that an option cannot have."""
        require(self, "a fraction from 0 to below 1", lambda value: 0 <= value < 1, "match_from")
        require_at_least(self, 0, "phase_steps")
        require_positive(self, "time_shift")
        if not 0 <= self.min_t < self.max_t <= 1:
            raise ValueError(f"--min-t {self.min_t} --max-t {self.max_t}, expected 0 <= min-t < max-t <= 1")
        require_name(self, "weight", WEIGHTS)
        require(self, "at least 1, or 0 for no cap", lambda value: value == 0 or value >= 1, "guidance_cap")
        scales = self.real_guidance
        if len(scales) > 2 or min(scales, default=0) < 0 or (len(scales) == 2 and scales[0] >= scales[1]):
            raise ValueError(
                f"--real-guidance {self.real_guidance_text}, expected a scale from 0, or two, the smaller first: 3 8"
            )

    @property
    def real_guidance_text(self) -> str:
        """The scales as they are typed."""
        return " ".join(f"{scale:g}" for scale in self.real_guidance)
