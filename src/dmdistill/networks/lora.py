"""LoRA (Hu et al. 2021): trainable low-rank updates of a frozen network's weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dmdistill.networks.copying import copy_sharing_frozen

__all__ = ["adapter_weights", "add_lora", "merge_lora"]

Network = TypeVar("Network", bound=nn.Module)

TARGETS = (  # ends of the names of layers with LoRA; the first group that a network has any of applies
    ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),  # diffusers
    ("qkv", "proj", "affine", "conv0", "conv1"),  # the EDM family
)


def add_lora(network: Network, *, rank: int, alpha: float | None = None) -> Network:
    """Return a copy in which W x becomes W x + alpha/rank B A x: A and B are trainable, in fp32, and W is frozen.

    A is drawn from torch's global generator and B is zero, so that the copy starts as `network`.

    Args:
        network: whose frozen weights the copy shares.
        rank: rows of A, columns of B.
        alpha: of the scale; None for the rank, with which the scale is 1.

    Raises:
        ValueError: rank is out of range, or the network has no layer for LoRA.
    """
    if rank < 1:
        raise ValueError(f"LoRA of rank {rank}, expected at least 1")
    from peft import LoraConfig, inject_adapter_in_model

    names = find_target_layers(network)
    if rank > (widest := max(max(network.get_submodule(name).weight.shape[:2]) for name in names)):  # type: ignore[arg-type, union-attr]
        raise ValueError(f"LoRA of rank {rank}, expected at most {widest}, the channels of the widest layer")
    adapted = copy_sharing_frozen(network)
    config = LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=names)  # pyright: ignore[reportArgumentType]
    with memory_free_weights([adapted.get_submodule(name) for name in names]):  # peft puts A and B where W is
        inject_adapter_in_model(config, adapted)
    del adapted.peft_config  # which only peft's own model classes need
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad_(is_adapter(name))
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


@contextmanager
def memory_free_weights(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Replace weights on the meta device, within the block, by zeros on the CPU that are one number in memory."""
    weights: list[tuple[Any, Tensor]] = [(layer, layer.weight) for layer in layers if layer.weight.is_meta]  # type: ignore[misc]
    for layer, weight in weights:
        layer.weight = nn.Parameter(torch.zeros((), dtype=weight.dtype).expand(weight.shape), requires_grad=False)
    try:
        yield
    finally:
        for layer, weight in weights:
            layer.weight = weight


def find_target_layers(network: nn.Module) -> list[str]:
    """Return the names of the layers for LoRA."""
    candidates = [name for name, module in network.named_modules() if type(module) in (nn.Linear, nn.Conv2d)]
    for ends in TARGETS:
        if names := [name for name in candidates if f".{name}".endswith(tuple(f".{end}" for end in ends))]:
            return names
    wanted = "; or ".join(", ".join(ends) for ends in TARGETS)
    raise ValueError(
        f"{type(network).__name__} has no linear layer or convolution for LoRA, of a name that ends in {wanted}"
    )


def is_adapter(name: str) -> bool:
    """Return whether a parameter is an A or a B."""
    return ".lora_" in name


def adapter_weights(network: nn.Module) -> dict[str, Tensor]:
    """Return the A and B of a network by name; an empty dict for a network without LoRA."""
    return {name: tensor for name, tensor in network.state_dict().items() if is_adapter(name)}


def merge_lora(network: Network) -> Network:
    """Return a copy with plain layers, W + alpha/rank B A, which shares nothing with `network`."""
    merged = copy.deepcopy(network)
    for name, layer in list(merged.named_modules()):
        if hasattr(layer, "lora_A"):
            layer.merge()  # pyright: ignore[reportCallIssue]
            merged.set_submodule(name, layer.base_layer)  # pyright: ignore[reportArgumentType]
    return merged
