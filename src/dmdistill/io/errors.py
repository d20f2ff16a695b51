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
    """Import a module of an optional package, one of dmdistill's `extra` where given.

    ValueError, saying what needs it (a flag, a file) and how to install it, where it is missing or fails to import.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        install = package if extra is None else f"'dmdistill[{extra}]'"
        raise ValueError(f"{needed_by} needs {package} ({first_line(error)}): pip install {install}") from None


@contextmanager
def describe_write_errors(path: Path) -> Iterator[None]:
    """Replace an OSError inside the block, of a full disk say, by one that names the file and the cause in one line.

    Also where `torch.save` hides it behind a RuntimeError of its zip writer, as it does when it is given an open file.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise OSError(f"{path} cannot be written: {cause.strerror or first_line(cause)}") from None
