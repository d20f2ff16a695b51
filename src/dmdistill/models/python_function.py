"""Teachers of one's own: package.module:function, a function without arguments, annotated `-> Teacher`."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from dmdistill.core.denoisers import Denoiser
from dmdistill.core.solvers import SOLVERS
from dmdistill.io.errors import did_you_mean, first_line
from dmdistill.models.model import Teacher

__all__ = ["import_function", "is_python_function", "load_python_function"]

LARGEST_TRIED = 1_000_000_000  # parameters of a network that is tried on a CPU within seconds
PACKAGE = Path(__file__).parents[1]


def is_python_function(name: str) -> bool:
    """Return whether a name is of the form package.module:function."""
    return re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*", name) is not None


def import_function(name: str, what: str) -> Callable[..., Any]:
    """Import the function that is named as module:function, from the current folder too.

    Args:
        name: module:function.
        what: the message begins with it: a flag, or "teacher".

    Raises:
        ValueError: there is no such module or function, or the module fails.
    """
    module_name, _, function_name = name.partition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
        function = getattr(module, function_name, None)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(f"{what} {name}: {describe(error)}") from error  # a module that the user's code needs
        where = f"in the current folder, {os.getcwd()}, nor among the installed packages"
        raise ValueError(f"{what} {name}: there is no module {error.name!r} {where}") from None
    except Exception as error:  # the user's code may raise anything
        raise ValueError(f"{what} {name}: {describe(error)}") from error
    if function is None:
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module_name]
        raise ValueError(f"{what} {name}: {module_name} has no {function_name!r}{did_you_mean(function_name, own)}")
    if not callable(function):
        raise ValueError(f"{what} {name}: it is a {type(function).__name__}, expected a function")
    return function


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
        raise ValueError(f"teacher {name}: {describe(error)}") from error
    if not isinstance(teacher, Teacher):
        raise ValueError(f"teacher {name}: the function returned a {type(teacher).__name__}, expected a Teacher")
    check_parts(name, teacher)
    teacher.denoiser.eval().requires_grad_(False)
    if teacher.num_parameters <= LARGEST_TRIED:
        try_network(name, teacher)
    config = {"kind": "teacher"} | {key: getattr(teacher, key) for key in ("name", "licence", "feature_extractor")}
    return dataclasses.replace(teacher, config={**config, **teacher.config, "source": name})


def check_parts(name: str, teacher: Teacher) -> None:
    """Raise a ValueError for a denoiser that is none of ours, and for an unknown solver."""
    if not isinstance(teacher.denoiser, Denoiser):
        kind = type(teacher.denoiser).__name__
        raise ValueError(
            f"teacher {name}: its denoiser is a {kind}, expected one of dmdistill's around it, such as "
            "FlowDenoiser(network, Flow()), which say what the network predicts"
        )
    if teacher.solver not in SOLVERS:
        hint = did_you_mean(teacher.solver, SOLVERS)
        raise ValueError(f"teacher {name}: solver {teacher.solver!r}, expected one of {', '.join(SOLVERS)}{hint}")


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
        given = outputs[-1].shape if outputs and isinstance(outputs[-1], Tensor) else None
        if given is not None and given != (2, *teacher.shape):
            raise ValueError(f"{called} gives {' x '.join(map(str, given))}, expected {shape}") from error
        without_classes = teacher.conditions is None and "'NoneType'" in str(error)
        hint = "; if it takes classes, give the Teacher conditions=LabelSpace(names)" if without_classes else ""
        raise ValueError(f"{called} fails with {describe(error)}{hint}") from error
    finally:
        hook.remove()
    if mu.shape != (2, *teacher.shape):
        raise ValueError(f"{called} gives images of {' x '.join(map(str, mu.shape))}, expected {shape}")
    if mu.device.type != "meta" and not mu.isfinite().all():
        raise ValueError(f"{called} gives NaN or infinity")


def describe(error: Exception) -> str:
    """Return what went wrong, in one line, and where in the user's code."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    own = [one for one in frames if not one.filename.startswith("<") and not in_library(one.filename)]
    where = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {first_line(error)}{where}"


def in_library(file: str) -> bool:
    """Whether a file is of this package or of an installed one."""
    return bool({"site-packages", "dist-packages"} & {*Path(file).parts}) or PACKAGE in Path(file).parents
