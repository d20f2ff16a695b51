"""The networks before training: copies of the teacher, or of the student of --start."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.core.denoisers import Denoiser
from dmdistill.core.generators import Generator
from dmdistill.distributed.stored_weights import take_weights
from dmdistill.models.load import SHARED_KEYS, absolute_name, load_model
from dmdistill.models.model import Model, Teacher
from dmdistill.networks.activation_checkpointing import CHECKPOINTING
from dmdistill.networks.lora import adapter_weights, add_lora, merge_lora

__all__ = [
    "INHERITED_KEYS",
    "check_student_times",
    "initial_fake_score",
    "initial_generator",
    "required_teacher",
    "student_times",
    "teacher_name",
    "trainable_copy",
]

SID_NOISE = 2.5  # sigma/alpha at which SiD's generator is evaluated (Zhou et al. 2024)
ROUNDING = 1e-6  # of the schedule's times, which are fp32
INHERITED_KEYS = (*SHARED_KEYS, "classes")  # of config.json, equal in a student and its teacher
Copy = Callable[..., Denoiser]  # as `trainable_copy`


def trainable_copy(denoiser: Denoiser, rank: int, checkpointing: str, *, augments: bool = False) -> Denoiser:
    """Copy a denoiser for training.

    Args:
        denoiser: the teacher's.
        rank: of LoRA adapters to its frozen weights, which stay shared; 0 copies all weights and trains them.
        checkpointing: none, norms or blocks.
        augments: train the layer of augmentation labels, too; DDP refuses trained weights that get no gradient.
    """
    trained = add_lora(denoiser, rank=rank) if rank else copy.deepcopy(denoiser).requires_grad_(True)
    if not augments and (layer := getattr(trained.net, "map_augment", None)) is not None:
        layer.requires_grad_(False)
    CHECKPOINTING[checkpointing](trained.net)
    return trained


def initial_generator(config: DistillConfig, teacher: Teacher, copy_denoiser: Copy = trainable_copy) -> Generator:
    """Build the generator, as the teacher or as the student of --start.

    Args:
        config: the options.
        teacher: the teacher.
        copy_denoiser: copies the teacher's denoiser for training.

    Raises:
        ValueError: the student of --start is of another kind of teacher, or has no adapters of this run's form.
    """
    denoiser = copy_denoiser(teacher.denoiser, config.memory.lora_student, config.memory.checkpointing)
    if (start := load_start(config, teacher)) is not None:
        if config.memory.lora_student:
            denoiser.load_state_dict(adapter_weights(start.denoiser), strict=False)
        else:
            take_weights(denoiser, merge_lora(start.denoiser))
    return Generator(denoiser, student_times(config, teacher), config.student.transition)


def initial_fake_score(config: DistillConfig, teacher: Teacher, copy_denoiser: Copy = trainable_copy) -> Denoiser:
    """Build the fake score, as the teacher's denoiser.

    Args:
        config: the options.
        teacher: the teacher.
        copy_denoiser: copies the teacher's denoiser for training.
    """
    memory, augments = config.memory, config.fake_score.augment_fake > 0
    return copy_denoiser(teacher.denoiser, memory.lora_fake, memory.checkpointing, augments=augments)


def student_times(config: DistillConfig, teacher: Teacher) -> tuple[float, ...]:
    """Return the times of the student's steps on the teacher's noise schedule."""
    schedule, options = teacher.denoiser.schedule, config.student
    if options.student_timesteps:
        return options.student_timesteps
    if config.method in ("sid", "sida"):  # sigma 2.5 on EDM's path
        return (float(schedule.time_at_ratio(torch.tensor([SID_NOISE]))),)
    return schedule.student_times(options.student_steps)


def check_student_times(config: DistillConfig, teacher: Teacher) -> None:
    """Raise a ValueError where --student-timesteps are outside of the times of the teacher's noise schedule."""
    schedule, times = teacher.denoiser.schedule, config.student.student_timesteps
    least = schedule.time_range[0]
    if times and not least * (1 - ROUNDING) <= min(times) <= max(times) <= schedule.t_max:
        raise ValueError(
            f"--student-timesteps {' '.join(f'{time:g}' for time in times)}, expected times from {least:g} to "
            f"{schedule.t_max:g}: a time of {teacher.name} is {schedule.time_meaning}"
        )


def load_start(config: DistillConfig, teacher: Teacher) -> Model | None:
    """Load the student of --start, and check that it fits; None where none is given."""
    if config.start is None:
        return None
    foreign, name = "network" not in teacher.config, teacher_name(config, teacher)
    on_meta, adapters = teacher.device.type == "meta", config.memory.lora_student > 0
    given = adapters if on_meta else foreign  # merging a student's adapters wants a teacher's weights in memory
    start = load_model(config.start, teacher=teacher if given else None, lazy=on_meta)
    if isinstance(start, Teacher):
        raise ValueError(
            f"--start {config.start} is a teacher, expected a student: without --start the generator begins as one"
        )
    if foreign and start.config.get("teacher") != name:
        raise ValueError(f"--start {config.start} is not a student of the teacher {name}")
    if odd := [key for key in INHERITED_KEYS if start.config.get(key) != teacher.config.get(key)]:
        raise ValueError(f"--start {config.start} is no student of {teacher.name}: its {odd[0]} differs")
    if config.memory.lora_student:
        check_adapters(config, teacher, start)
    return start


def check_adapters(config: DistillConfig, teacher: Teacher, start: Model) -> None:
    """Raise a ValueError where a student lacks adapters of this run's form, or has some to other weights."""
    expected = required_teacher(config, teacher)
    if odd := [key for key, value in expected.items() if start.config.get(key) != value]:
        raise ValueError(
            f"--start {config.start} with --lora-student {config.memory.lora_student}: expected a student with "
            f"{odd[0]} {expected[odd[0]]!r}, its {odd[0]} is {start.config.get(odd[0])!r}; without --lora-student any "
            "student of this teacher can be given"
        )


def teacher_name(config: DistillConfig, teacher: Teacher) -> str:
    """Return the name that the teacher is loaded by, which holds in other folders too."""
    return teacher.config.get("source") or absolute_name(config.teacher)


def required_teacher(config: DistillConfig, teacher: Teacher) -> dict[str, Any]:
    """Return the entries of config.json of a student that needs its teacher: adapters, and networks not ours."""
    rank, entry = config.memory.lora_student, {"teacher": teacher_name(config, teacher)}
    if rank:
        return {"lora": {"rank": rank, "alpha": rank}, **entry}
    return {} if "network" in teacher.config else entry
