"""Training checkpoints on disk, each verified when it is read.

    FOLDER/checkpoints/step-00000500.pt    all that `Trainer` needs to resume after 500 steps

A file is PyTorch's zip archive, which holds a CRC-32 of each part, so damage by a disk or a power cut is detected. A
thread writes it from a copy in the host's memory, so that training waits only for the copy.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmdistill.io.atomic import atomic_write
from dmdistill.io.errors import first_line

__all__ = ["Checkpoints", "DamagedCheckpointError", "map_tensors", "read_checkpoint"]


class DamagedCheckpointError(ValueError):
    """A checkpoint file is cut short or damaged. The message is only the reason."""


class Checkpoints:
    """The last few checkpoints of a run.

    Args:
        folder: the run's folder.
        keep: number of checkpoints that stay on disk.
        background: write by a thread; otherwise training waits for the disk.
    """

    def __init__(self, folder: Path, *, keep: int, background: bool = True) -> None:
        self.folder, self.keep, self.background = folder / "checkpoints", keep, background
        self.thread = ThreadPoolExecutor(1, "checkpoints")
        self.pending: Future[None] | None = None
        self.pending_step = 0

    def files(self) -> list[Path]:
        """List the files of the checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*.pt"))

    def steps(self) -> list[int]:
        """List the steps of the checkpoints on disk and of the one that is being written."""
        pending = {self.pending_step} if self.pending is not None else set()
        return sorted({file_step(file) for file in self.files()} | pending)

    def write(self, step: int, state: dict[str, Any]) -> None:
        """Begin to write a checkpoint, once the one before is on disk; the state's tensors may then change.

        OSError, naming the file, if the one before could not be written.
        """
        self.wait()
        if self.background:
            self.pending_step = step
            self.pending = self.thread.submit(self.write_file, step, map_tensors(copy_to_host, state))
        else:
            self.write_file(step, state)

    def wait(self) -> None:
        """Wait until nothing is being written. OSError, naming the file, if it could not be."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            pending.result()

    def wait_quietly(self) -> None:
        """Wait until nothing is being written, without an error, for when another error is on its way."""
        with suppress(Exception):
            self.wait()

    @property
    def failed(self) -> bool:
        """Whether `wait` would raise at once."""
        return self.pending is not None and self.pending.done() and self.pending.exception() is not None

    def write_file(self, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint, then remove all but the last few up to it, and those of later steps."""
        with atomic_write(self.folder / f"step-{step:08d}.pt") as temporary, temporary.open("wb") as file:
            torch.save(state, file)  # an open file: given its name, torch hides why the disk refused
        earlier = [file for file in self.files() if file_step(file) <= step]
        for file in set(self.files()) - set(earlier[-self.keep :]):
            file.unlink()

    def newest(self, *, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
        """Read the newest undamaged checkpoint; None if there is no checkpoint, ValueError if all are damaged.

        Args:
            say: called with one line for each damaged checkpoint that is skipped.
        """
        self.wait_quietly()
        files = self.files()
        for i, file in enumerate(reversed(files), 1):
            try:
                return file, read_checkpoint(file)
            except DamagedCheckpointError as error:
                reason = f"{file} cannot be used, it is cut short or damaged ({error})"
                if i < len(files):
                    say(f"{reason}: resuming from the one before it")
                else:
                    later = ", and so are those after it" if i > 1 else ""
                    raise ValueError(f"{reason}{later}; remove {self.folder} to start from step 0") from None
        return None


def file_step(file: Path) -> int:
    """Return the training step of a checkpoint file."""
    return int(file.stem.removeprefix("step-"))


def copy_to_host(tensor: Tensor) -> Tensor:
    """Copy a tensor into the host's memory, also if it is there already."""
    return tensor.detach().to("cpu", copy=True)


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Copy a value of dicts, lists and tuples with function(tensor) in the place of each tensor."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(function, one) for key, one in value.items()}
    return type(value)(map_tensors(function, one) for one in value) if isinstance(value, list | tuple) else value


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Read and verify a checkpoint. DamagedCheckpointError if any byte that matters has changed."""
    try:
        with zipfile.ZipFile(file) as archive:
            if (damaged := archive.testzip()) is not None:
                raise DamagedCheckpointError(f"the checksum of {damaged} differs")
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile and torch raise many kinds at bytes that mean nothing
        raise DamagedCheckpointError(first_line(error)) from None
