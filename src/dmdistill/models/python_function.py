"""Teachers of one's own: package.module:function, a function without arguments, annotated `-> Teacher`."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import sys
import traceback

from dmdistill.io.errors import first_line
from dmdistill.models.model import Teacher

__all__ = ["is_python_function", "load_python_function"]


def is_python_function(name: str) -> bool:
    """Return whether a name is of the form package.module:function."""
    return re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*", name) is not None


def load_python_function(name: str) -> Teacher:
    """Import a module, from the current folder too, and call the function that returns a teacher.

    Only a function that is annotated `-> Teacher` is called, as a student's config.json may name one, too.

    ValueError where there is no such module or function, where it fails, or where it returns something else.
    """
    module_name, _, function_name = name.partition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(f"teacher {name}: {describe(error)}") from error  # a module that the user's code needs
        where = f"in the current folder, {os.getcwd()}, nor among the installed packages"
        raise ValueError(f"teacher {name}: there is no module {error.name!r} {where}") from None
    except Exception as error:  # the user's code may raise anything
        raise ValueError(f"teacher {name}: {describe(error)}") from error
    if getattr(function, "__annotations__", {}).get("return") not in (Teacher, "Teacher"):
        raise ValueError(f"teacher {name}: expected a function that is annotated `-> Teacher`")
    try:
        teacher = function()
    except Exception as error:
        raise ValueError(f"teacher {name}: {describe(error)}") from error
    if not isinstance(teacher, Teacher):
        raise ValueError(f"teacher {name}: the function returned a {type(teacher).__name__}, expected a Teacher")
    teacher.denoiser.eval().requires_grad_(False)
    config = {"kind": "teacher"} | {key: getattr(teacher, key) for key in ("name", "licence", "feature_extractor")}
    return dataclasses.replace(teacher, config={**config, **teacher.config, "source": name})


def describe(error: Exception) -> str:
    """Return what went wrong, in one line, and where in the user's code."""
    frames = [one for one in traceback.extract_tb(error.__traceback__) if not one.filename.startswith("<frozen ")]
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames[1:] else ""
    return f"{type(error).__name__}: {first_line(error)}{where}"
