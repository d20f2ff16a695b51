"""A bound on the size of a network while it is built from a config that may be of anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

__all__ = ["build_on_meta", "limit_parameters"]


@contextmanager
def limit_parameters(tensors: int) -> Iterator[None]:
    """Within the block, raise ValueError once the networks that are built have more parameters than their weights.

    Args:
        tensors: how many tensors the files of the weights hold.
    """
    count = 0

    def add(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count
        count += parameter is not None
        if count > 2 * tensors + 16:  # twice, as a layer may replace its first weights
            raise ValueError(f"the network has more layers than model.safetensors has tensors, which are {tensors}")

    hook = register_module_parameter_registration_hook(add)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def build_on_meta(tensors: int) -> Iterator[None]:
    """Within the block, build networks on the meta device, without memory, and within `limit_parameters`."""
    with limit_parameters(tensors), torch.device("meta"):
        yield
