"""`dmdistill pairs`, and the pairs a distillation makes for itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from dmdistill.commands.options import SolverOptions
from dmdistill.commands.pairs.config import PairsConfig
from dmdistill.commands.presets import check_numbers
from dmdistill.commands.prompts import with_prompts
from dmdistill.commands.run_folder import setup_compute
from dmdistill.data.pairs import PairDataset, PairSettings, make_pairs
from dmdistill.distributed.process_group import SINGLE_PROCESS, ProcessGroup, join_process_group, local_device
from dmdistill.models.load import load_teacher
from dmdistill.models.model import Teacher, fingerprint
from dmdistill.networks.diffusers_wrappers import DiffusersWrapper
from dmdistill.training.progress import track

__all__ = ["make_teacher_pairs", "pairs", "with_solver_options"]


def pairs(config: PairsConfig) -> PairDataset:
    """Make pairs in config.out, or finish those that are there."""
    check_numbers(config)
    with join_process_group() as processes:
        teacher = with_solver_options(load_teacher(config.teacher), config.ode)
        device, precision = setup_compute(replace(config.compute, device=local_device(config.compute.device)))
        teacher = with_prompts(teacher, config.prompts, device=device)
        teacher.to(device, precision)
        made = make_teacher_pairs(
            teacher,
            config.out,
            count=config.count,
            shard_size=config.shard_size,
            batch=config.batch,
            seed=config.seed,
            processes=processes,
        )
        Console(highlight=False).print(f"{len(made)} pairs in {config.out}", markup=False)
        return made


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
    """count pairs of a teacher, on its device, in `folder`, by all processes; whatever is there already is kept."""
    if count < 1:
        raise ValueError(f"{count} pairs, expected at least 1; to do without pairs set --lambda-reg 0")
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
        track=track,
        processes=processes,
    )


def with_solver_options(teacher: Teacher, ode: SolverOptions) -> Teacher:
    """The teacher, sampled as the configuration says."""
    if ode.guidance is not None and ode.guidance < 0:
        raise ValueError(f"--guidance {ode.guidance}, expected at least 0; 1 is none")
    if ode.guidance not in (None, 1) and teacher.conditions is None and teacher.text is None:
        raise ValueError(f"--guidance {ode.guidance} with an unconditional teacher: it allows 1 only")
    if ode.guidance not in (None, 1) and not has_null_class(teacher):
        raise ValueError(f"--guidance {ode.guidance}: {teacher.name} has no class that means none, it allows 1 only")
    if ode.solver_steps is not None and ode.solver_steps < 1:
        raise ValueError(f"--solver-steps {ode.solver_steps}, expected at least 1")
    asked = {"solver": ode.solver, "steps": ode.solver_steps, "guidance": ode.guidance}
    return replace(teacher, **{name: value for name, value in asked.items() if value is not None})


def has_null_class(teacher: Teacher) -> bool:
    """Whether it can be told nothing, as far as its network says."""
    network, told = teacher.network, teacher.conditions
    return not isinstance(network, DiffusersWrapper) or told is None or network.has_null_class(len(told))
