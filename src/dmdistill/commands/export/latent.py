"""Export of latent students: the teacher's pipeline with the student's network, or LoRA weights for it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from dmdistill.commands.export.component_files import copy_component
from dmdistill.commands.export.guidance import NEVER_GUIDED, leave_unguided
from dmdistill.commands.export.pipeline_use import FORMATS, find_pipeline, teacher_usage, usage_code
from dmdistill.commands.export.precision import cast_network
from dmdistill.commands.export.sampling import server_entries
from dmdistill.io.atomic import read_json, write_json
from dmdistill.models.model import Student
from dmdistill.networks.diffusers_wrappers import DiffusersWrapper
from dmdistill.networks.lora import adapter_weights, merge_lora

__all__ = ["export_pipeline"]

LOAD_LORA = """pipeline.load_lora_weights("{folder}")
"""


def export_pipeline(student: Student, folder: Path, dtype: torch.dtype) -> str:
    """Write the pipeline, or the LoRA weights where student and pipeline have any. Returns the code that uses it.

    The network is stored in `dtype`, the other components are copied unchanged. ValueError where the teacher's pipeline
    would not generate the student's images.
    """
    network, use = student.network, find_pipeline(student)
    assert isinstance(network, DiffusersWrapper)
    use.scheduler.save_pretrained(folder / "scheduler")
    if use.form.lora and (lora := student.config.get("lora")):
        save_lora(lora, network, use.pipeline_class, folder, dtype)
        return usage_code(use.note + use.call, dtype, **teacher_usage(use, LOAD_LORA))
    model, note = merge_lora(network).model, use.note
    if use.form.component == "unet":
        leave_unguided(model)
        note = NEVER_GUIDED
    cast_network(model, dtype).save_pretrained(folder / use.form.component)  # type: ignore[operator]
    entries = {"scheduler": ["diffusers", type(use.scheduler).__name__], "dmd2_config": server_entries(student)}
    copy_components(use.source, folder, use.form.component, entries)
    return usage_code(note + use.call, dtype)


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
