"""Speed-up of the bundled network by each of its optimisations: milliseconds of one pass, and ratios, from one run.

python benchmarks/network.py [--batch 128] [--repeats 5]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

from dmdistill.core.denoisers import EDMDenoiser
from dmdistill.core.schedules import EDM
from dmdistill.data.conditions import Labels
from dmdistill.networks.song_unet import SongUNet

VARIANTS = {
    "as usually written": {"patch_size": 1, "group_channels": 4, "channels_last": False, "bf16": False},
    "+ bf16 inside the network": {"patch_size": 1, "group_channels": 4, "channels_last": False, "bf16": True},
    "+ channels_last": {"patch_size": 1, "group_channels": 4, "channels_last": True, "bf16": True},
    "+ groups of 16 channels": {"patch_size": 1, "group_channels": 16, "channels_last": True, "bf16": True},
    "+ patches of 2 x 2 (bundled)": {"patch_size": 2, "group_channels": 16, "channels_last": True, "bf16": True},
}


def build(patch_size: int, group_channels: int, channels_last: bool, bf16: bool) -> EDMDenoiser:
    """Build a variant, with about the same parameters: without patches it has a level of resolution more."""
    levels = (1, 2) if patch_size == 2 else (1, 1, 2)
    net = SongUNet(
        img_resolution=28,
        in_channels=1,
        out_channels=1,
        label_dim=10,
        model_channels=48,
        channel_mult=levels,
        num_blocks=1,
        attn_resolutions=(),
        dropout=0.0,
        group_channels=group_channels,
        patch_size=patch_size,
    )
    denoiser = EDMDenoiser(net, EDM())
    denoiser.precision = torch.bfloat16 if bf16 else None
    return denoiser.to(memory_format=torch.channels_last) if channels_last else denoiser


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Return the median time of a function, after a first call."""
    work()
    timings = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        timings.append(time.perf_counter() - start)
    return 1e3 * sorted(timings)[len(timings) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    x, t = torch.randn(arguments.batch, 1, 28, 28), torch.full((arguments.batch,), 2.0)
    cond = Labels(torch.eye(10)[torch.arange(arguments.batch) % 10])
    table = Table("network", "parameters", "forward ms", "forward + backward ms", "ratio")
    first = 0.0
    for name, variant in VARIANTS.items():
        denoiser = build(**variant)
        with torch.no_grad():
            forward = milliseconds(lambda: denoiser(x, t, cond), arguments.repeats)  # noqa: B023
        both = milliseconds(lambda: denoiser(x, t, cond).square().mean().backward(), arguments.repeats)  # noqa: B023
        first = first or both
        count = sum(p.numel() for p in denoiser.parameters())
        table.add_row(name, f"{count / 1e6:.2f} M", f"{forward:.1f}", f"{both:.1f}", f"{first / both:.2f} x")
    Console().print(table)


if __name__ == "__main__":
    main()
