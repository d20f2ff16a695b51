"""The states of a run on disk, each verified before it is believed.

    FOLDER/checkpoints/step-00000500.pt    what `Trainer` needs to go on after 500 steps

A file is PyTorch's zip: it holds the CRC-32 of every part, so what a disk or a power cut spoilt is known.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dmdistill.files import first_line, written_whole

__all__ = ["Checkpoints", "DamagedError", "read"]


class DamagedError(ValueError):
    """A checkpoint is cut short or spoilt. The message is the reason alone."""


class Checkpoints:
    """Keeps the last few states of a run.

    Args:
        folder: of the run. keep: how many states stay.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder, self.keep = folder / "checkpoints", keep

    def files(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.folder.glob("step-*.pt"))

    def steps(self) -> list[int]:
        return [int(file.stem.removeprefix("step-")) for file in self.files()]

    def write(self, step: int, state: dict[str, Any]) -> None:
        """Write the state whole, then drop all but the last few. Files of later steps are of no past of this run."""
        with written_whole(self.folder / f"step-{step:08d}.pt") as temporary:
            try:
                torch.save(state, temporary)
            except RuntimeError as error:  # how torch says that the disk is full
                raise OSError(first_line(error)) from None
        found = list(zip(self.steps(), self.files(), strict=True))
        past = [file for one, file in found if one <= step]
        for file in {file for _, file in found} - set(past[-self.keep :]):
            file.unlink()

    def newest(self, *, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
        """The newest whole state and its file; None where nothing was ever saved.

        say: told, in one line, of each damaged file that is passed over. ValueError where none is whole.
        """
        files = self.files()
        for i, file in enumerate(reversed(files), 1):
            try:
                return file, read(file)
            except DamagedError as error:
                reason = f"{file} cannot be used, it is cut short or damaged ({error})"
                if i < len(files):
                    say(f"{reason}: going on from the one before it")
                else:
                    raise ValueError(
                        f"{reason}{', and so are those after it' if i > 1 else ''}; remove {self.folder} to start anew"
                    ) from None
        return None


def read(file: Path) -> dict[str, Any]:
    """What `write` wrote. DamagedError where a byte of it that matters is another."""
    try:
        with zipfile.ZipFile(file) as parts:
            if (spoilt := parts.testzip()) is not None:
                raise DamagedError(f"the checksum of {spoilt} differs")
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # zip and torch have many ways of stumbling over bytes that mean nothing
        raise DamagedError(first_line(error)) from None
