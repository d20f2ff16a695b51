"""A folder that cannot be written, on a full disk say: one error, whichever library writes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dmdistill.io.errors import first_line

__all__ = ["describe_folder_errors"]

SAFETENSORS = re.compile(  # "I/O error: No space left on device (os error 28)"; before its version 0.6 the other
    r'([^:]+) \(os error \d+\)|message: "([^"]+)"'
)
DESCRIBED = " cannot be written: "  # in the message of `describe_write_errors`


@contextmanager
def describe_folder_errors(folder: Path, temporary: Path) -> Iterator[None]:
    """Replace an error of writing inside the block by an OSError of one line with the folder and the cause.

    Those of safetensors are no OSError. Errors of files elsewhere, which are read, stay as they are.

    Args:
        folder: that the error names.
        temporary: the folder that is written, whose content would go there.
    """
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        if "Error while serializing" not in str(error):  # of a file that was read
            raise
        match = SAFETENSORS.search(str(error))
        cause = (match[1] or match[2]).strip() if match else first_line(error)
    except OSError as error:
        if (cause := write_cause(error, temporary)) is None:
            raise
    else:
        return
    raise OSError(f"{folder}{DESCRIBED}{cause}") from None


def write_cause(error: OSError, temporary: Path) -> str | None:
    """Return the cause of an error of writing below a folder; None for an error of something else."""
    if error.errno is None:  # a message only, maybe of `describe_write_errors`
        file, _, cause = str(error).partition(DESCRIBED)
        return cause if cause and Path(file).is_relative_to(temporary) else None
    files = [file for file in (error.filename, error.filename2) if file is not None]
    written = not files or any(Path(str(file)).is_relative_to(temporary) for file in files)  # an open file has no name
    return (error.strerror or first_line(error)) if written else None
