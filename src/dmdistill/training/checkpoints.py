"""The states of a run on disk, each verified before it is believed.

    FOLDER/checkpoints/step-00000500.pt    what `Trainer` needs to go on after 500 steps

A file is PyTorch's zip: it holds the CRC-32 of every part, so what a disk or a power cut spoilt is known. It is written
by a thread from a copy in the host's memory, so that training waits for the copy alone.
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
    """A checkpoint is cut short or spoilt. The message is the reason alone."""


class Checkpoints:
    """Keeps the last few states of a run.

    Args:
        folder: of the run. keep: how many states stay.
        background: write by a thread; else training waits for the disk.
    """

    def __init__(self, folder: Path, *, keep: int, background: bool = True) -> None:
        self.folder, self.keep, self.background = folder / "checkpoints", keep, background
        self.thread = ThreadPoolExecutor(1, "checkpoints")
        self.writing: Future[None] | None = None
        self.begun = 0  # the step whose state was handed over last

    def files(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.folder.glob("step-*.pt"))

    def steps(self) -> list[int]:
        """Of the states on disk, and of the one that is being written."""
        return sorted({step_of(file) for file in self.files()} | ({self.begun} if self.writing is not None else set()))

    def write(self, step: int, state: dict[str, Any]) -> None:
        """Begin to write a state, once the one before is on disk. Its tensors may change as soon as this returns.

        OSError, naming the file, where the one before could not be written.
        """
        self.wait()
        if not self.background:
            return self.put(step, state)
        self.begun, self.writing = step, self.thread.submit(self.put, step, map_tensors(on_host, state))
        return None

    def wait(self) -> None:
        """Until nothing is being written. OSError, naming the file, where it could not be."""
        if self.writing is not None:
            writing, self.writing = self.writing, None
            writing.result()

    def wait_quietly(self) -> None:
        """The same without an error: for when another one is on its way."""
        with suppress(Exception):
            self.wait()

    @property
    def failed(self) -> bool:
        """Whether `wait` would raise at once."""
        return self.writing is not None and self.writing.done() and self.writing.exception() is not None

    def put(self, step: int, state: dict[str, Any]) -> None:
        """Write the state whole, then drop all but the last few. Files of later steps are of no past of this run."""
        with atomic_write(self.folder / f"step-{step:08d}.pt") as temporary:
            try:
                torch.save(state, temporary)
            except RuntimeError as error:  # how torch says that the disk is full
                raise OSError(first_line(error)) from None
        past = [file for file in self.files() if step_of(file) <= step]
        for file in set(self.files()) - set(past[-self.keep :]):
            file.unlink()

    def newest(self, *, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
        """The newest whole state and its file; None where nothing was ever saved.

        say: told, in one line, of each damaged file that is passed over. ValueError where none is whole.
        """
        self.wait_quietly()
        files = self.files()
        for i, file in enumerate(reversed(files), 1):
            try:
                return file, read_checkpoint(file)
            except DamagedCheckpointError as error:
                reason = f"{file} cannot be used, it is cut short or damaged ({error})"
                if i < len(files):
                    say(f"{reason}: going on from the one before it")
                else:
                    raise ValueError(
                        f"{reason}{', and so are those after it' if i > 1 else ''}; remove {self.folder} to start anew"
                    ) from None
        return None


def step_of(file: Path) -> int:
    return int(file.stem.removeprefix("step-"))


def on_host(tensor: Tensor) -> Tensor:
    """A copy of its own, on the CPU."""
    return tensor.detach().to("cpu", copy=True)


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """A value of dicts, lists and tuples, with function(tensor) in the place of each tensor."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(function, one) for key, one in value.items()}
    return type(value)(map_tensors(function, one) for one in value) if isinstance(value, list | tuple) else value


def read_checkpoint(file: Path) -> dict[str, Any]:
    """What `write` wrote. DamagedError where a byte of it that matters is another."""
    try:
        with zipfile.ZipFile(file) as parts:
            if (spoilt := parts.testzip()) is not None:
                raise DamagedCheckpointError(f"the checksum of {spoilt} differs")
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # zip and torch have many ways of stumbling over bytes that mean nothing
        raise DamagedCheckpointError(first_line(error)) from None
