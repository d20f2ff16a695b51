"""Copies of networks that share what training leaves unchanged."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TypeVar

from torch import Tensor, nn

__all__ = ["copy_sharing_frozen"]

Module = TypeVar("Module", bound=nn.Module)


def copy_sharing_frozen(module: Module) -> Module:
    """Return a deep copy that shares the frozen parameters of `module` and has trainable ones of its own.

    Buffers are shared where their module is in evaluation mode, in which nothing changes them.
    """
    return copy.deepcopy(module, {id(tensor): tensor for tensor in constant_tensors(module)})


def constant_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Iterate over the tensors that training does not change."""
    yield from (parameter for parameter in module.parameters() if not parameter.requires_grad)
    for part in module.modules():
        if not part.training:
            yield from part.buffers(recurse=False)
