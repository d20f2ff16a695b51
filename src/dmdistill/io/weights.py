"""Weights of a network in safetensors files, and the folders of bundled models."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn

from dmdistill.io.atomic import read_safetensors, write_safetensors
from dmdistill.networks.lora import adapter_weights

__all__ = ["bundled_models", "check_weights", "copy_weights", "load_weights", "save_weights"]

MODEL_FILES = ("config.json", "model_index.json")  # of a folder of ours, and of a pipeline of diffusers


def bundled_models() -> dict[str, Path]:
    """Return the folders, by name, of the models inside the package and of those in $DMDISTILL_MODELS."""
    roots = [Path(str(resources.files("dmdistill"))) / "bundled"]
    if own := os.environ.get("DMDISTILL_MODELS"):
        roots.append(Path(own).expanduser())
    folders = [folder for root in roots if root.is_dir() for folder in sorted(root.iterdir())]
    return {one.name: one for one in folders if any((one / file).is_file() for file in MODEL_FILES)}


def save_weights(file: Path, network: nn.Module, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a network's weights, or only its adapters where it has any, to safetensors; floats in `dtype`."""
    state = saved_state(network)
    write_safetensors(
        file, {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    )


def saved_state(network: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a network that a file holds: its adapters where it has any, else its state dict."""
    return adapter_weights(network) or network.state_dict()


def load_weights(file: Path, network: nn.Module) -> None:
    """Load weights of any precision into a network. ValueError where the file is missing, damaged or another's."""
    weights = read_safetensors(file)
    check_weights(weights, network, file)
    copy_weights(weights, network)


def check_weights(weights: dict[str, Tensor], network: nn.Module, file: Path) -> None:
    """Raise ValueError, naming the file they came from, where the weights' names or shapes are not the network's."""
    state = saved_state(network)
    if odd := sorted(weights.keys() ^ state.keys()):
        raise ValueError(f"{file} is not of this network: {len(odd)} names differ, first {odd[0]!r}")
    for name, tensor in weights.items():
        if tensor.shape != state[name].shape:
            raise ValueError(f"{file}: {name} is {tuple(tensor.shape)}, the network's is {tuple(state[name].shape)}")


def copy_weights(weights: dict[str, Tensor], network: nn.Module) -> None:
    """Copy weights of any precision into a network, which they were checked for and which keeps its own precision.

    What is on the meta device stays there.
    """
    state = {name: tensor for name, tensor in saved_state(network).items() if not tensor.is_meta}
    network.load_state_dict({name: weights[name].to(own.dtype) for name, own in state.items()}, strict=False)
