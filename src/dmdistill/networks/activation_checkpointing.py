"""Activation checkpointing (Chen et al. 2016), which saves memory and takes time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dmdistill.networks.residual_block import UNetBlock

__all__ = ["CHECKPOINTING"]


def checkpoint_norms(network: nn.Module, *, on_cpu: bool = True) -> None:
    """Make the blocks of our U-Nets store the input of a norm and not its output: half of their activations.

    The backward pass computes norms and SiLU again, and no convolution. Gradients stay the same, bit for bit. Blocks
    with LoRA layers, whose convolutions would be computed again, and other networks are left as they are.

    Args:
        network: the network, on any device, from which it may move.
        on_cpu: whether blocks do so where they compute on a CPU, which takes a sixth more time for it.
    """
    wrapper = recompute if on_cpu else recompute_on_gpu
    for block in network.modules():
        if isinstance(block, UNetBlock) and isinstance(block.conv0, nn.Conv2d):  # a LoRA layer is no Conv2d
            block.first = partial(wrapper, block.first)  # a partial: a copy of it is of the copied block's method
            block.second = partial(wrapper, block.second)


def checkpoint_blocks(network: nn.Module) -> None:
    """Make each block of a network store its inputs only; the backward pass computes the rest again.

    Networks of diffusers have a method for this; elsewhere a block is a module with "Block" in the name of its class,
    the outermost where they are nested. Gradients stay the same. ValueError where there is no block.
    """
    if not wrap_blocks(network):
        raise ValueError(
            f"--checkpointing blocks: {type(network).__name__} has neither enable_gradient_checkpointing() nor a "
            "module with Block in the name of its class; expected norms or none"
        )


def wrap_blocks(module: nn.Module) -> int:
    """Wrap the blocks in a module and return their number."""
    if callable(own := getattr(module, "enable_gradient_checkpointing", None)):
        own()
        return 1
    if "Block" in type(module).__name__:
        module.forward = partial(recompute, module.forward)
        return 1
    return sum(wrap_blocks(child) for child in module.children())


def recompute(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a forward method whose activations the backward pass computes again."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def recompute_on_gpu(forward: Callable[..., Any], x: Tensor, *args: Any) -> Any:
    """Call a forward method whose activations the backward pass computes again, but on a CPU keeps."""
    return forward(x, *args) if x.device.type == "cpu" else recompute(forward, x, *args)


CHECKPOINTING: dict[str, Callable[[nn.Module], object]] = {
    "auto": partial(checkpoint_norms, on_cpu=False),
    "none": lambda network: None,
    "norms": checkpoint_norms,
    "blocks": checkpoint_blocks,
}
