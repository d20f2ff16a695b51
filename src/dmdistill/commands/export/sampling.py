"""How diffusers takes a student's steps: a scheduler of its own, and the arguments of a pipeline's call."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from dmdistill.core.generators import Generator
from dmdistill.core.schedules import Flow
from dmdistill.models.diffusers_folder import read_scheduler_config, resolve_folder
from dmdistill.models.model import Student

__all__ = ["Sampling", "ddim_scheduler", "server_entries", "student_sampling"]

NO_CLIPPING = {"clip_sample": False, "thresholding": False}
NO_OTHER_GRID = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
DDIM = {"timestep_spacing": "trailing", "set_alpha_to_one": True, **NO_CLIPPING}
LCM = {"timestep_scaling": 1e4, **NO_CLIPPING}  # LCM mixes (0.5 / (scaling t))^2 of the input into the image
DPM = {"solver_order": 1, "algorithm_type": "dpmsolver++", "final_sigmas_type": "zero", "use_lu_lambdas": False}
DPM |= {**NO_CLIPPING, **NO_OTHER_GRID}
FLOW = {"shift_terminal": None, "stochastic_sampling": False, "invert_sigmas": False, **NO_OTHER_GRID}
ROUNDING = 1e-6  # of a flow's times, which are stored in fp32


@dataclass(frozen=True)
class Sampling:
    """What takes a student's steps in diffusers.

    Attributes:
        scheduler: of diffusers.
        arguments: of a pipeline's call: num_inference_steps where the scheduler holds the times itself, else the
            timesteps, or a flow's sigmas.
    """

    scheduler: Any
    arguments: str


def student_sampling(student: Student, *, even_sigmas: bool = False) -> Sampling:
    """Choose the scheduler that takes a student's steps exactly.

    Args:
        student: whose teacher's folder holds a scheduler.
        even_sigmas: whether the pipeline gives a flow's scheduler 1 ... 1/K by itself, as Flux's does.

    Raises:
        ValueError: no scheduler of diffusers takes these steps.
    """
    config = read_scheduler_config(resolve_folder(str(student.config.get("teacher"))))
    if isinstance(student.denoiser.schedule, Flow):
        return flow_sampling(student.generator, student.denoiser.schedule, config, even_sigmas=even_sigmas)
    return vp_sampling(student, config)


def flow_sampling(generator: Generator, schedule: Flow, config: dict[str, Any], *, even_sigmas: bool) -> Sampling:
    """Choose Euler's method, which can make fresh noise after each step."""
    times, steps = generator.timesteps, len(generator.timesteps)
    options, arguments = dict[str, Any](FLOW), f"num_inference_steps={steps}"
    if times != (schedule.t_max,):
        even = (
            even_sigmas
            and max(abs(a - b) for a, b in zip(times, schedule.student_times(steps), strict=True)) < ROUNDING
        )
        options |= {"use_dynamic_shifting": False, "shift": schedule.shift if even else 1.0}
        options |= {"stochastic_sampling": steps > 1 and generator.transition == "sde"}
        arguments = arguments if even else f"sigmas={format_times(times)}"
    return Sampling(diffusers().FlowMatchEulerDiscreteScheduler.from_config({**config, **options}), arguments)


def vp_sampling(student: Student, config: dict[str, Any]) -> Sampling:
    """Choose DDIM where it holds the times; else LCM for fresh noise, or DPM-Solver of order 1, DDIM at any times."""
    generator = student.generator
    if (scheduler := ddim_scheduler(generator, config)) is not None:
        return Sampling(scheduler, f"num_inference_steps={len(generator.timesteps)}")
    check_timesteps(student)
    if len(generator.timesteps) == 1 or generator.transition == "sde":
        return lcm_sampling(generator, config)
    scheduler = diffusers().DPMSolverMultistepScheduler.from_config({**config, **DPM})
    return Sampling(scheduler, f"timesteps={format_times(generator.timesteps)}")


def check_timesteps(student: Student) -> None:
    """Raise ValueError for times that DDIM does not hold and no other scheduler takes."""
    generator = student.generator
    schedule, times = student.denoiser.schedule, generator.timesteps
    if odd := [time for time in times if time != round(time) or time < 1]:
        raise ValueError(f"{student.name} is evaluated at the time {odd[0]:g}, diffusers takes whole ones from 1")
    alpha = schedule.alpha(torch.tensor([times[0]], dtype=torch.float64))
    if len(times) > 1 and generator.transition == "ode" and alpha == 0:
        raise ValueError(
            f"{student.name} starts where nothing of the image is left, and of the schedulers of diffusers only DDIM's "
            "ode steps are exact there: expected times at equal parts, and a number of steps that divides "
            f"{schedule.bins}"
        )


def ddim_scheduler(generator: Generator, config: dict[str, Any]) -> Any | None:
    """Build DDIM where its steps are the generator's: at equal parts from t_max, without fresh noise; else None."""
    times, bins = generator.timesteps, generator.denoiser.schedule.bins
    steps = len(times)
    if (steps > 1 and generator.transition == "sde") or bins % steps:
        return None
    scheduler = diffusers().DDIMScheduler.from_config({**config, **DDIM})
    scheduler.set_timesteps(steps)
    return scheduler if scheduler.timesteps.tolist() == list(times) else None


def lcm_sampling(generator: Generator, config: dict[str, Any]) -> Sampling:
    """Choose LCM's scheduler, with the number of original steps whose grid is the student's where there is one."""
    times, bins = list(generator.timesteps), generator.denoiser.schedule.bins
    scheduler = diffusers().LCMScheduler.from_config({**config, **LCM})
    for original in range(len(times), bins + 1):
        scheduler.set_timesteps(len(times), original_inference_steps=original)
        if scheduler.timesteps.tolist() == times:
            options = {**config, **LCM, "original_inference_steps": original}
            return Sampling(diffusers().LCMScheduler.from_config(options), f"num_inference_steps={len(times)}")
    return Sampling(scheduler, f"timesteps={format_times(times)}")


def server_entries(student: Student) -> dict[str, Any]:
    """Return what servers read of a few-step student in model_index.json: vLLM-Omni's block dmd2_config.

    Its timesteps run from 0 to the schedule's bins, 1000 mostly, for a flow as well.
    """
    generator, schedule = student.generator, student.denoiser.schedule
    scale = schedule.bins if isinstance(schedule, Flow) else 1
    times = [round(scale * time, 4) for time in generator.timesteps]
    return {
        "num_inference_steps": len(times),
        "denoising_timesteps": [int(time) if time == int(time) else time for time in times],
        "solver": generator.transition,
        "guidance_scale": getattr(student.network, "embedded_guidance", 0) or 1.0,
    }


def format_times(times: Iterable[float]) -> str:
    """Return times as a list in code, whole ones as integers."""
    return f"[{', '.join(f'{time:.9g}' for time in times)}]"


def diffusers() -> Any:
    """Import diffusers, whose types do not know its schedulers."""
    return importlib.import_module("diffusers")
