"""Functions of the user's own, by package.module:function, and what goes wrong in them, in one line."""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dmdistill.io.errors import did_you_mean, first_line

__all__ = ["describe_user_error", "import_function", "is_user_error"]

PACKAGE = Path(__file__).parents[1]
STDLIB = Path(sysconfig.get_path("stdlib"))
FOLDERS: set[Path] = set()  # of the modules that were imported for the user


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
    except Exception as error:  # the user's code may raise anything
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):  # the module itself, not one that it needs
            where = f"in the current folder, {os.getcwd()}, nor among the installed packages"
            raise ValueError(f"{what} {name}: there is no module {missing!r} {where}") from None
        raise ValueError(f"{what} {name}: {describe_user_error(error)}") from error
    if function is None:
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module_name]
        raise ValueError(f"{what} {name}: {module_name} has no {function_name!r}{did_you_mean(function_name, own)}")
    if file := getattr(module, "__file__", None):
        FOLDERS.add(Path(file).resolve().parent)
    if not callable(function):
        raise ValueError(f"{what} {name}: it is a {type(function).__name__}, expected a function")
    return function


def describe_user_error(error: Exception) -> str:
    """Return what went wrong, in one line, and where in the user's code."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    own = [one for one in frames if not one.filename.startswith("<") and not in_library(one.filename)]
    where = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {first_line(error)}{where}"


def is_user_error(error: BaseException) -> bool:
    """Whether an error came up in a function of the user's own, or in what it called."""
    files = [one.filename for one in traceback.extract_tb(error.__traceback__) if not one.filename.startswith("<")]
    return any(FOLDERS & {*Path(file).resolve().parents} and not in_library(file) for file in files)


def in_library(file: str) -> bool:
    """Whether a file is of this package, of an installed one, or of Python."""
    parents = Path(file).parents
    return bool({"site-packages", "dist-packages"} & {*Path(file).parts}) or PACKAGE in parents or STDLIB in parents
