"""Noise schedule and parameterisation of a diffusers model, from its scheduler's config."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from dmdistill.core.denoisers import Denoiser, EDMDenoiser, EpsDenoiser, FlowDenoiser, VDenoiser, X0Denoiser
from dmdistill.core.schedules import EDM, VP, Flow, NoiseSchedule
from dmdistill.io.errors import first_line, import_optional
from dmdistill.models.clipping import Clipping
from dmdistill.models.quiet import quiet

__all__ = ["PREDICTIONS", "Schedule", "read_schedule"]

PREDICTIONS = {"epsilon": EpsDenoiser, "v_prediction": VDenoiser, "sample": X0Denoiser}
LCM = "LCMScheduler"
CONSISTENCY = (LCM, "TCDScheduler", "FlowMatchLCMScheduler", "CMStochasticIterativeScheduler")
OTHER_SAMPLERS = ("InverseScheduler", "RePaintScheduler")  # which lead from images to noise, or fill in parts
EDM_DEFAULTS = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "sigma_data": 0.5}  # diffusers' names and values
SUPPORTED = {  # option: values with which a scheduler is read correctly here
    "timestep_type": (None, "discrete"),
    "use_flow_sigmas": (None, False),
    "invert_sigmas": (None, False),
}


@dataclass(frozen=True)
class Schedule:
    """What a scheduler's config says of a model.

    Attributes:
        schedule: of the noise.
        denoiser: builds the denoiser on a network and the schedule.
        solver: that samples such models.
        steps: of the solver.
        time_scale: the network's timestep is time_scale times the time of the schedule.
        clipping: of predicted images in sampling; None for none.
    """

    schedule: NoiseSchedule
    denoiser: Callable[[nn.Module, NoiseSchedule], Denoiser]
    solver: str
    steps: int
    time_scale: float = 1.0
    clipping: Clipping | None = None


def read_schedule(config: dict[str, Any], *, tokens: int = 0, distilled: bool = False) -> Schedule:
    """Read the noise schedule and the parameterisation of a model.

    Args:
        config: the content of a scheduler_config.json.
        tokens: patches of an image, on which the shift of some flows depends.
        distilled: whether it is a student of this package, whose steps LCM's scheduler may take.

    Raises:
        ValueError: naming the option and its value, where one is unknown or not supported.
    """
    name = str(config.get("_class_name", ""))
    if name in CONSISTENCY and not (distilled and name == LCM):
        raise ValueError(
            f"scheduler {name} belongs to a consistency model, which was distilled already: its network does not "
            "predict the posterior mean of a diffusion model. Give the model that it was distilled from"
        )
    if name.endswith(OTHER_SAMPLERS):
        raise ValueError(f"scheduler {name} does not sample images from noise: give the config of one that does")
    for option, supported in SUPPORTED.items():
        if config.get(option) not in supported:
            raise ValueError(f"{option} {config[option]!r} of scheduler {name} is not supported")
    try:
        if name.startswith("FlowMatch"):
            return read_flow(config, tokens)
        return read_edm(config) if name.startswith("EDM") else read_betas(name, config)
    except (ArithmeticError, ValueError) as error:
        raise ValueError(f"scheduler {name}: {first_line(error)}") from None


def read_flow(config: dict[str, Any], tokens: int) -> Schedule:
    """Read a rectified flow."""
    steps = read_number(config, "num_train_timesteps", 1000)
    if steps < 1:
        raise ValueError(f"num_train_timesteps is {steps:g}, expected at least 1")
    return Schedule(Flow(shift=read_shift(config, tokens)), FlowDenoiser, "ddim", 50, time_scale=steps)


def read_shift(config: dict[str, Any], tokens: int) -> float:
    """Read the shift of a flow's grid; a dynamic one depends on mu, which is linear in the patches of an image."""
    if not config.get("use_dynamic_shifting"):
        return read_number(config, "shift", 1.0)
    low, high = read_number(config, "base_image_seq_len", 256), read_number(config, "max_image_seq_len", 4096)
    first, last = read_number(config, "base_shift", 0.5), read_number(config, "max_shift", 1.15)
    mu = first + (last - first) * (tokens - low) / (high - low)
    return mu if config.get("time_shift_type") == "linear" else math.exp(mu)


def read_edm(config: dict[str, Any]) -> Schedule:
    """Read EDM's schedule and preconditioning."""
    prediction = config.get("prediction_type", "epsilon")
    if prediction != "epsilon":
        raise ValueError(f"prediction_type {prediction!r}, expected 'epsilon'")
    sigma_min, sigma_max, rho, sigma_data = (read_number(config, key, value) for key, value in EDM_DEFAULTS.items())
    schedule = EDM(sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    return Schedule(schedule, partial(EDMDenoiser, sigma_data=sigma_data), "heun", 18)


def read_betas(name: str, config: dict[str, Any]) -> Schedule:
    """Read a variance-preserving schedule, abar, as the scheduler's own class computes it from its betas."""
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in list(PREDICTIONS):
        raise ValueError(f"prediction_type {prediction!r}, expected {', '.join(PREDICTIONS)}")
    scheduler = build_scheduler(name, config)
    if not isinstance(getattr(scheduler, "alphas_cumprod", None), Tensor):
        raise ValueError(
            "no noise schedule is known from it. Known are diffusers' schedulers with betas (DDPM, DDIM, PNDM, Euler, "
            "DPM-Solver ...), FlowMatchEuler and EDM ones"
        )
    abar = scheduler.alphas_cumprod.clone()
    if config.get("rescale_betas_zero_snr"):
        abar[-1] = 0  # Euler's scheduler has 2^-24 there, because it divides by alpha
    solver = "pndm" if name.startswith("PNDM") else "ddim"
    return Schedule(VP(abar), PREDICTIONS[prediction], solver, 50, clipping=read_clipping(scheduler.config))


def build_scheduler(name: str, config: dict[str, Any]) -> Any:
    """Build a scheduler of diffusers from its config; None where there is no such class."""
    diffusers = import_optional("diffusers", f"scheduler {name}", extra="diffusers")
    kind = getattr(diffusers, name, None)
    missing = [one for one in getattr(kind, "_backends", ()) if importlib.util.find_spec(one) is None]
    if missing:  # diffusers puts a placeholder there
        raise ValueError(f"it needs {missing[0]}, which is not installed")
    if not isinstance(kind, type) or not issubclass(kind, diffusers.SchedulerMixin):
        return None
    try:
        with quiet("diffusers"):
            return kind.from_config(config)  # type: ignore[attr-defined]
    except Exception as error:  # whatever the library raises
        raise ValueError(f"it does not take this config: {first_line(error)}") from None


def read_clipping(config: Mapping[str, Any]) -> Clipping | None:
    """Read how a scheduler clips predicted images; None where it does not."""
    if config.get("thresholding"):
        limit, quantile = (read_number(config, key) for key in ("sample_max_value", "dynamic_thresholding_ratio"))
        return Clipping(limit, quantile)
    return Clipping(read_number(config, "clip_sample_range", 1.0)) if config.get("clip_sample") else None


def read_number(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """Read a finite number. ValueError for any other value."""
    value = config.get(key, default)
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{key} is {value!r:.100}, expected a finite number")
    return float(value)
