"""`dmdistill convert`: a teacher from elsewhere becomes a model's folder."""

from __future__ import annotations

import torch
from rich.console import Console

from dmdistill.commands.convert.config import ConvertConfig
from dmdistill.io.folders import check_new_folder
from dmdistill.models.cards import teacher_card
from dmdistill.models.folder import save_model
from dmdistill.models.load import load_teacher

__all__ = ["convert"]


def convert(config: ConvertConfig) -> None:
    """Write config.out/{model.safetensors, config.json, README.md}."""
    check_new_folder(config.out, "choose another folder")
    teacher = load_teacher(config.model)
    if "network" not in teacher.config:
        raise ValueError(f"{config.model} has a network of another package: it is used as it is")
    dtype = {"fp32": torch.float32, "fp16": torch.float16}[config.store]
    card = teacher_card(teacher, {"converted from": config.model, "store": config.store})
    save_model(config.out, teacher, card=card, dtype=dtype)
    size = (config.out / "model.safetensors").stat().st_size
    Console(highlight=False).print(
        f"{teacher.name}: {size / 1e6:.1f} MB of weights in {config.store}, config.json and README.md in {config.out}",
        markup=False,
        soft_wrap=True,
    )
