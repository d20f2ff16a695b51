"""Parts of error messages that name what was given, why it failed and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["describe_write_errors", "did_you_mean", "first_line", "import_optional"]


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class where it has none.

    Messages of other libraries run over many lines.
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint, "; did you mean 'fid'?", at the known name nearest to an unknown one; "" where none is near."""
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def import_optional(module: str, needed_by: str, *, extra: str | None = None) -> Any:
    """Import a module of a package that not every user has.

    Args:
        module: dotted name of the module.
        needed_by: what cannot work without it, a flag or a file, which begins the error message.
        extra: optional dependencies of dmdistill that include the package; None where it is installed by its own name.

    Raises:
        ValueError: the package is missing or fails to import; the message says how to install it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        install = package if extra is None else f"'dmdistill[{extra}]'"
        raise ValueError(f"{needed_by} needs {package} ({first_line(error)}): pip install {install}") from None


@contextmanager
def describe_write_errors(path: Path) -> Iterator[None]:
    """Replace an OSError inside the block, of a full disk say, by one that names the file and the cause in one line."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or first_line(error)}") from None
