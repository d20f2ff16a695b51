"""The path and the parameterisation of a diffusers model, from its scheduler's config."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dmdistill.core.denoisers import Denoiser, EDMDenoiser, EpsDenoiser, FlowDenoiser, VDenoiser, X0Denoiser
from dmdistill.core.schedules import EDM, VP, Flow, NoiseSchedule

__all__ = ["PREDICTIONS", "Schedule", "read_schedule"]

PREDICTIONS = {"epsilon": EpsDenoiser, "v_prediction": VDenoiser, "sample": X0Denoiser}

SIGMAS = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "sigma_data": 0.5}  # diffusers' names and defaults


@dataclass(frozen=True)
class Schedule:
    """What a scheduler tells: the path, the denoiser to build on a network, and how the model is usually sampled."""

    schedule: NoiseSchedule
    denoiser: Callable[[nn.Module, NoiseSchedule], Denoiser]
    solver: str
    steps: int


def read_schedule(config: dict[str, Any], *, tokens: int = 0) -> Schedule:
    """config: a scheduler_config.json. tokens: of an image, for schedules that shift with its size.

    ValueError, naming what is odd, where path or parameterisation cannot be told from it.
    """
    name = str(config.get("_class_name", ""))
    if name.startswith("FlowMatch"):
        return Schedule(Flow(shift=flow_shift(config, tokens)), FlowDenoiser, "ddim", 50)
    prediction = config.get("prediction_type", "epsilon")
    if name.startswith("EDM"):
        if prediction != "epsilon":
            raise ValueError(f"{name} with prediction_type {prediction!r}, expected 'epsilon'")
        sigma_min, sigma_max, rho, sigma_data = (float(config.get(key, usual)) for key, usual in SIGMAS.items())
        schedule = EDM(sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
        return Schedule(schedule, lambda net, schedule: EDMDenoiser(net, schedule, sigma_data=sigma_data), "heun", 18)
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction_type {prediction!r} of {name}, expected {', '.join(PREDICTIONS)}")
    return Schedule(VP(alphas_cumprod(name, config)), PREDICTIONS[prediction], solver_of(name), 50)


def alphas_cumprod(name: str, config: dict[str, Any]) -> Tensor:
    """abar as diffusers computes it: from betas, whatever their schedule, with zero terminal SNR where asked for."""
    import diffusers

    scheduler: Any = getattr(diffusers, name, None)
    made: Any = scheduler.from_config(config) if hasattr(scheduler, "from_config") else None
    if not isinstance(getattr(made, "alphas_cumprod", None), Tensor):
        raise ValueError(
            f"scheduler {name or 'without a _class_name'}: no noise schedule is known from it. Known are diffusers' "
            "schedulers with betas (DDPM, DDIM, PNDM, Euler, DPM-Solver ...), FlowMatchEuler and EDM ones"
        )
    abar = made.alphas_cumprod.clone()
    if config.get("rescale_betas_zero_snr"):
        abar[-1] = 0  # Euler's has 2^-24 there, for it divides by alpha
    return abar


def solver_of(name: str) -> str:
    return "pndm" if name.startswith("PNDM") else "ddim"


def flow_shift(config: dict[str, Any], tokens: int) -> float:
    """The shift of a flow's grid; a dynamic one is e^mu, mu linear in the tokens of an image (Flux)."""
    if not config.get("use_dynamic_shifting"):
        return float(config.get("shift", 1.0))
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    first, t_max = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return math.exp(first + (t_max - first) * (tokens - low) / (high - low))
