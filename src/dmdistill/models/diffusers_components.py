"""Components of diffusers' pipelines: a network or an autoencoder from its folder, checked before memory is taken."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dmdistill.distributed.stored_weights import StoredWeights, parameters_on_meta
from dmdistill.io.errors import first_line, import_optional
from dmdistill.models.autoencoder import VAE
from dmdistill.models.config_json import check_memory
from dmdistill.models.diffusers_folder import (
    read_component_config,
    read_index,
    resolve_folder,
    weights_files,
    weights_variant,
)
from dmdistill.models.quiet import quiet
from dmdistill.networks.parameter_budget import build_on_meta

__all__ = [
    "build_sketch",
    "count_weights",
    "load_autoencoder",
    "load_component",
    "load_lazily",
    "load_pipeline_autoencoder",
]

AUTOENCODERS = ("AutoencoderKL", "AutoencoderTiny", "VQModel")


def load_component(folder: Path, class_name: str) -> Any:
    """Load one component in fp32, from safetensors only; `build_sketch` has checked its config.

    Args:
        folder: of the component.
        class_name: of diffusers.

    Raises:
        ValueError: naming the folder, for weights that are missing, damaged or of another network, and for configs that
            the class does not take or that need more memory than there is.
    """
    variant = weights_variant(folder)
    kind = getattr(import_optional("diffusers", str(folder), extra="diffusers"), class_name)
    try:
        with quiet("diffusers"):
            model, report = kind.from_pretrained(
                folder,
                variant=variant,
                use_safetensors=True,
                torch_dtype=torch.float32,
                low_cpu_mem_usage=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:  # whatever the library and its dependencies raise
        raise ValueError(f"{folder} cannot be loaded as a {class_name}: {first_line(error)}") from None
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{folder} lacks {len(missing)} weights of a {class_name}, first {missing[0]!r}")
    model.register_to_config(_name_or_path="")  # else exports would name a folder of this machine
    if (stored := find_weights(folder, model)) is not None:
        stored.attach(model)
    return model


def load_lazily(folder: Path, class_name: str) -> Any:
    """Build a component whose weights stay in their files, for a network that is going to be sharded.

    Returns None where the files hold other names or shapes than the class has, which only the library can convert.
    """
    kind: Any = getattr(import_optional("diffusers", str(folder), extra="diffusers"), class_name)
    with quiet("diffusers"), parameters_on_meta():
        model = kind.from_config(read_component_config(folder))
    if (stored := find_weights(folder, model)) is None:
        return None
    stored.attach(model)
    with torch.no_grad(), stored.open() as read:
        for name, tensor in model.state_dict().items():
            if not tensor.is_meta:  # a buffer
                tensor.copy_(read(name))
    return model


def find_weights(folder: Path, model: nn.Module) -> StoredWeights | None:
    """Find the files of a component's weights; None where their names or shapes are not those of the component."""
    from safetensors import safe_open

    shapes, files = {}, {}
    for file in weights_files(folder):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118
                shapes[name], files[name] = weights.get_slice(name).get_shape(), file
    own = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    return StoredWeights(files) if shapes == own else None


def build_sketch(folder: Path, class_name: str) -> Any:
    """Build a component on the meta device, from its config. ValueError where that fails or outgrows its weights."""
    weights_variant(folder)
    config, (tensors, elements) = read_component_config(folder), count_weights(folder)
    kind: Any = getattr(import_optional("diffusers", str(folder), extra="diffusers"), class_name, None)
    try:
        with quiet("diffusers"), build_on_meta(tensors):
            sketch = kind.from_config(config)
        needed = sum(tensor.numel() for tensor in [*sketch.parameters(), *sketch.buffers()])
        check_memory(max(needed, elements))
        check_paddings(sketch)
    except Exception as error:  # whatever the library raises
        raise ValueError(f"{folder / 'config.json'} is no config of a {class_name}: {first_line(error)}") from None
    return sketch


def check_paddings(network: nn.Module) -> None:
    """Raise ValueError for a convolution's padding of other than two numbers, which the meta device lets pass."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and len(module.padding) != 2:
            raise ValueError(f"{name} is padded by {module.padding!r:.50}, expected one number or two")


def count_weights(folder: Path) -> tuple[int, int]:
    """Count the tensors in a folder's safetensors, and their elements, from the headers of the files."""
    from safetensors import SafetensorError, safe_open

    tensors = elements = 0
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as weights:
                shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
        except (OSError, SafetensorError, ValueError) as error:
            raise ValueError(f"{file} is cut short, damaged or no safetensors file: {first_line(error)}") from None
        tensors, elements = tensors + len(shapes), elements + sum(map(prod, shapes))
    return tensors, elements


def load_autoencoder(source: str) -> VAE:
    """Load an autoencoder by the name of its folder or its hub id."""
    return load_autoencoder_folder(resolve_folder(source))


def load_autoencoder_folder(folder: Path) -> VAE:
    """Load an autoencoder from its folder. ValueError for a class that is not in AUTOENCODERS."""
    class_name = read_component_config(folder).get("_class_name", "of an unknown class")
    if class_name not in AUTOENCODERS:
        raise ValueError(f"{folder} is {class_name!r:.200}, expected one of {', '.join(AUTOENCODERS)}")
    build_sketch(folder, class_name)
    model = load_component(folder, class_name)
    if model.config.get("latents_mean") is not None:
        raise ValueError(f"{folder} has latents_mean: latents that are scaled by channel are not supported")
    scale, shift = model.config.get("scaling_factor") or 1.0, model.config.get("shift_factor") or 0.0
    if not all(isinstance(value, int | float) for value in (scale, shift)):
        raise ValueError(f"{folder}: scaling_factor {scale!r} and shift_factor {shift!r} are not both numbers")
    autoencoder = VAE(model, scale=scale, shift=shift)
    check_decoding(autoencoder, folder)
    return autoencoder


@torch.no_grad()
def check_decoding(autoencoder: VAE, folder: Path) -> None:
    """Raise ValueError where an autoencoder cannot decode the smallest latents: its config contradicts itself."""
    model: Any = autoencoder.model
    try:
        autoencoder.decode(torch.zeros(1, model.config.latent_channels, 2, 2))
    except Exception as error:  # whatever the library raises
        raise ValueError(f"{folder / 'config.json'}: nothing can be decoded: {first_line(error)}") from None


def load_pipeline_autoencoder(folder: Path) -> VAE | None:
    """Load the autoencoder of a pipeline of latents; None for a pipeline of pixels. ValueError where it is missing."""
    for name in ("vae", "vqvae"):
        if (folder / name / "config.json").is_file():
            return load_autoencoder_folder(folder / name)
        if name in read_index(folder):
            raise ValueError(f"{folder} holds no {name}/config.json, which its model_index.json names")
    return None
