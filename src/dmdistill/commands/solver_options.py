"""A teacher with the solver and the guidance that are given on the command line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dmdistill.commands.options import SolverOptions, flag_name, option_values
from dmdistill.models.model import Model, Teacher
from dmdistill.networks.diffusers_wrappers import DiffusersWrapper

__all__ = [
    "check_guidable",
    "embedded_guidance",
    "refuse_solver_options",
    "with_sampling_options",
    "with_solver_options",
]


def with_sampling_options(model: Model, ode: SolverOptions) -> Model:
    """Return a teacher with other solver options, and a student as it is. ValueError for a student with any."""
    if isinstance(model, Teacher):
        return with_solver_options(model, ode)
    refuse_solver_options(ode, f"{model.name} is a student, which has neither a solver nor guidance")
    return model


def refuse_solver_options(ode: SolverOptions, reason: str) -> None:
    """Raise a ValueError, naming the flags and the reason, where any of the options is given."""
    if given := [f"{flag_name(name)} {value}" for name, value in option_values(ode).items() if value is not None]:
        raise ValueError(f"{', '.join(given)}: {reason}: omit {'it' if len(given) == 1 else 'them'}")


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
