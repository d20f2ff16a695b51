"""Limits of a training step on this processor: its convolutions, in fp32 and bf16, by themselves and in a step.

    OMP_NUM_THREADS=1 python benchmarks/limits.py [--batch 64] [--repeats 5]

A convolution of 3 x 3 on 96 channels at 14 x 14, as in the bundled network; a pass of that network, forward and
backward, in fp32, in bf16 and compiled; and the share of convolutions in a pass in fp32. Times are
processor times, which other work on the computer does not lengthen.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.profiler import profile

from dmdistill.commands.bench.timers import Spread, time_in_rounds
from dmdistill.core.denoisers import Denoiser
from dmdistill.core.generators import Generator
from dmdistill.models.load import load_teacher

SIDE, CHANNELS = 14, 96
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}


def convolution(batch: int, precision: torch.dtype | None) -> tuple[Callable[[], object], float]:
    """Return a pass without gradient, and its number of operations."""
    dtype = precision or torch.float32
    layer = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False, dtype=dtype)
    layer.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    x = torch.randn(batch, CHANNELS, SIDE, SIDE).to(dtype, memory_format=torch.channels_last)
    return partial(no_grad_pass, layer, x), 2.0 * batch * SIDE**2 * layer.weight.numel()


@torch.no_grad()
def no_grad_pass(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return layer(x)


def training_pass(denoiser: Denoiser, batch: int) -> Callable[[], object]:
    """Return a forward and backward pass."""
    teacher = load_teacher("fashion")
    z, cond = teacher.sample_inputs(batch, rng=torch.Generator().manual_seed(0))
    generator = Generator(denoiser)
    return lambda: generator(z, cond).square().mean().backward()


def networks() -> dict[str, Denoiser]:
    """Return the bundled network in fp32, in bf16, and in fp32 compiled."""
    plain = load_teacher("fashion").to(torch.device("cpu")).denoiser.requires_grad_(True)
    variants = {name: copy.deepcopy(plain) for name in (*PRECISIONS, "fp32, compiled")}
    variants["bf16"].precision = torch.bfloat16
    variants["fp32, compiled"].net.compile(dynamic=False)
    return variants


def convolution_share(work: Callable[[], object]) -> float:
    """Return the share of a function's processor time that is spent in convolutions."""
    work()
    with profile() as profiled:
        work()
    events = profiled.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    return sum(event.self_cpu_time_total for event in events if "convolution" in event.key) / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    timed = partial(time_in_rounds, clock=time.process_time, repeats=options.repeats)
    convolutions = {name: convolution(options.batch, precision) for name, precision in PRECISIONS.items()}
    passes = {name: training_pass(denoiser, options.batch) for name, denoiser in networks().items()}
    single: dict[str, Spread] = timed({name: work for name, (work, _) in convolutions.items()}, name="a convolution")
    full: dict[str, Spread] = timed(passes, name="a pass")
    table = Table("", "one convolution, GFLOP/s", f"forward and backward of {options.batch} images, ms")
    for name, took in full.items():
        rate = f"{convolutions[name][1] / single[name].median / 1e9:.0f}" if name in single else ""
        table.add_row(name, rate, f"{1e3 * took.median:.0f}")
    Console().print(table)
    print(f"convolutions take {convolution_share(passes['fp32']):.0%} of the pass in fp32")


if __name__ == "__main__":
    main()
