"""`dmdistill convert`: a published checkpoint as a model folder."""

from __future__ import annotations

from rich.console import Console

from dmdistill.commands.convert.config import ConvertConfig
from dmdistill.commands.run_folder import DTYPES
from dmdistill.io.folders import new_folder
from dmdistill.models.cards import teacher_card
from dmdistill.models.folder import save_model
from dmdistill.models.load import load_teacher

__all__ = ["convert"]


def convert(config: ConvertConfig) -> None:
    """Write model.safetensors, config.json and README.md into `config.out`, all of them or none.

    ValueError for a model of another package's network, and for a folder that already exists.
    """
    with new_folder(config.out) as folder:
        teacher = load_teacher(config.model)
        if "network" not in teacher.config:
            raise ValueError(f"{config.model} has a network of another package, which needs no conversion")
        card = teacher_card(teacher, {"converted from": config.model, "save_dtype": config.save_dtype})
        save_model(folder, teacher, card=card, dtype=DTYPES[config.save_dtype])
    size = (config.out / "model.safetensors").stat().st_size
    Console(highlight=False).print(
        f"{teacher.name}: {size / 1e6:.1f} MB of weights in {config.save_dtype}, with config.json and README.md, in "
        f"{config.out}",
        markup=False,
        soft_wrap=True,
    )
