"""Folders that one process owns, and the folder of the cache."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from dmdistill.io.atomic import check_writable
from dmdistill.io.errors import describe_write_errors

__all__ = [
    "cache_folder",
    "check_new_folder",
    "exclusive_folder",
    "folder_in_turn",
    "new_folder",
    "removed_if_useless",
    "writable_cache_folder",
]

LOCK = ".lock"
TEMPORARY = re.compile(r"\..+(\.\d+-\d+|-\w+)\.tmp")  # names that `atomic_write` and `new_folder` write under


def cache_folder() -> Path:
    """Return the folder of files that can be made again.

    It is $DMDISTILL_CACHE, else $XDG_CACHE_HOME/dmdistill, else ~/.cache/dmdistill.
    """
    if own := os.environ.get("DMDISTILL_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "dmdistill"


def writable_cache_folder(name: str) -> Path:
    """Return a folder in the cache; where that cannot be written, a temporary one, which goes with the process."""
    folder = cache_folder() / name
    try:
        check_writable(folder / "file")
    except OSError:
        temporary = tempfile.TemporaryDirectory(prefix="dmdistill-")
        atexit.register(temporary.cleanup)
        return Path(temporary.name)
    return folder


def check_new_folder(folder: Path, advice: str, *, allowed: Sequence[str] = ()) -> None:
    """Raise ValueError where a folder to write is a file, or holds more than hidden files.

    Args:
        folder: to write.
        advice: at the end of the message.
        allowed: names that it may hold, too.
    """
    if folder.exists() and (
        not folder.is_dir()
        or any(not file.name.startswith(".") and file.name not in allowed for file in folder.iterdir())
    ):
        raise ValueError(f"{folder} already exists: {advice}")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill, whose content appears in `folder` when the block ends and is removed when it fails.

    What a killed process left half-written is removed by the next call for the same folder. A folder that exists with
    hidden files only, an empty git repository say, keeps them.

    Raises:
        ValueError: the folder is not new, or another process is filling it.
    """
    check_new_folder(folder, "choose another folder")
    target = folder.resolve()
    temporary, lock = (target.with_name(f".{target.name}{ending}") for ending in ("-partial.tmp", ".lock"))
    with describe_write_errors(folder):
        target.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(lock, folder):
        shutil.rmtree(temporary, ignore_errors=True)
        with describe_write_errors(folder):
            temporary.mkdir()
        try:
            yield temporary
            if target.exists():
                for entry in temporary.iterdir():
                    entry.rename(target / entry.name)
            else:
                temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def removed_if_useless(folder: Path, is_useful: Callable[[], bool], *, kept: Sequence[str] = ()) -> Iterator[None]:
    """Remove what the block made in a folder, and the folder if it is new, where it fails before that is of use.

    A failure is any Exception but one of the disk, which may have room later; what an interruption or a kill leaves
    stays.

    Args:
        folder: to watch.
        is_useful: whether to leave all as it is, asked after a failure.
        kept: names in the folder that stay in any case.
    """
    before = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except OSError:
        raise
    except Exception:
        if folder.is_dir() and not is_useful():
            for entry in [entry for entry in folder.iterdir() if entry.name not in {*before, *kept}]:
                with suppress(OSError):
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            with suppress(OSError):  # not empty
                for path in new:
                    path.rmdir()
        raise


@contextmanager
def folder_in_turn(folder: Path) -> Iterator[None]:
    """Make a folder, and wait until no other process is within such a block for it: one fills it, the others find it.

    OSError, naming the folder, where it cannot be made.
    """
    with describe_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / LOCK, folder, wait=True):
        yield


@contextmanager
def exclusive_folder(folder: Path) -> Iterator[None]:
    """Lock a folder for this process, make it where it is missing, and remove half-written files of a killed process.

    Only temporary files of this package are removed, from the folder and from those of its folders that are not locked
    by another process.

    Raises:
        ValueError: another process has locked the folder.
    """
    with describe_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / LOCK, folder):
        remove_temporary_files(folder)
        yield


@contextmanager
def file_lock(file: Path, folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a folder; where another process holds it, wait for it, or raise a ValueError.

    The operating system releases the lock when the process ends, however it ends. A place that cannot be written, or
    that lies on a file system without locks, is not locked.
    """
    lock = FileLock(file)
    try:
        lock.acquire(blocking=wait)
    except Timeout:
        raise ValueError(f"{folder} is in use by another process: wait for its end, or choose another --out") from None
    except (OSError, NotImplementedError):
        pass  # nothing to write here, or no locks
    try:
        yield
    finally:
        with suppress(OSError):
            file.unlink()
        lock.release()


def remove_temporary_files(folder: Path) -> None:
    """Remove what a killed process left half-written in a folder and its unlocked subfolders."""
    unlocked = [part for part in folder.iterdir() if part.is_dir() and not (part / LOCK).exists()]
    for file in [file for place in (folder, *unlocked) for file in place.iterdir() if TEMPORARY.fullmatch(file.name)]:
        with suppress(OSError):
            shutil.rmtree(file) if file.is_dir() else file.unlink()
