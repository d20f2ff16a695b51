"""`dmdistill sample`: a grid of generated images."""

from __future__ import annotations

from torch import Tensor

from dmdistill.commands.options import check
from dmdistill.commands.prompts import with_prompt_texts, with_prompts
from dmdistill.commands.run_folder import setup_compute
from dmdistill.commands.sample.config import SampleConfig
from dmdistill.commands.solver_options import with_sampling_options
from dmdistill.data.image_tensors import save_grid
from dmdistill.io.atomic import check_writable
from dmdistill.io.console import say
from dmdistill.models.load import load_model
from dmdistill.models.model import Model
from dmdistill.models.requests import read_request

__all__ = ["sample"]


def sample(config: SampleConfig) -> Tensor:
    """Generate images, write them as one grid to `config.out`, and return them: B C H W in [-1, 1].

    ValueError for a setting that the model does not support; OSError where the file cannot be written.
    """
    check(config)
    check_writable(config.out)
    model = with_sampling_options(load_model(config.model, size=config.image_size.size), config.ode)
    check_conditions(config, model)
    device, precision = setup_compute(config.compute)
    if config.prompt:
        model = with_prompt_texts(model, [text.strip() for text in config.prompt], device=device)
    else:
        model = with_prompts(model, config.prompts, device=device, most=config.count)
    model.to(device, precision).cast_weights()
    images = model(labels=config.labels or None, count=config.count, seed=config.seed)
    save_grid(config.out, images, columns=min(config.columns, config.count))
    say(f"{config.count} images, {model.evaluations} evaluation(s) each: {config.out}")
    return images


def check_conditions(config: SampleConfig, model: Model) -> None:
    """Raise ValueError for labels that the model does not know, and for missing prompts."""
    if config.labels:
        labels = f"--labels {' '.join(map(str, config.labels))}"
        if model.text is not None:
            raise ValueError(f"{labels}: {model.name} is a text-to-image model, give --prompt TEXT instead")
        if model.conditions is None:
            raise ValueError(f"{labels}: {model.name} is unconditional, omit it")
        try:
            read_request(model.name, model.conditions, None, prompts=None, labels=config.labels, count=None)
        except ValueError as error:
            raise ValueError(f"{labels}: {error}") from None
    if model.text is not None and model.conditions is None and not config.prompt and config.prompts is None:
        raise ValueError(f"{model.name} is a text-to-image model: give --prompt TEXT, or --prompts FILE for many")
