"""Students of latents for diffusers: the teacher's pipeline with the student's network, or adapters to it."""

from __future__ import annotations

import importlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dmdistill.core.denoisers import FlowDenoiser
from dmdistill.core.schedules import VP, Flow
from dmdistill.io.atomic import read_json, write_json
from dmdistill.models.diffusers_pipeline import read_index, read_scheduler_config, resolve_folder
from dmdistill.models.load import display_name
from dmdistill.models.model import Student
from dmdistill.models.python_function import is_python_function
from dmdistill.networks.diffusers_wrappers import DiffusersWrapper
from dmdistill.networks.lora import adapter_weights, merge_lora

__all__ = ["one_step_scheduler", "write_pipeline"]


@dataclass(frozen=True)
class Kind:
    """A pipeline of diffusers.

    Attributes:
        part: where its network is.
        told: what a call says besides the number of steps.
        flow: whether it samples a flow; else a variance-preserving path.
        lora: whether it takes adapters.
    """

    part: str
    told: str = '"an owl on a tree", guidance_scale=0'
    flow: bool = False
    lora: bool = True


KINDS = {
    "StableDiffusionPipeline": Kind("unet"),
    "StableDiffusionXLPipeline": Kind("unet"),
    "StableDiffusion3Pipeline": Kind("transformer", flow=True),
    "FluxPipeline": Kind("transformer", '"an owl on a tree", guidance_scale={guidance:g}', flow=True),
    "DiTPipeline": Kind("transformer", "class_labels=[0], guidance_scale=1", lora=False),
}
SUFFIXES = (".json", ".txt", ".model", ".safetensors")  # what a pipeline's parts are made of, and no code
PLAIN = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False, "thresholding": False}
BENT = ("stochastic_sampling", "invert_sigmas", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
PLAIN_FLOW = {"shift_terminal": None, **dict.fromkeys(BENT, False)}  # a grid of one time is not to be bent


def write_pipeline(student: Student, folder: Path) -> str:
    """Fill an empty folder; answer with the code to use it. ValueError where diffusers' pipeline would draw otherwise.

    Adapters stay adapters, where the pipeline takes them.
    """
    network = student.network
    assert isinstance(network, DiffusersWrapper)
    teacher = str(student.config.get("teacher"))
    source = resolve_folder(teacher) if not is_python_function(teacher) else Path(teacher)
    name, path = str(read_index(source).get("_class_name", "of no known kind")), student.denoiser.schedule
    if name not in KINDS or not isinstance(path, Flow if KINDS[name].flow else VP):
        known = ", ".join(f"{kind} ({'Flow' if KINDS[kind].flow else 'VP'})" for kind in KINDS)
        raise ValueError(
            f"{student.name} cannot be exported: the pipeline of its teacher {teacher!r} is {name}, on the path "
            f"{type(path).__name__}, expected one of {known}"
        )
    kind, scheduler = KINDS[name], one_step_scheduler(student)
    scheduler.save_pretrained(folder / "scheduler")
    told = kind.told.format(guidance=getattr(network, "embedded_guidance", 0))
    draw = f"image = pipeline({told}, num_inference_steps=1).images[0]"
    if student.config.get("lora") and kind.lora:
        write_adapters(student, network, name, folder)
        return f"""from diffusers import {type(scheduler).__name__}

pipeline = DiffusionPipeline.from_pretrained("{display_name(teacher)}")
pipeline.load_lora_weights("{{folder}}")
pipeline.scheduler = {type(scheduler).__name__}.from_pretrained("{{folder}}", subfolder="scheduler")
{draw}"""
    merge_lora(network).model.save_pretrained(folder / kind.part)
    copy_others(source, folder, kind.part, type(scheduler).__name__)
    return f'pipeline = DiffusionPipeline.from_pretrained("{{folder}}")\n{draw}'


def one_step_scheduler(student: Student) -> Any:
    """DDIM, or Euler for a flow, so that one step from the last time is exactly mu of pure noise."""
    diffusers: Any = importlib.import_module("diffusers")  # its names load on first use, unknown to types
    config = read_scheduler_config(resolve_folder(str(student.config.get("teacher"))))
    if isinstance(student.denoiser, FlowDenoiser):
        return diffusers.FlowMatchEulerDiscreteScheduler.from_config({**config, **PLAIN_FLOW})
    return diffusers.DDIMScheduler.from_config({**config, **PLAIN})


def write_adapters(student: Student, network: DiffusersWrapper, name: str, folder: Path) -> None:
    """pytorch_lora_weights.safetensors, as the pipeline's load_lora_weights reads it: at the scale 1."""
    diffusers: Any = importlib.import_module("diffusers")
    lora = student.config["lora"]
    scale = (lora.get("alpha") or lora["rank"]) / lora["rank"]
    layers = {plain_name(key): scaled(key, tensor, scale) for key, tensor in adapter_weights(network).items()}
    getattr(diffusers, name).save_lora_weights(folder, **{f"{KINDS[name].part}_lora_layers": layers})


def plain_name(key: str) -> str:
    """Without our adapter's `model` and peft's `default`."""
    return key.removeprefix("model.").replace(".default.", ".")


def scaled(key: str, tensor: Tensor, scale: float) -> Tensor:
    return (tensor * scale if ".lora_B." in key else tensor).contiguous()


def copy_others(source: Path, folder: Path, part: str, scheduler: str) -> None:
    """The teacher's other parts, byte by byte, and the index of all. A part that is not there stays so."""
    index = read_json(source / "model_index.json")
    index["scheduler"] = ["diffusers", scheduler]
    for name in [name for name, value in index.items() if isinstance(value, list)]:
        if name in (part, "scheduler"):
            continue
        files = [file for file in sorted((source / name).glob("*")) if file.suffix in SUFFIXES and not variant(file)]
        if not files:
            index[name] = [None, None]
        for file in files:
            (folder / name).mkdir(exist_ok=True)
            shutil.copyfile(file, folder / name / file.name)
    write_json(folder / "model_index.json", index)


def variant(file: Path) -> bool:
    """Whether it is other precision's or other average's weights beside the usual ones."""
    return file.suffix == ".safetensors" and any(f".{kind}" in file.name for kind in ("fp16", "bf16", "non_ema"))
