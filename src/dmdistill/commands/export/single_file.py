"""Export of students of Stable Diffusion 1, 2 and XL as one file, with the key names that other interfaces read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmdistill.commands.export.original_names import (
    autoencoder_tensors,
    clip_tensors,
    open_clip_tensors,
    unet_tensors,
)
from dmdistill.commands.export.pipeline_use import (
    PipelineUse,
    find_pipeline,
    scheduler_usage,
    teacher_usage,
    usage_code,
)
from dmdistill.models.load import display_name
from dmdistill.models.model import Student
from dmdistill.models.single_file import STUDENT_MARK, V_MARK, ZERO_SNR_MARK, is_single_file
from dmdistill.networks.diffusers_wrappers import DiffusersWrapper
from dmdistill.networks.lora import adapter_weights, merge_lora

__all__ = ["export_single_file"]

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
ONLY_STABLE_DIFFUSION = "cannot be one file: expected a student of Stable Diffusion 1, 2 or XL, or --format diffusers"
SAMPLERS = {"sde": "lcm, which draws fresh noise after each step", "ode": "ddim or euler, without fresh noise"}


def export_single_file(student: Student, folder: Path, dtype: torch.dtype) -> str:
    """Write a checkpoint, or kohya's LoRA file, and the scheduler into a folder. Returns the code that uses the file.

    All tensors are stored in `dtype`. ValueError for a student whose teacher is none of Stable Diffusion 1, 2 and XL.
    """
    if not isinstance(student.network, DiffusersWrapper) or student.text is None:
        raise ValueError(f"{student.name} {ONLY_STABLE_DIFFUSION}")
    use = find_pipeline(student)
    if use.pipeline_class not in PIPELINES:
        raise ValueError(f"{student.name} is of a {use.pipeline_class} and {ONLY_STABLE_DIFFUSION}")
    use.scheduler.save_pretrained(folder / "scheduler")
    file = re.sub(r"[^\w.-]+", "-", student.name) + ".safetensors"
    if lora := student.config.get("lora"):
        save(lora_tensors(student.network, lora.get("alpha") or lora["rank"]), folder / file, dtype)
        load = f"""pipeline.load_lora_weights("{{folder}}", weight_name="{file}")\n"""
        usage = teacher_usage(use, load)
    else:
        save(checkpoint_tensors(student, use), folder / file, dtype)
        usage = checkpoint_usage(use, file)
    return usage_code(other_interfaces(student, use) + use.note + use.call, dtype, **usage)


def checkpoint_tensors(student: Student, use: PipelineUse) -> dict[str, Tensor]:
    """Return the tensors of U-Net, autoencoder and text encoders, by the original names."""
    unet: Any = merge_lora(student.network).model
    autoencoder: Any = student.autoencoder
    assert student.text is not None
    encoders: Any = student.text.load()  # type: ignore[attr-defined]
    parts = {
        "model.diffusion_model.": unet_tensors(unet.state_dict(), unet.config),
        "first_stage_model.": autoencoder_tensors(
            autoencoder.model.state_dict(), len(autoencoder.model.config.block_out_channels)
        ),
        **text_tensors(encoders, use.pipeline_class),
        "": {name: torch.zeros(0) for name in prediction_marks(use)},
    }
    return {start + name: tensor for start, tensors in parts.items() for name, tensor in tensors.items()}


def text_tensors(pipeline: Any, pipeline_class: str) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of the text encoders by the start of their names: OpenAI's CLIP, or OpenCLIP with its own."""
    first = pipeline.text_encoder
    if pipeline_class == "StableDiffusionXLPipeline":
        return {
            "conditioner.embedders.0.transformer.": clip_tensors(first.state_dict()),
            "conditioner.embedders.1.model.": open_clip_tensors(pipeline.text_encoder_2.state_dict()),
        }
    if first.config.hidden_act == "quick_gelu":  # of OpenAI's CLIP, in Stable Diffusion 1
        return {"cond_stage_model.transformer.": clip_tensors(first.state_dict())}
    return {"cond_stage_model.model.": open_clip_tensors(first.state_dict())}


def prediction_marks(use: PipelineUse) -> list[str]:
    """Return the names of empty tensors by which ComfyUI knows that the network predicts v."""
    config = use.scheduler.config
    if config.prediction_type != "v_prediction":
        return []
    return [V_MARK, ZERO_SNR_MARK] if config.get("rescale_betas_zero_snr") else [V_MARK]


def lora_tensors(network: nn.Module, alpha: float) -> dict[str, Tensor]:
    """Return the adapters of a U-Net by kohya's names: A is lora_down, B lora_up, and each layer has its alpha."""
    tensors = {}
    for key, tensor in adapter_weights(network).items():
        layer, _, matrix = key.removeprefix("model.").partition(".lora_")
        start = f"lora_unet_{layer.replace('.', '_')}"
        tensors[f"{start}.lora_{'down' if matrix.startswith('A') else 'up'}.weight"] = tensor
        tensors[f"{start}.alpha"] = torch.tensor(float(alpha))
    return tensors


def save(tensors: dict[str, Tensor], file: Path, dtype: torch.dtype) -> None:
    """Write tensors in a precision, with a note in the metadata that they are a student's."""
    from safetensors.torch import save_file

    plain = {name: tensor.detach().to(dtype).contiguous() for name, tensor in tensors.items()}
    save_file(plain, file, metadata={"format": "pt", STUDENT_MARK: "student"})


def checkpoint_usage(use: PipelineUse, file: str) -> dict[str, str]:
    """Return the arguments of `usage_code` for a checkpoint, which takes configs and tokenizer from the teacher."""
    name = display_name(use.teacher)
    configs = Path(name).stem if is_single_file(use.teacher) else name
    return {
        "source": f"path/to/{file}",
        "options": f', config="{name if name == use.teacher else f"path/to/the/teacher/{configs}"}"',
        "load": f"{use.pipeline_class}.from_single_file",
        "imports": f"{use.pipeline_class}, {type(use.scheduler).__name__}",
        "setup": scheduler_usage(use),
    }


def other_interfaces(student: Student, use: PipelineUse) -> str:
    """Return a comment on the settings of other interfaces, such as ComfyUI."""
    times = " ".join(f"{time:g}" for time in student.generator.timesteps)
    sampler = SAMPLERS[student.transition if student.evaluations > 1 else "ode"]
    size = student.config.get("image_size")
    pixels = f"; images {size[1]} wide and {size[0]} high" if size else ""
    return f"""# in other interfaces: CFG scale 1 (no guidance), steps: {student.evaluations}, at the timesteps {times}
# sampler {sampler}; the network predicts: {use.scheduler.config.prediction_type}{pixels}
"""
