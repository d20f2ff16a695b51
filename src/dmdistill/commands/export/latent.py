"""Export of latent students: the teacher's pipeline with the student's network, or LoRA weights for it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dmdistill.commands.export.component_files import copy_component
from dmdistill.commands.export.guidance import GUIDANCE_MATTERS, NEVER_GUIDED, leave_unguided
from dmdistill.commands.export.precision import cast_network
from dmdistill.commands.export.sampling import Sampling, server_entries, student_sampling
from dmdistill.core.schedules import VP, Flow
from dmdistill.io.atomic import read_json, write_json
from dmdistill.models.diffusers_folder import read_index, resolve_folder
from dmdistill.models.load import display_name
from dmdistill.models.model import Student
from dmdistill.models.python_function import is_python_function
from dmdistill.networks.diffusers_wrappers import DiffusersWrapper
from dmdistill.networks.lora import adapter_weights, merge_lora

__all__ = ["export_pipeline", "usage_code"]


@dataclass(frozen=True)
class PipelineFormat:
    """How a diffusers pipeline class stores and runs a network.

    Attributes:
        component: name of the network's component.
        arguments: of a call, besides the steps.
        flow: whether it samples a flow; else a variance-preserving schedule.
        lora: whether it loads LoRA weights.
        guides: whether its default guidance_scale makes it guide a network.
        even_sigmas: whether it gives a flow's scheduler 1 ... 1/K by itself.
        own_times: whether a call takes timesteps, or sigmas of a flow.
    """

    component: str
    arguments: str = '"an owl on a tree", guidance_scale=0'
    flow: bool = False
    lora: bool = True
    guides: bool = True
    even_sigmas: bool = False
    own_times: bool = True


FORMATS = {
    "StableDiffusionPipeline": PipelineFormat("unet"),
    "StableDiffusionXLPipeline": PipelineFormat("unet"),
    "StableDiffusion3Pipeline": PipelineFormat("transformer", flow=True),
    "FluxPipeline": PipelineFormat(
        "transformer", '"an owl on a tree", guidance_scale={guidance:g}', flow=True, guides=False, even_sigmas=True
    ),
    "DiTPipeline": PipelineFormat("transformer", "class_labels=[0], guidance_scale=1", lora=False, own_times=False),
}


def export_pipeline(student: Student, folder: Path, dtype: torch.dtype) -> str:
    """Write the pipeline, or the LoRA weights where student and pipeline have any. Returns the code that uses it.

    The network is stored in `dtype`, the other components are copied unchanged. ValueError where the teacher's pipeline
    would not generate the student's images.
    """
    network, teacher = student.network, str(student.config.get("teacher"))
    assert isinstance(network, DiffusersWrapper)
    source = resolve_folder(teacher) if not is_python_function(teacher) else Path(teacher)
    pipeline_class = str(read_index(source).get("_class_name", "of an unknown class"))
    check_supported(student, teacher, pipeline_class)
    form = FORMATS[pipeline_class]
    sampling = student_sampling(student, even_sigmas=form.even_sigmas)
    scheduler = sampling.scheduler
    check_arguments(student, sampling, pipeline_class)
    scheduler.save_pretrained(folder / "scheduler")
    arguments = form.arguments.format(guidance=getattr(network, "embedded_guidance", 0))
    call = f"image = pipeline({arguments}, {sampling.arguments}).images[0]"
    note = GUIDANCE_MATTERS if form.guides else ""
    if form.lora and (lora := student.config.get("lora")):
        save_lora(lora, network, pipeline_class, folder, dtype)
        return usage_code(note + call, dtype, **lora_usage(teacher, type(scheduler).__name__))
    model = merge_lora(network).model
    if form.component == "unet":
        leave_unguided(model)
        note = NEVER_GUIDED
    cast_network(model, dtype).save_pretrained(folder / form.component)  # type: ignore[operator]
    entries = {"scheduler": ["diffusers", type(scheduler).__name__], "dmd2_config": server_entries(student)}
    copy_components(source, folder, form.component, entries)
    return usage_code(note + call, dtype)


def check_supported(student: Student, teacher: str, pipeline_class: str) -> None:
    """Raise ValueError for a pipeline class, or a noise schedule, that is not in FORMATS."""
    schedule = student.denoiser.schedule
    if pipeline_class not in FORMATS or not isinstance(schedule, Flow if FORMATS[pipeline_class].flow else VP):
        known = ", ".join(f"{name} ({'Flow' if form.flow else 'VP'})" for name, form in FORMATS.items())
        raise ValueError(
            f"{student.name} cannot be exported: the pipeline of its teacher {teacher!r} is {pipeline_class} with the "
            f"noise schedule {type(schedule).__name__}, expected one of {known}"
        )


def check_arguments(student: Student, sampling: Sampling, pipeline_class: str) -> None:
    """Raise ValueError where a pipeline would need times in its call, and takes none."""
    if not (FORMATS[pipeline_class].own_times or sampling.arguments.startswith("num_inference_steps")):
        times = " ".join(f"{time:g}" for time in student.timesteps)
        raise ValueError(
            f"{student.name} cannot be exported: it is evaluated at the times {times}, and a {pipeline_class} takes "
            "times at equal parts only, in a number of steps that divides those of its noise schedule"
        )


def save_lora(
    lora: dict[str, Any], network: DiffusersWrapper, pipeline_class: str, folder: Path, dtype: torch.dtype
) -> None:
    """Write pytorch_lora_weights.safetensors, with the scale alpha/rank in its B matrices."""
    diffusers: Any = importlib.import_module("diffusers")
    scale = (lora.get("alpha") or lora["rank"]) / lora["rank"]
    layers = {}
    for key, tensor in adapter_weights(network).items():
        name = key.removeprefix("model.").replace(".default.", ".")  # prefixes of our wrapper and of peft
        layers[name] = (tensor * scale if ".lora_B." in key else tensor).to(dtype).contiguous()
    component = FORMATS[pipeline_class].component
    getattr(diffusers, pipeline_class).save_lora_weights(folder, **{f"{component}_lora_layers": layers})


def copy_components(source: Path, folder: Path, network: str, entries: dict[str, Any]) -> None:
    """Copy the teacher's other components and write the index with new entries; missing components stay missing."""
    index = read_json(source / "model_index.json") | entries
    for name in [name for name, value in index.items() if isinstance(value, list)]:
        if name not in (network, "scheduler") and not copy_component(source / name, folder / name):
            index[name] = [None, None]
    write_json(folder / "model_index.json", index)


def lora_usage(teacher: str, scheduler: str) -> dict[str, str]:
    """Return the arguments of `usage_code` for LoRA weights, which the teacher's pipeline loads."""
    name = display_name(teacher)
    return {
        "source": name if name == teacher else f"path/to/the/teacher/{name}",
        "imports": f"DiffusionPipeline, {scheduler}",
        "setup": f"""pipeline.load_lora_weights("{{folder}}")
pipeline.scheduler = {scheduler}.from_pretrained("{{folder}}", subfolder="scheduler")
""",
    }


def usage_code(
    call: str,
    dtype: torch.dtype,
    *,
    source: str = "{folder}",
    options: str = "",
    imports: str = "DiffusionPipeline",
    setup: str = "",
) -> str:
    """Return a card's code that loads a pipeline and generates images; {folder} stands for the exported folder."""
    return f"""import torch
from diffusers import {imports}

pipeline = DiffusionPipeline.from_pretrained(
    "{source}", torch_dtype={dtype}{options}
)
{setup}{call}"""
