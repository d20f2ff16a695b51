"""Memory of one iteration with a Stable Diffusion v1.5 U-Net: full and low-rank, with and without checkpointing.

    python benchmarks/memory.py

Nothing is allocated: the networks are built and run on tensors that have shapes and no data. Weights, gradients,
AdamW's two states and one average are counted from the parameters; activations are what autograd keeps for the backward
pass of the larger of the two trained passes, under bf16 autocast, each storage once and parameters left out. Not
counted: the workspace of kernels, and what a checkpointed block computes again.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dmdistill.core.denoisers import Denoiser, FlowDenoiser
from dmdistill.core.generator import Generator
from dmdistill.core.losses import denoising_loss
from dmdistill.core.paths import Flow
from dmdistill.data.prompts import Prompts
from dmdistill.networks.adapters import UNet2DCondition
from dmdistill.networks.checkpointing import checkpoint_blocks
from dmdistill.networks.sharing import copy_sharing_frozen
from dmdistill.teachers.lora import add_lora

GB = 1e9
BATCH, BATCH_REG = 4, 2
PATH = Flow()  # the parameterisation makes no difference to memory, and this one needs no table of times


def unet() -> Any:
    """The U-Net of Stable Diffusion v1.5, 860 M parameters."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280)
    )


def prompts(count: int) -> Prompts:
    return Prompts({"prompt_embeds": torch.randn(count, 77, 768)}, {"prompt_embeds": torch.randn(1, 77, 768)})


@contextlib.contextmanager
def kept_for_backward(sizes: dict[Any, int], apart: set[Any]) -> Iterator[None]:
    """Bytes of each storage that autograd keeps, but for those of `apart`."""

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in apart:
            sizes[storage._cdata] = storage.nbytes()
            alive.append(storage)  # so that no other storage gets its address
        return tensor

    alive: list[Any] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield


def activations(network: nn.Module, ask: Any) -> int:
    sizes: dict[Any, int] = {}
    parameters = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    with kept_for_backward(sizes, parameters):
        ask()
    return sum(sizes.values())


def trained(network: nn.Module) -> int:
    return sum(p.nbytes for p in network.parameters() if p.requires_grad)


def without_data(networks: list[nn.Module]) -> None:
    """Give networks on the meta device tensors that say they are on the CPU; what is shared stays shared."""
    made: dict[int, Any] = {}
    for module in (module for network in networks for module in network.modules()):
        for owned in (module._parameters, module._buffers):
            for name, tensor in owned.items():
                if tensor is not None:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                    like = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
                    owned[name] = made.setdefault(id(tensor), (like, tensor))[0]


def build(rank: int, teacher: Denoiser, *, checkpointing: bool) -> Denoiser:
    """A trained copy of the teacher, all of it or adapters of this rank, as `dmdistill distill` makes it."""
    copied = add_lora(teacher, rank=rank) if rank else copy.deepcopy(teacher).requires_grad_(True)
    if checkpointing:
        checkpoint_blocks(copied.net)
    copied.precision = torch.bfloat16
    return copied


def measure(*, student_rank: int, fake_rank: int, checkpointing: bool) -> list[float]:
    """GB: weights, gradients, AdamW, one average, activations."""
    with torch.device("meta"):
        teacher = FlowDenoiser(UNet2DCondition(unet()), PATH).requires_grad_(False).eval()
        generator = Generator(build(student_rank, teacher, checkpointing=checkpointing))
        fake = build(fake_rank, teacher, checkpointing=checkpointing)
        average = copy_sharing_frozen(generator).requires_grad_(False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        without_data([teacher, generator, fake, average])
        parameters = {id(p): p.nbytes for net in (teacher, generator, fake, average) for p in net.parameters()}
        learnt, held = trained(generator) + trained(fake), trained(generator)
        z, cond = torch.randn(BATCH + BATCH_REG, 4, 64, 64), prompts(BATCH + BATCH_REG)
        x, told, t = z[:BATCH], cond[slice(0, BATCH)], torch.full((BATCH,), 0.5)
        kept = [
            activations(generator, lambda: generator(z, cond)),
            activations(fake, lambda: denoising_loss(fake, x, t, x, told)),
        ]
    return [(sum(parameters.values()) - held) / GB, learnt / GB, 2 * learnt / GB, held / GB, max(kept) / GB]


if __name__ == "__main__":
    table = Table(
        "student", "fake score", "checkpointing", "weights", "gradients", "AdamW", "average", "activations", "sum"
    )
    for student_rank, fake_rank in ((0, 0), (0, 64), (64, 64)):
        for checkpointing in (False, True):
            parts = measure(student_rank=student_rank, fake_rank=fake_rank, checkpointing=checkpointing)
            kinds = [f"rank {rank}" if rank else "all weights" for rank in (student_rank, fake_rank)]
            table.add_row(*kinds, "yes" if checkpointing else "no", *(f"{x:.1f}" for x in [*parts, sum(parts)]))
    Console(width=120).print(
        f"GB, {BATCH} generated latents of 4 x 64 x 64 and {BATCH_REG} pairs per step, fp32 weights, bf16 activations"
    )
    Console(width=120).print(table)
