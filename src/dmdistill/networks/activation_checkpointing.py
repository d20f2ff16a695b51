"""Gradient checkpointing (Chen et al. 2016): memory for time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dmdistill.networks.residual_block import UNetBlock

__all__ = ["CHECKPOINTING"]


def checkpoint_norms(network: nn.Module) -> None:
    """Let the blocks of our U-Nets keep what enters a norm, not what leaves it and SiLU: half of their activations.

    These are computed again, and nothing else: a convolution keeps its input, which is the last that is asked for.
    Gradients stay the same, bit for bit. Blocks with adapters, which would have to be convolved again, and other
    networks are left as they are.
    """
    for block in network.modules():
        if isinstance(block, UNetBlock) and isinstance(block.conv0, nn.Conv2d):  # an adapted layer is no Conv2d
            block.first = partial(recomputed, block.first)  # a partial, as a copy of it belongs to the copied block
            block.second = partial(recomputed, block.second)


def checkpoint_blocks(network: nn.Module) -> None:
    """Let each block of a finished network keep its inputs alone, and compute the rest again in the backward pass.

    Models of diffusers do it by a method of their own; elsewhere a block is a module whose class is named ...Block, the
    outermost where they are nested. Gradients stay the same, and without them nothing changes. ValueError where there
    is no block.
    """
    if not wrap(network):
        raise ValueError(
            f"--checkpointing blocks: {type(network).__name__} has neither enable_gradient_checkpointing() nor a "
            "module whose class is named ...Block; expected norms or none"
        )


def wrap(module: nn.Module) -> int:
    """Do it below this module; how many blocks were found."""
    if callable(own := getattr(module, "enable_gradient_checkpointing", None)):
        own()
        return 1
    if type(module).__name__.endswith("Block"):
        module.forward = partial(recomputed, module.forward)
        return 1
    return sum(wrap(child) for child in module.children())


def recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """forward's answer, its activations kept only where no gradient will ask for them."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


CHECKPOINTING: dict[str, Callable[[nn.Module], object]] = {
    "none": lambda network: None,
    "norms": checkpoint_norms,
    "blocks": checkpoint_blocks,
}
