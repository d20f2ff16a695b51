"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dmdistill.io.checksums import add_tensor_checksum, check_tensor_checksum

if TYPE_CHECKING:
    from torch import Tensor

LOCK = ".lock"
OURS = re.compile(r"\..+(\.\d+-\d+|-\w+)\.tmp")  # the temporary names of `atomic_write`, `atomic_folder`

__all__ = [
    "atomic_folder",
    "atomic_write",
    "cache_folder",
    "check_writable",
    "exclusive_folder",
    "first_line",
    "flush_to_disk",
    "named_write_errors",
    "read_json",
    "read_safetensors",
    "write_json",
    "write_safetensors",
]


def cache_folder() -> Path:
    """For what can be made again: $DMDISTILL_CACHE, else $XDG_CACHE_HOME/dmdistill, else ~/.cache/dmdistill."""
    if own := os.environ.get("DMDISTILL_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "dmdistill"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary name to write to; it becomes `path` when the block ends, and is gone when the block fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")  # one of each writer's own
    with named_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            flush_to_disk(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """Wait until the disk has what was written to a file: a name for what a power cut empties would be worse than none.

    That the name itself arrives is not waited for.
    """
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def named_write_errors(path: Path) -> Iterator[None]:
    """Within, an OSError, of a full disk say, tells in one line which file could not be written and why."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or first_line(error)}") from None


def check_writable(path: Path) -> None:
    """OSError, naming the file, where it could not be written: to ask before the work whose outcome it is to hold.

    Folders that are missing are not made.
    """
    with named_write_errors(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        place = next(folder for folder in path.absolute().parents if folder.exists())
        with tempfile.TemporaryFile(dir=place):
            pass


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill; it takes the place of `path` when the block ends, and is gone when the block fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def exclusive_folder(folder: Path) -> Iterator[None]:
    """A folder, made where it is missing, for this process alone; what a killed one left half-written is removed.

    Of this module's making alone, in the folder and in those of its folders that no other process may be at work in.
    The lock is the kernel's: it goes with its process, however that one ends. ValueError where another process has it.
    """
    with named_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = lock_in(folder)
    try:
        parts = [part for part in folder.iterdir() if part.is_dir() and not (part / LOCK).exists()]
        for left in [left for place in (folder, *parts) for left in place.iterdir() if OURS.fullmatch(left.name)]:
            with suppress(OSError):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield
    finally:
        if lock is not None:
            with suppress(OSError):
                (folder / LOCK).unlink()
            lock.close()


def lock_in(folder: Path) -> IO[bytes] | None:
    """The folder's lock, locked; None on systems without such locks, and where the folder cannot be written anyway."""
    try:
        import fcntl

        lock = (folder / LOCK).open("ab")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        here = os.stat(folder / LOCK)
    except BlockingIOError:
        raise ValueError(f"{folder} is in use by another process: wait for its end, or choose another --out") from None
    except FileNotFoundError:  # its holder removed it just now
        return lock_in(folder)
    except (ImportError, OSError):
        return None
    if os.path.samestat(here, os.fstat(lock.fileno())):
        return lock
    lock.close()
    return lock_in(folder)


def first_line(error: BaseException) -> str:
    """Of an error's message, or its kind where it has none: other libraries' messages run over many lines."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def write_json(path: Path, value: Any) -> None:
    """Indented, with a final newline; what JSON does not know, a path say, as its text."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """ValueError, naming the file, where it is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Tensors of any device and layout, sealed by a checksum."""
    from safetensors.torch import save

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:  # save_file would make it unreadable for others
        temporary.write_bytes(add_tensor_checksum(save(plain, metadata={"format": "pt"})))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The file's tensors, memory-mapped. ValueError, naming it, where it is missing, cut short, foreign or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    try:
        tensors = load_file(path)
        check_tensor_checksum(path)
        return tensors
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is cut short, damaged or no safetensors file: {error}") from None
