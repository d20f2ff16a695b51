"""A model in words: its network, images, noise schedule, parameterisation and solver."""

from __future__ import annotations

from pathlib import Path

from dmdistill.core.schedules import EDM, VP, Flow, NoiseSchedule
from dmdistill.models.cards import describe_distillation
from dmdistill.models.diffusers_folder import read_index
from dmdistill.models.model import Model, Student, Teacher
from dmdistill.networks.diffusers_wrappers import DiffusersWrapper

__all__ = ["describe_model"]

PREDICTIONS = {
    "X0Denoiser": "the clean image (x0)",
    "EpsDenoiser": "the noise (epsilon)",
    "VDenoiser": "v",
    "FlowDenoiser": "the velocity of a flow",
    "EDMDenoiser": "the clean image, with EDM preconditioning",
}


def describe_model(model: Model) -> dict[str, str]:
    """Return the rows of a table about a model, by their names."""
    wrapped = model.network.model if isinstance(model.network, DiffusersWrapper) else model.network
    denoiser = type(model.denoiser).__name__
    rows = {
        "model": f"{model.name}, a {model.config['kind']}",
        "distilled": describe_distillation(settings) if (settings := model.config.get("distilled")) else "",
        "pipeline": pipeline_class(model),
        "network": f"{type(wrapped).__name__}, {model.num_parameters / 1e6:.2f} M parameters",
        **describe_shape(model),
        "conditions": str(model.conditions or ("prompts" if model.text is not None else "none")),
        "noise schedule": describe_schedule(model.denoiser.schedule),
        "network predicts": PREDICTIONS.get(denoiser, denoiser),
    }
    if isinstance(model, Teacher):
        clipped = f", images clipped {model.clipping}" if model.clipping is not None else ""
        rows["solver"] = f"{model.solver}, {model.steps} steps, guidance scale {model.guidance:g}{clipped}"
    if isinstance(model, Student) and model.timesteps:
        times = f"at {' '.join(f'{time:g}' for time in model.timesteps)}"
        rows["steps"] = times if model.evaluations == 1 else f"{times}, transition {model.transition}"
    rows |= {"evaluations per image": str(model.evaluations), "licence": model.licence}
    return {name: text for name, text in rows.items() if text}


def describe_shape(model: Model) -> dict[str, str]:
    """Return the shape of the images, or of the latents and, where known, their images."""
    shape = " x ".join(map(str, model.shape))
    if model.autoencoder is None:
        return {"images": shape}
    _, height, width = model.autoencoder.image_shape(model.shape)
    return {"latents": f"{shape} (images {height} x {width})"}


def describe_schedule(schedule: NoiseSchedule) -> str:
    """Return a noise schedule's kind and parameters."""
    if isinstance(schedule, EDM):
        return f"EDM, sigma from {schedule.sigma_min:g} to {schedule.sigma_max:g}"
    if isinstance(schedule, VP):
        return f"variance preserving (VP), {schedule.bins} timesteps"
    if isinstance(schedule, Flow):
        return f"flow matching, shift {schedule.shift:.4g}"
    return type(schedule).__name__


def pipeline_class(model: Model) -> str:
    """Return the class of the diffusers pipeline that a model or its teacher comes from; "" for other models."""
    source = model.config.get("source") or model.config.get("teacher")
    if not isinstance(source, str) or not isinstance(model.network, DiffusersWrapper):
        return ""
    return str(read_index(Path(source)).get("_class_name", "")) if Path(source).is_dir() else ""
