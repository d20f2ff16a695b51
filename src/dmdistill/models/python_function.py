"""Teachers of one's own: package.module:function, a function without arguments, annotated `-> Teacher`."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from torch import Tensor

from dmdistill.core.denoisers import Denoiser
from dmdistill.core.solvers import SOLVERS
from dmdistill.io.errors import did_you_mean
from dmdistill.io.user_functions import describe_user_error, import_function
from dmdistill.models.model import Teacher

__all__ = ["is_python_function", "load_python_function"]

LARGEST_TRIED = 1_000_000_000  # parameters of a network that is tried on a CPU within seconds


def is_python_function(name: str) -> bool:
    """Return whether a name is of the form package.module:function."""
    return re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*", name) is not None


def load_python_function(name: str) -> Teacher:
    """Call the function that returns a teacher, which is imported by `import_function`.

    Only a function that is annotated `-> Teacher` is called, as a student's config.json may name one, too.

    ValueError where there is no such module or function, where it fails, or where it returns something else.
    """
    function = import_function(name, "teacher")
    if getattr(function, "__annotations__", {}).get("return") not in (Teacher, "Teacher"):
        raise ValueError(f"teacher {name}: expected a function that is annotated `-> Teacher`")
    try:
        teacher = function()
    except Exception as error:
        raise ValueError(f"teacher {name}: {describe_user_error(error)}") from error
    if not isinstance(teacher, Teacher):
        raise ValueError(f"teacher {name}: the function returned a {type(teacher).__name__}, expected a Teacher")
    check_parts(name, teacher)
    teacher.denoiser.eval().requires_grad_(False)
    if teacher.num_parameters <= LARGEST_TRIED:
        try_network(name, teacher)
    config = {"kind": "teacher"} | {key: getattr(teacher, key) for key in ("name", "licence", "feature_extractor")}
    return dataclasses.replace(teacher, config={**config, **teacher.config, "source": name})


def check_parts(name: str, teacher: Teacher) -> None:
    """Raise a ValueError for a denoiser that is none of ours or has no weights, an unknown solver, or no steps."""
    if not isinstance(teacher.denoiser, Denoiser):
        kind = type(teacher.denoiser).__name__
        raise ValueError(
            f"teacher {name}: its denoiser is a {kind}, expected one of dmdistill's around it, such as "
            "FlowDenoiser(network, Flow()), which say what the network predicts"
        )
    if teacher.solver not in SOLVERS:
        hint = did_you_mean(teacher.solver, SOLVERS)
        raise ValueError(f"teacher {name}: solver {teacher.solver!r}, expected one of {', '.join(SOLVERS)}{hint}")
    if teacher.steps < 1:
        raise ValueError(f"teacher {name}: {teacher.steps} solver steps, expected 1 or more")
    if not teacher.num_parameters:
        raise ValueError(f"teacher {name}: its network has no parameters, a student would have nothing to train")


def try_network(name: str, teacher: Teacher) -> None:
    """Evaluate a teacher's network on two images of noise. ValueError where it fails, or returns no such images."""
    shape = " x ".join(map(str, (2, *teacher.shape)))
    classes = "cond None" if teacher.conditions is None else f"the labels of {len(teacher.conditions)} classes"
    called = f"teacher {name}: its network, called with x_t of {shape}, t of 2 and {classes},"
    outputs: list[Any] = []
    hook = teacher.network.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        mu = teacher.evaluate_on_noise(2)
    except Exception as error:  # whatever the user's network raises
        if outputs and not isinstance(outputs[-1], Tensor):
            raise ValueError(
                f"{called} returns a {type(outputs[-1]).__name__}, expected a tensor of {shape}"
            ) from error
        given = outputs[-1].shape if outputs else None
        if given is not None and given != (2, *teacher.shape):
            raise ValueError(f"{called} gives {' x '.join(map(str, given))}, expected {shape}") from error
        without_classes = teacher.conditions is None and "'NoneType'" in str(error)
        hint = "; if it takes classes, give the Teacher conditions=LabelSpace(names)" if without_classes else ""
        raise ValueError(f"{called} fails with {describe_user_error(error)}{hint}") from error
    finally:
        hook.remove()
    if mu.shape != (2, *teacher.shape):
        raise ValueError(f"{called} gives images of {' x '.join(map(str, mu.shape))}, expected {shape}")
    if mu.device.type != "meta" and not mu.isfinite().all():
        raise ValueError(f"{called} gives NaN or infinity")
