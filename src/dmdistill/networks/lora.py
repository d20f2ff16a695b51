"""LoRA (Hu et al. 2021): small trained matrices beside the weights of a frozen network."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import Tensor, nn

from dmdistill.networks.copying import copy_sharing_frozen

__all__ = ["adapter_weights", "add_lora", "merge_lora"]

Network = TypeVar("Network", bound=nn.Module)

TARGETS = (  # names of layers by their end; the first group that finds any is taken
    ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),  # diffusers
    ("qkv", "proj", "affine", "conv0", "conv1"),  # the EDM family
)


def add_lora(network: Network, *, rank: int, alpha: float | None = None) -> Network:
    """A copy in which W x becomes W x + alpha/rank B A x: A and B are trained, in fp32, and W is frozen.

    Weights that are frozen already are shared with `network`. A comes of torch's seed and B is zero: the copy starts as
    `network`. ValueError where there is no layer to adapt.

    Args:
        rank: rows of A, columns of B.
        alpha: None for the rank, at which the scale is 1.
    """
    if rank < 1:
        raise ValueError(f"adapters of rank {rank}, expected at least 1")
    from peft import LoraConfig, inject_adapter_in_model

    names = layers(network)
    if rank > (widest := max(max(network.get_submodule(name).weight.shape[:2]) for name in names)):  # type: ignore[arg-type, union-attr]
        raise ValueError(f"adapters of rank {rank}, expected at most {widest}, the channels of the widest layer")
    adapted = copy_sharing_frozen(network)
    config = LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=names)  # pyright: ignore[reportArgumentType]
    inject_adapter_in_model(config, adapted)
    del adapted.peft_config  # peft's note to itself
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad_(is_adapter(name))
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def layers(network: nn.Module) -> list[str]:
    """Names of the layers to adapt."""
    plain = [name for name, module in network.named_modules() if type(module) in (nn.Linear, nn.Conv2d)]
    for ends in TARGETS:
        if found := [name for name in plain if f".{name}".endswith(tuple(f".{end}" for end in ends))]:
            return found
    wanted = "; or ".join(", ".join(ends) for ends in TARGETS)
    raise ValueError(
        f"{type(network).__name__} has no layer to adapt, looked for linear ones and convolutions: {wanted}"
    )


def is_adapter(name: str) -> bool:
    return ".lora_" in name


def adapter_weights(network: nn.Module) -> dict[str, Tensor]:
    """The A and B of a network, by name; none where it has no adapters."""
    return {name: tensor for name, tensor in network.state_dict().items() if is_adapter(name)}


def merge_lora(network: Network) -> Network:
    """A copy with plain layers, W + alpha/rank B A, that shares nothing with `network`."""
    merged = copy.deepcopy(network)
    for name, layer in list(merged.named_modules()):
        if hasattr(layer, "lora_A"):
            layer.merge()  # pyright: ignore[reportCallIssue]
            merged.set_submodule(name, layer.base_layer)  # pyright: ignore[reportArgumentType]
    return merged
