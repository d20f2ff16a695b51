"""`dmdistill sample`: draw images."""

from __future__ import annotations

import torch
from rich.console import Console
from torch import Tensor

from dmdistill.commands.options import check
from dmdistill.commands.prompts import with_prompt_texts, with_prompts
from dmdistill.commands.run_folder import setup_compute
from dmdistill.commands.sample.config import SampleConfig
from dmdistill.data.image_tensors import save_grid
from dmdistill.io.atomic import check_writable
from dmdistill.models.load import load_model
from dmdistill.models.model import Model

__all__ = ["sample"]


def sample(config: SampleConfig) -> Tensor:
    """Write one picture of config.count images; return them, B C H W in [-1, 1]."""
    check(config)
    if config.count < 1 or config.columns < 1:
        raise ValueError(f"--count {config.count} --columns {config.columns}, expected at least 1")
    if config.out.suffix.lower() != ".png":
        raise ValueError(f"--out {config.out}, expected a file that ends in .png")
    check_writable(config.out)
    model = load_model(config.model)
    if config.labels and (model.conditions is None or model.text is not None):
        told = "is unconditional" if model.text is None else "is told prompts: give --prompt TEXT"
        raise ValueError(f"--labels {config.labels} for {model.name}, which {told}")
    device, precision = setup_compute(config.compute)
    model = told_prompts(model, config, device)
    model.to(device, precision).cast_weights()
    z, index = model.sample_noise(config.count, rng=torch.Generator(device).manual_seed(config.seed))
    if model.conditions is not None:
        wanted = torch.tensor(config.labels or range(len(model.conditions)))
        if config.labels:
            model.conditions.select(wanted)  # a number that cannot be is refused, whether its turn comes or not
        index = wanted[torch.arange(config.count) % len(wanted)]
    size = 64 if model.autoencoder is None else 4
    parts = [slice(start, start + size) for start in range(0, config.count, size)]
    images = torch.cat([model.images(z[p], model.condition(None if index is None else index[p])).cpu() for p in parts])
    save_grid(config.out, images, columns=config.columns)
    Console(highlight=False).print(
        f"{config.count} images, {model.evaluations} evaluation(s) each: {config.out}", markup=False
    )
    return images


def told_prompts(model: Model, config: SampleConfig, device: torch.device) -> Model:
    """The model, told the prompts of --prompt or of --prompts."""
    if config.prompt and config.prompts is not None:
        raise ValueError(f"--prompt and --prompts {config.prompts}: expected one of the two")
    texts = [text.strip() for text in config.prompt]
    if not all(texts):
        raise ValueError("--prompt of nothing, expected words")
    if texts:
        return with_prompt_texts(model, texts, device=device)
    return with_prompts(model, config.prompts, device=device, most=config.count)
