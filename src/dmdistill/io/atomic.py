"""Files that are written in full or not at all, and readers of their formats."""

from __future__ import annotations

import errno
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmdistill.io.checksums import add_tensor_checksum, check_tensor_checksum
from dmdistill.io.errors import describe_write_errors

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "atomic_write",
    "check_writable",
    "flush_to_disk",
    "read_json",
    "read_safetensors",
    "write_json",
    "write_safetensors",
]


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to, which becomes `path` when the block ends and is removed when it fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")  # one of each writer's own
    with describe_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            flush_to_disk(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """Wait until the disk holds a file's content: a file renamed before that is empty after a power cut."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def check_writable(path: Path) -> None:
    """Raise OSError, naming the file, where it could not be written. No missing folder is made.

    Called before the work whose result goes to the file.
    """
    with describe_write_errors(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        parent = next(folder for folder in path.absolute().parents if folder.exists())
        with tempfile.TemporaryFile(dir=parent):
            pass


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON with a final newline; types that JSON lacks, a path say, as their text."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file. ValueError, naming the file, where it is missing or not JSON."""
    if not path.is_file():  # nor a pipe, which would wait
        raise ValueError(f"{path} {'is no file' if path.exists() else 'does not exist'}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors of any device and layout to a safetensors file that carries a checksum."""
    from safetensors.torch import save

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    parts = add_tensor_checksum(save(plain, metadata={"format": "pt"}))
    with atomic_write(path) as temporary, temporary.open("wb") as file:  # save_file's would be unreadable for others
        file.writelines(parts)


def read_safetensors(path: Path, *, verify: bool = True) -> dict[str, Tensor]:
    """Read a safetensors file, memory-mapped. ValueError, naming it, where it is missing, truncated or damaged.

    Without `verify` its checksum is not compared, for which the whole file would be read, but its header and size are.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ValueError(f"{path} {'is no file' if path.exists() else 'does not exist'}")
    try:
        tensors = load_file(path)
        if verify:
            check_tensor_checksum(path)
        return tensors
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is truncated, damaged or not a safetensors file: {error}") from None
