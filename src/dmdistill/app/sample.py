"""`dmdistill sample`: draw images."""

from __future__ import annotations

import torch
from rich.console import Console
from torch import Tensor

from dmdistill.app.config import Sample
from dmdistill.app.run import start_machine
from dmdistill.data.conditions import Labels
from dmdistill.data.images import save_grid
from dmdistill.teachers.folder import load_model

__all__ = ["sample"]


def sample(config: Sample) -> Tensor:
    """Write one picture of config.count images; return them, B C H W in [-1, 1]."""
    if config.count < 1 or config.columns < 1:
        raise ValueError(f"--count {config.count} --columns {config.columns}, expected at least 1")
    if config.out.suffix.lower() != ".png":
        raise ValueError(f"--out {config.out}, expected a file that ends in .png")
    model = load_model(config.model)
    if config.labels and model.labels is None:
        raise ValueError(f"--labels {config.labels} for {model.name}, which is unconditional")
    device, precision = start_machine(config.machine)
    model.to(device, precision)
    z, cond = model.noise(config.count, rng=torch.Generator(device).manual_seed(config.seed))
    if model.labels is not None:
        wanted = model.labels.labels(torch.tensor(config.labels or range(len(model.labels)), device=device))
        cond = Labels(wanted.one_hot[torch.arange(config.count, device=device) % len(wanted)])
    images = model.images(z, cond)
    save_grid(config.out, images, columns=config.columns)
    Console(highlight=False).print(
        f"{config.count} images, {model.evaluations} evaluation(s) each: {config.out}", markup=False
    )
    return images
