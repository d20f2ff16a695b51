"""The regression's distance, the gradient's weight, and the user's own functions by module:function."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dmdistill.commands.distill.config import RegressionOptions
from dmdistill.core.denoisers import Denoiser
from dmdistill.core.divergences import DIVERGENCES, Divergence
from dmdistill.core.losses import WEIGHTS, Distance, Weight, pseudo_huber
from dmdistill.core.objective import Objective
from dmdistill.io.user_functions import describe_user_error, import_function
from dmdistill.metrics.lpips import LPIPS
from dmdistill.metrics.lpips_weights import load_lpips
from dmdistill.models.diffusers_components import load_autoencoder
from dmdistill.models.model import Teacher
from dmdistill.training.device import is_machine_error

__all__ = ["load_distance", "load_divergence", "load_objective", "load_weight"]


def load_weight(name: str) -> Weight:
    """Return the weight of the distribution-matching gradient that --weight names."""
    return WEIGHTS[name] if name in WEIGHTS else import_function(name, "--weight")


def load_divergence(name: str) -> Divergence:
    """Return the function h(r) of f-distill that --divergence names."""
    return DIVERGENCES[name] if name in DIVERGENCES else import_function(name, "--divergence")


def load_objective(name: str, generator: nn.Module, real: Denoiser, fake: Denoiser) -> Objective:
    """Call the function of the user's own that --method names, with the networks.

    ValueError where it fails, or returns no objective whose critics can be updated.
    """
    function = import_function(name, "--method")
    try:
        objective = function(generator, real, fake)
    except Exception as error:  # the user's code may raise anything
        if is_machine_error(error):
            raise
        raise ValueError(
            f"--method {name}, called with generator, real and fake: {describe_user_error(error)}"
        ) from error
    if not isinstance(objective, Objective):
        raise ValueError(
            f"--method {name} returned an object of type {type(objective).__name__}, expected an Objective"
        )
    if odd := [*(objective.critics.keys() - {"fake"})]:
        raise ValueError(f"--method {name}: no network has the update {odd[0]!r} of its critics, expected 'fake'")
    return objective


def load_distance(
    options: RegressionOptions,
    teacher: Teacher,
    device: torch.device,
    precision: torch.dtype | None,
    *,
    trained: bool = True,
) -> Distance:
    """Return the distance of the regression; LPIPS compares images, decoded where the teacher has latents.

    Args:
        options: which distance.
        teacher: its autoencoder decodes, where no other one is given.
        device: where LPIPS computes.
        precision: in which LPIPS computes; None for fp32.
        trained: with LPIPS' weights; False needs no file of them, where only sizes matter.
    """
    if ":" in options.distance:
        return import_function(options.distance, "--distance")
    if not options.uses_lpips or not options.lambda_reg:
        return pseudo_huber
    form = {"resize": options.lpips_side or None, "pooling": options.lpips_pooling}
    lpips = (load_lpips(options.lpips_weights, **form) if trained else LPIPS(**form)).to(device)
    decode = teacher.decode
    if options.decoder is not None:
        decode = load_autoencoder(options.decoder).to(device).decode

    def distance(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(x.device.type, precision or torch.bfloat16, enabled=precision is not None):
            with torch.no_grad():
                y = decode(y)
            return lpips(decode(x), y)

    return distance
