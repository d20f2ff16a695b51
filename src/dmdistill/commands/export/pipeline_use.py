"""How a student is used by the pipeline of its teacher: which class, scheduler and call, and the code of its card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dmdistill.commands.export.guidance import GUIDANCE_MATTERS
from dmdistill.commands.export.sampling import Sampling, student_sampling
from dmdistill.core.schedules import VP, Flow
from dmdistill.models.diffusers_folder import read_index, resolve_folder
from dmdistill.models.load import display_name
from dmdistill.models.model import Student
from dmdistill.models.python_function import is_python_function
from dmdistill.models.single_file import is_single_file

__all__ = ["FORMATS", "PipelineUse", "find_pipeline", "scheduler_usage", "teacher_usage", "usage_code"]

OLD_NAME = "# before diffusers 0.40, dtype is called torch_dtype\n"  # and diffusers ignores it, with a warning


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


@dataclass(frozen=True)
class PipelineUse:
    """The pipeline of a student's teacher, and how it takes the student's steps.

    Attributes:
        teacher: its name.
        source: its folder.
        pipeline_class: of diffusers.
        scheduler: of diffusers, for the student's steps.
        call: the line of Python that makes an image.
        note: a comment on guidance for the line before; may be empty.
    """

    teacher: str
    source: Path
    pipeline_class: str
    scheduler: Any
    call: str
    note: str

    @property
    def form(self) -> PipelineFormat:
        """How the class stores and runs a network."""
        return FORMATS[self.pipeline_class]


def find_pipeline(student: Student) -> PipelineUse:
    """Return the pipeline of a student's teacher. ValueError where it would not generate the student's images."""
    teacher = str(student.config.get("teacher", ""))
    if not teacher:
        raise ValueError(
            f"{student.name} names no teacher: what `dmdistill export` wrote is a pipeline of diffusers already"
        )
    source = resolve_folder(teacher) if not is_python_function(teacher) else Path(teacher)
    pipeline_class = str(read_index(source).get("_class_name", "of an unknown class"))
    check_supported(student, teacher, pipeline_class)
    form = FORMATS[pipeline_class]
    sampling = student_sampling(student, even_sigmas=form.even_sigmas)
    check_arguments(student, sampling, pipeline_class)
    arguments = form.arguments.format(guidance=getattr(student.network, "embedded_guidance", 0))
    if size := student.config.get("image_size"):
        arguments += f", height={size[0]}, width={size[1]}"
    call = f"image = pipeline({arguments}, {sampling.arguments}).images[0]"
    note = GUIDANCE_MATTERS if form.guides else ""
    return PipelineUse(teacher, source, pipeline_class, sampling.scheduler, call, note)


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


def teacher_usage(use: PipelineUse, setup: str) -> dict[str, str]:
    """Return the arguments of `usage_code` for weights that the teacher's pipeline loads, by the code in `setup`."""
    name, single = display_name(use.teacher), is_single_file(use.teacher)
    kind = use.pipeline_class if single else "DiffusionPipeline"
    return {
        "source": name if name == use.teacher else f"path/to/the/teacher/{name}",
        "load": f"{kind}.from_single_file" if single else f"{kind}.from_pretrained",
        "imports": f"{kind}, {type(use.scheduler).__name__}",
        "setup": setup + scheduler_usage(use),
    }


def scheduler_usage(use: PipelineUse) -> str:
    """Return the line of code that takes the scheduler from the exported folder."""
    return f"""pipeline.scheduler = {type(use.scheduler).__name__}.from_pretrained("{{folder}}", subfolder="scheduler")
"""


def usage_code(
    call: str,
    dtype: torch.dtype | None,
    *,
    source: str = "{folder}",
    options: str = "",
    load: str = "DiffusionPipeline.from_pretrained",
    imports: str = "DiffusionPipeline",
    setup: str = "",
) -> str:
    """Return a card's code that loads a pipeline and generates images; {folder} stands for the exported folder.

    Args:
        call: the last lines, which generate.
        dtype: that every component is loaded in; None to leave it out, which loads networks in fp32.
        source: what is loaded.
        options: further arguments of the loading.
        load: the function that loads.
        imports: the names to import from diffusers.
        setup: lines between the loading and the call.
    """
    note, argument = (OLD_NAME, f", dtype={dtype}") if dtype is not None else ("", "")
    return f"""import torch
from diffusers import {imports}

{note}pipeline = {load}(
    "{source}"{argument}{options}
)
{setup}{call}"""
