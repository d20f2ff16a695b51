"""`dmdistill pairs`, and the pairs that a distillation makes for itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from dmdistill.commands.options import check
from dmdistill.commands.pairs.config import PairsConfig
from dmdistill.commands.prompts import with_prompts
from dmdistill.commands.run_folder import setup_compute
from dmdistill.commands.solver_options import with_solver_options
from dmdistill.data.pairs import PairDataset, PairSettings, check_space, make_pairs
from dmdistill.distributed.process_group import SINGLE_PROCESS, ProcessGroup, join_process_group, local_device
from dmdistill.io.console import say
from dmdistill.models.fingerprint import fingerprint as compute_fingerprint
from dmdistill.models.load import load_teacher
from dmdistill.models.model import Teacher
from dmdistill.training.progress import track_rows

__all__ = ["make_teacher_pairs", "pairs"]


def pairs(config: PairsConfig) -> PairDataset:
    """Make pairs in config.out, or finish the set that is there."""
    check(config)
    with join_process_group() as processes:
        teacher = load_teacher(config.teacher, size=config.image_size.size)
        teacher = with_solver_options(teacher, config.ode)
        device, precision = setup_compute(replace(config.compute, device=local_device(config.compute.device)))
        teacher = with_prompts(teacher, config.prompts, device=device).to(device, precision)
        if config.compile:
            teacher.denoiser.net.compile(dynamic=False)
        dataset = make_teacher_pairs(
            teacher,
            config.out,
            count=config.pair_count,
            shard_size=config.shard_size,
            batch=config.pair_batch,
            seed=config.seed,
            processes=processes,
        )
        say(f"{len(dataset)} pairs in {config.out}")
        return dataset


def make_teacher_pairs(
    teacher: Teacher,
    folder: Path,
    *,
    count: int,
    seed: int,
    shard_size: int = 2000,
    batch: int = 500,
    processes: ProcessGroup = SINGLE_PROCESS,
    device: torch.device | None = None,
    load: Callable[[], Teacher] | None = None,
    fingerprint: str | None = None,
) -> PairDataset:
    """Make a teacher's pairs on its device; those that the folder has already are kept.

    Args:
        teacher: the teacher.
        folder: to write to.
        count: how many pairs.
        seed: of noise and conditions.
        shard_size: pairs per file.
        batch: pairs made at once.
        processes: that make them together.
        device: of the noise; None for the teacher's.
        load: returns the teacher that makes missing pairs; None for this one.
        fingerprint: the teacher's, where it is known.
    """
    load_once = cache(load or (lambda: teacher))
    check_space(folder, count, teacher.shape)
    settings = PairSettings(
        teacher=fingerprint or processes.on_main(lambda: compute_fingerprint(teacher)),
        conditions=str(teacher.conditions or "none"),
        solver=teacher.solver,
        steps=teacher.steps,
        guidance=teacher.guidance,
        seed=seed,
        count=count,
        shard_size=shard_size,
        precision=str(teacher.denoiser.precision or torch.float32).removeprefix("torch."),
    )
    return make_pairs(
        folder,
        settings,
        draw=lambda n, rng: teacher.sample_noise(n, rng=rng),
        generate=lambda z, index: load_once().generate(z, load_once().condition(index)),
        batch=batch,
        device=device or teacher.device,
        track=track_rows,
        processes=processes,
    )
