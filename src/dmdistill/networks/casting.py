"""Weights in 16 bits, for inference, and back."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["cast_matmul_weights", "widen_weights"]

MATMUL_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # exactly these: a subclass may use its weight otherwise


def cast_matmul_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights of linear layers and convolutions, in place."""
    for module in network.modules():
        parameters = dict(module.named_parameters(recurse=False)) if type(module) in MATMUL_LAYERS else {}
        for name, parameter in parameters.items():
            setattr(module, name, nn.Parameter(parameter.detach().to(dtype), parameter.requires_grad))


def widen_weights(network: nn.Module) -> None:
    """Make every 16-bit weight fp32, in place: the network can be given other weights without rounding them."""
    for parameter in network.parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()
