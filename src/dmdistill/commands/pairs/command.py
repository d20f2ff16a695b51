"""`dmdistill pairs`, and the pairs that a distillation makes for itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from dmdistill.commands.options import SolverOptions, check
from dmdistill.commands.pairs.config import PairsConfig
from dmdistill.commands.prompts import with_prompts
from dmdistill.commands.run_folder import setup_compute
from dmdistill.data.pairs import PairDataset, PairSettings, check_space, make_pairs
from dmdistill.distributed.process_group import SINGLE_PROCESS, ProcessGroup, join_process_group, local_device
from dmdistill.models.fingerprint import fingerprint
from dmdistill.models.load import load_teacher
from dmdistill.models.model import Model, Teacher
from dmdistill.networks.diffusers_wrappers import DiffusersWrapper
from dmdistill.training.progress import track_rows

__all__ = ["check_guidable", "embedded_guidance", "make_teacher_pairs", "pairs", "with_solver_options"]


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
        Console(highlight=False).print(f"{len(dataset)} pairs in {config.out}", markup=False, soft_wrap=True)
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
    """
    check_space(folder, count, teacher.shape)
    settings = PairSettings(
        teacher=fingerprint(teacher),
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
        generate=lambda z, index: teacher.generate(z, teacher.condition(index)),
        batch=batch,
        device=teacher.device,
        track=track_rows,
        processes=processes,
    )


def with_solver_options(teacher: Teacher, ode: SolverOptions) -> Teacher:
    """Return a teacher with other solver options. ValueError for guidance that the teacher cannot have."""
    ode.check()
    scale, flag = ode.guidance, "--guidance"
    if embedded_guidance(teacher):
        if ode.guidance == 0:
            raise ValueError(f"--guidance 0: {teacher.name} embeds its guidance, expected a number above 0")
        teacher = set_embedded_guidance(teacher, ode.guidance)
        scale, flag = ode.true_guidance, "--true-guidance"
    elif ode.true_guidance is not None:
        raise ValueError(f"--true-guidance {ode.true_guidance}: {teacher.name} embeds no guidance, give --guidance")
    if scale not in (None, 1):
        check_guidable(teacher, f"{flag} {scale}")
    options = {"solver": ode.solver, "steps": ode.solver_steps, "guidance": scale}
    return replace(teacher, **{name: value for name, value in options.items() if value is not None})


def embedded_guidance(model: Model) -> float:
    """Return the guidance scale that is an input of the network, as of Flux-dev; 0 for a network without this input."""
    return getattr(model.network, "embedded_guidance", 0.0)


def set_embedded_guidance(teacher: Teacher, scale: float | None) -> Teacher:
    """Return a teacher whose network, in place, has another embedded guidance; None for that which it has."""
    if scale is None:
        return teacher
    network: Any = teacher.network
    network.guidance = scale
    return replace(teacher, config={**teacher.config, "embedded_guidance": scale})


def check_guidable(teacher: Teacher, option: str) -> None:
    """Raise a ValueError, naming the option that wants guidance, where the teacher cannot have any."""
    if teacher.conditions is None and teacher.text is None:
        raise ValueError(f"{option} with an unconditional teacher, which allows guidance 1 only")
    if not has_null_class(teacher):
        raise ValueError(f"{option}: {teacher.name} has no null class, it allows guidance 1 only")


def has_null_class(teacher: Teacher) -> bool:
    """Whether the teacher has an unconditional branch, as far as its network says."""
    network, conditions = teacher.network, teacher.conditions
    return not isinstance(network, DiffusersWrapper) or conditions is None or network.has_null_class(len(conditions))
