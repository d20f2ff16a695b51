"""Weights that stay in their safetensors files until each process reads its shards of them.

A network is built with its parameters on the meta device, where they take no memory, and its buffers as they are. Once
it is sharded, a process allocates its own shards and reads their rows from the files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

__all__ = ["StoredWeights", "is_stored", "iterate_state", "parameters_on_meta", "read_shards", "take_weights"]

ALL = slice(None)
ADAPTED = ".base_layer."  # in the name of a layer inside a LoRA layer of peft
Read = Callable[..., Tensor]


@dataclass(frozen=True)
class StoredWeights:
    """The files of a network's weights. A network has it as its attribute `stored_weights`, and so do its copies.

    Args:
        files: the file of each tensor, by its name in the network's state dict and in the file.
    """

    files: Mapping[str, Path]

    def attach(self, network: nn.Module) -> None:
        """Record on a network that its weights are in these files, in place of any records on its modules."""
        for part in network.modules():
            vars(part).pop("stored_weights", None)
        vars(network)["stored_weights"] = self

    @contextmanager
    def open(self) -> Iterator[Read]:
        """Yield a function that reads some rows of a tensor, or all, by its name: read(name, slice(2, 4))."""
        from safetensors import safe_open

        with ExitStack() as stack:
            files = {file: stack.enter_context(safe_open(file, "pt")) for file in sorted({*self.files.values()})}

            def read(name: str, rows: slice = ALL) -> Tensor:
                stored = name.replace(ADAPTED, ".")
                file: Any = files[self.files[stored]]
                return file.get_tensor(stored) if rows == ALL else file.get_slice(stored)[rows]

            yield read


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Within the block, the parameters of networks that are built go to the meta device; their buffers do not."""

    def move(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return None
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)

    hook = register_module_parameter_registration_hook(move)  # pyright: ignore[reportArgumentType]  it may return one
    try:
        yield
    finally:
        hook.remove()


def is_stored(network: nn.Module) -> bool:
    """Whether a process can read shards of a network's weights from files."""
    return any(stored_parts(network))


def stored_parts(network: nn.Module) -> Iterator[tuple[str, nn.Module, StoredWeights]]:
    """Yield the modules of a network whose weights are in files, with what their names of tensors begin with."""
    for name, module in network.named_modules():
        if (stored := vars(module).get("stored_weights")) is not None:
            yield f"{name}." if name else "", module, stored


def take_weights(network: nn.Module, other: nn.Module) -> None:
    """Give a network the weights of another of its form.

    Those that the other has in memory are copied, or take the place of parameters on the meta device; for those that it
    has on the meta device, their files are recorded on the network.
    """
    own, state = network.state_dict(), other.state_dict()
    for prefix, _, stored in stored_parts(other):
        stored.attach(network.get_submodule(prefix.removesuffix(".")))
    loaded = {name: one.to(own[name].dtype) for name, one in state.items() if not one.is_meta}
    on_meta = any(one.is_meta for one in own.values())
    network.load_state_dict(loaded, strict=len(loaded) == len(state), assign=on_meta)


def iterate_state(network: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors of a network's state dict in the order of their names, one by one from files if on meta."""
    with ExitStack() as stack:
        parts = [
            (prefix, stack.enter_context(stored.open()))
            for prefix, module, stored in stored_parts(network)
            if any(parameter.is_meta for parameter in module.parameters())
        ]
        for name, tensor in sorted(network.state_dict().items()):
            prefix, read = next((part for part in parts if name.startswith(part[0])), ("", None))
            if tensor.is_meta and read is not None:
                yield read(name.removeprefix(prefix)).to(tensor.dtype)
            else:
                yield tensor


@torch.no_grad()
def read_shards(network: nn.Module, device: torch.device, known: Mapping[Tensor, Tensor] | None = None) -> None:
    """Allocate a sharded network's parameters that are on the meta device, and read this process's rows of them.

    Args:
        network: sharded by FSDP2, along the first dimension of each parameter.
        device: of the shards.
        known: sharded parameters of other networks that take the place of its own.
    """
    known = known or {}
    empty = [
        (stored, [(name, one) for name, one in module.named_parameters() if one.is_meta and one not in known])
        for _, module, stored in stored_parts(network)
    ]

    def allocate(tensor: Tensor) -> Tensor:
        if tensor in known:
            return known[tensor]
        return torch.empty_like(tensor, device=device) if tensor.is_meta else tensor

    network._apply(allocate)
    for stored, parameters in empty:
        with stored.open() as read:
            for name, parameter in parameters:
                if rows := own_rows(parameter):
                    parameter.to_local().copy_(read(name, slice(rows.start, rows.stop)))  # pyright: ignore


def own_rows(parameter: Any) -> range:
    """Return the rows of a sharded parameter that this process has: torch.chunk's."""
    mesh, shards = parameter.device_mesh, parameter.device_mesh.ndim - 1  # its last dimension
    most = -(-len(parameter) // mesh.size(shards))
    return range(len(parameter))[mesh.get_local_rank(shards) * most :][:most]
