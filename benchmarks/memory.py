"""Memory by part and operations of one process, for teachers of common sizes, counted and not measured.

    python benchmarks/memory.py [unet_860m transformer_1b transformer_12b] [--processes N]

Of several processes each holds a shard of every network (--strategy fsdp), and has 4 latents and 2 pairs of its own.
All of Algorithm 1 runs on tensors that have shapes and no data, as in `dmdistill plan`. Not counted: the workspace of
kernels, the autoencoder and LPIPS.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import large_teachers
import torch

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.options import change
from dmdistill.commands.plan.dry_run import Cost, dry_run
from dmdistill.models.load import load_teacher

GB = 1e9
PARTS = ("teacher", "generator", "fake score", "gathered", "gradients", "optimizer", "EMAs", "activations")


def count_cost(name: str, *, student_rank: int, fake_rank: int, checkpointing: str, processes: int = 1) -> Cost:
    """Count a step of the full objective with guidance."""
    options = {"batch": 4, "batch_reg": 2, "pair_count": 2, "steps": 2, "ema_halflives": (2.0,)}
    memory = {"lora_student": student_rank, "lora_fake": fake_rank, "checkpointing": checkpointing, "strategy": "fsdp"}
    config = change(DistillConfig(teacher=name), **options, **memory)
    teacher = replace(load_teacher(f"large_teachers:{name}"), guidance=3.0)
    teacher.denoiser.precision = torch.bfloat16
    device, precision = torch.device("cpu"), torch.bfloat16
    with dry_run(config, teacher, device=device, precision=precision, data=False, processes=processes) as run:
        return run.count(run.distillation.phases.phases[-1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=large_teachers.__all__)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    print(
        f"GB at the peak of a step, one process of {options.processes}, 4 generated latents and 2 pairs, fp32 weights, "
        "bf16 activations\n"
    )
    columns = ["teacher", "student", "fake score", "checkpointing", *PARTS, "sum", "TFLOP"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for name in options.names:
        for ranks in ((0, 0), (0, 64), (64, 64)):
            for checkpointing in ("none", "blocks"):
                settings = {"student_rank": ranks[0], "fake_rank": ranks[1], "checkpointing": checkpointing}
                found = count_cost(name, **settings, processes=options.processes)
                sizes = [found.memory.get(part, 0) / GB for part in PARTS]
                sizes.append(sum(found.memory.values()) / GB)
                words = [name, *(f"rank {rank}" if rank else "all weights" for rank in ranks), checkpointing]
                figures = [*(f"{size:.1f}" for size in sizes), f"{found.flops / 1e12:.0f}"]
                print(f"| {' | '.join(words + figures)} |", flush=True)
