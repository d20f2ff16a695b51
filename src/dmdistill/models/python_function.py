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
    """Whether it reads package.module:function."""
    return re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*", name) is not None


def load_python_function(name: str) -> Teacher:
    """Import the module, from the current folder too, and call the function.

    A student's config.json names such a function, too: so only one that is annotated `-> Teacher` is ever called.

    ValueError where there is no such module or function, or where it answers with something else.
    """
    module_name, _, function_name = name.partition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:  # whatever its author's code raises is for its author
        raise ValueError(f"teacher {name}: {said(error)}") from error
    if getattr(function, "__annotations__", {}).get("return") not in (Teacher, "Teacher"):
        raise ValueError(f"teacher {name}: expected a function that is annotated `-> Teacher`")
    try:
        teacher = function()
    except Exception as error:
        raise ValueError(f"teacher {name}: {said(error)}") from error
    if not isinstance(teacher, Teacher):
        raise ValueError(f"teacher {name}: the function answers with a {type(teacher).__name__}, expected a Teacher")
    teacher.denoiser.eval().requires_grad_(False)
    about = {
        "kind": "teacher",
        "name": teacher.name,
        "licence": teacher.licence,
        "feature_extractor": teacher.feature_extractor,
    }
    return dataclasses.replace(teacher, config={**about, **teacher.config, "source": name})


def said(error: Exception) -> str:
    """What went wrong, in a line, and where in the author's code."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames[1:] else ""
    return f"{type(error).__name__}: {first_line(error)}{where}"
