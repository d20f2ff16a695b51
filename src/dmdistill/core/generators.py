"""The one-step generator."""

from __future__ import annotations

from torch import Tensor, nn

from dmdistill.core.denoisers import Condition, Denoiser

__all__ = ["Generator"]


class Generator(nn.Module):
    """G(z) = mu(prior_std z, last time): a denoiser asked once, where there is nothing but noise (section 3.1).

    Built on a copy of the teacher it starts as the teacher, at exactly the noise level where the pairs start.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, z: Tensor, cond: Condition | None = None) -> Tensor:
        """Images (B ...) from z ~ N(0, I) of the same shape."""
        path = self.denoiser.path
        return self.denoiser(path.prior_std * z, z.new_full((len(z),), path.last), cond)
