"""Discriminator heads, and the features of a network that they judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ChannelMean", "ConvolutionHead", "TokenHead", "build_head", "capture_features", "feature_layers"]

WIDTH = 4  # of the map that a convolutional head reduces to one logit


class CapturedError(Exception):
    """Ends a forward pass at the last layer that is wanted; never seen outside."""


def feature_layers(network: nn.Module) -> list[str]:
    """Return the names of the layers whose output a discriminator judges: the bottleneck, or the middle of a stack.

    ValueError for a network that does not say, by an attribute `feature_layers`, which they are.
    """
    layers = getattr(network, "feature_layers", None)
    if layers is None:
        raise ValueError(
            f"{type(network).__name__} has no feature_layers for a discriminator: name some by --discriminator-layers"
        )
    return list(layers)


def capture_features(network: nn.Module, layers: Sequence[str], evaluate: Callable[[], Tensor]) -> list[Tensor]:
    """Return the outputs of some layers in one forward pass, B C H W or B tokens C each.

    The pass ends at the last of the layers, unless one is within a module that FSDP2 shards.

    Args:
        network: that has the layers.
        layers: by their names in the network; of a tuple the last tensor counts, as transformers return the image's.
        evaluate: evaluates the network.
    """
    outputs: dict[str, Tensor] = {}
    around = {name: sharded_around(network, name) for name in layers}
    stop = not any(around.values())  # FSDP2's modules must come to their end

    def keep(name: str, module: nn.Module, args: Any, output: Any) -> None:
        outputs[name] = feature = output[-1] if isinstance(output, tuple) else output
        if feature.requires_grad:
            for sharded in around[name]:
                feature.register_hook(partial(gather, sharded))
        if stop and len(outputs) == len(layers):
            raise CapturedError

    with ExitStack() as stack:
        for name in layers:
            stack.callback(network.get_submodule(name).register_forward_hook(partial(keep, name)).remove)
        stack.enter_context(torch.compiler.set_stance("force_eager"))  # a compiled network has no layers to hook
        stack.enter_context(suppress(CapturedError))
        evaluate()
    return [outputs[name] for name in layers]


def sharded_around(network: nn.Module, layer: str) -> list[Any]:
    """Return the modules around a layer that FSDP2 shards; the network may be one of them."""
    parts = layer.split(".")
    modules = [network.get_submodule(".".join(parts[:count])) for count in range(len(parts))]
    return [module for module in modules if hasattr(module, "unshard")]


def gather(sharded: Any, gradient: Tensor) -> None:
    """Gather a module's weights for its backward pass, as FSDP2 does by itself only from the module's own output."""
    sharded.unshard()


class ConvolutionHead(nn.Sequential):
    """DMD2's head on a map of features (Yin et al. 2024b, appendix): halved to 4 x 4, then reduced to one logit.

    It takes B C H W and returns B 1 1 1. At 8 x 8 it is the one of the authors' ImageNet and SD1.5 runs, at 32 x 32
    that of SDXL.

    Args:
        channels: C.
        size: (H, W).
    """

    def __init__(self, channels: int, size: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        height, width = size
        while min(height, width) > WIDTH:
            layers += [nn.Conv2d(channels, channels, 4, stride=2, padding=1), head_norm(channels), nn.SiLU()]
            height, width = height // 2, width // 2
        kernel = (height, width)
        layers += [nn.Conv2d(channels, channels, kernel, stride=kernel), head_norm(channels), nn.SiLU()]
        super().__init__(*layers, nn.Conv2d(channels, 1, 1))


class TokenHead(nn.Module):
    """A head on the mean of a transformer's tokens: LayerNorm, GELU and linear layers down to one logit, B 1.

    Args:
        channels: of a token.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 4, 1)
        self.layers = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, 1)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of B tokens C."""
        return self.layers(tokens.mean(1))


class ChannelMean(nn.Module):
    """SiDA's head, without parameters: a map of logits, B 1 H W, is the mean of the features over channels."""

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits of B C H W."""
        return features.mean(1, keepdim=True)


class Heads(nn.Module):
    """One head a layer. It computes in fp32 and returns the logits of all, B n."""

    def __init__(self, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return the logits of the layers' features."""
        with torch.autocast(features[0].device.type, enabled=False):
            logits = [head(one.float()) for head, one in zip(self.heads, features, strict=True)]
        return torch.cat([one.flatten(1) for one in logits], 1)


def build_head(features: Sequence[Tensor], kind: str = "learned") -> nn.Module:
    """Build the head for features of these shapes, B C H W or B tokens C.

    Args:
        features: of each layer.
        kind: "learned", convolutions or linear layers as the shapes ask for; "mean", SiDA's without parameters.
    """
    if kind == "mean":
        return Heads([ChannelMean() for _ in features])
    return Heads([ConvolutionHead(f.shape[1], f.shape[2:]) if f.ndim == 4 else TokenHead(f.shape[2]) for f in features])


def head_norm(channels: int) -> nn.GroupNorm:
    """Return GroupNorm of 32 groups, or of as many as divide the channels and have four of them or more each.

    After the last convolution a channel is one number: a group of one alone would always be normalized to zero.
    """
    most = max(min(32, channels // 4), 1)
    return nn.GroupNorm(max(groups for groups in range(1, most + 1) if channels % groups == 0), channels)
