"""Weights of a network in safetensors files, and the folders of bundled models."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn

from dmdistill.io.atomic import read_safetensors, write_safetensors
from dmdistill.networks.lora import adapter_weights

__all__ = ["bundled", "check_weights", "fill", "load_weights", "save_weights", "stored"]


def bundled() -> dict[str, Path]:
    """The models inside the package, and those of the folder $DMDISTILL_MODELS, by name."""
    roots = [Path(str(resources.files("dmdistill"))) / "bundled"]
    if own := os.environ.get("DMDISTILL_MODELS"):
        roots.append(Path(own).expanduser())
    return {file.parent.name: file.parent for root in roots for file in sorted(root.glob("*/config.json"))}


def save_weights(file: Path, network: nn.Module, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a network's weights, or its adapters alone where it has any, floats in `dtype`."""
    state = stored(network)
    write_safetensors(
        file, {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    )


def stored(network: nn.Module) -> dict[str, Tensor]:
    """What a file holds of a network: its adapters where it has any, else all its weights."""
    return adapter_weights(network) or network.state_dict()


def load_weights(file: Path, network: nn.Module) -> None:
    """Fill a network from a safetensors file. ValueError where the file is missing, damaged or another network's."""
    weights = read_safetensors(file)
    check_weights(weights, network, file)
    fill(network, weights)


def check_weights(weights: dict[str, Tensor], network: nn.Module, file: Path) -> None:
    """ValueError, naming the file, where names or shapes are not the network's."""
    wanted = stored(network)
    if odd := sorted(weights.keys() ^ wanted.keys()):
        raise ValueError(f"{file} is not of this network: {len(odd)} names differ, first {odd[0]!r}")
    for name, tensor in weights.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(f"{file}: {name} is {tuple(tensor.shape)}, the network's is {tuple(wanted[name].shape)}")


def fill(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load weights of any precision into the network's."""
    wanted = stored(network)
    network.load_state_dict({name: tensor.to(wanted[name].dtype) for name, tensor in weights.items()}, strict=False)
