"""Training checkpoints on disk, each verified when it is read.

    FOLDER/checkpoints/step-00000500.pt    all that `Trainer` needs to resume after 500 steps
    FOLDER/checkpoints/step-00000500/      the same where networks are sharded: see `sharded_state`

A file is PyTorch's zip archive, which holds a CRC-32 of each part, so damage by a disk or a power cut is detected. A
thread writes it from a copy in the host's memory, so that training waits only for the copy.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dmdistill.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from dmdistill.io.atomic import atomic_write
from dmdistill.io.errors import first_line
from dmdistill.training.sharded_state import INDEX, STATE_FILE, differing_file, join_shards, remove

__all__ = [
    "Checkpoints",
    "DamagedCheckpointError",
    "map_tensors",
    "read_checkpoint",
    "read_shards",
    "write_single_file",
]


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
        self.pending: Any = None  # a future
        self.group: Any = None  # of the processes whose threads write shards together
        self.pending_step = 0

    def files(self) -> list[Path]:
        """List the files and folders of the checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if path.suffix == ".pt" or path.is_dir())

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

    def write_shards(self, step: int, state: dict[str, Any], shards: dict[str, Tensor]) -> None:
        """Begin to write the checkpoint of sharded networks; all processes call it, and no tensor may be on its way.

        OSError, naming the file, if the one before could not be written.

        Args:
            step: training step.
            state: all that is no shard, as `split_shards` returns it.
            shards: the sharded tensors by name.
        """
        from dmdistill.training.shard_storage import ShardWriter, begin_to_save

        self.wait()
        folder = self.folder / f"step-{step:08d}"
        writer = ShardWriter(folder, map_tensors(copy_to_host, state), lambda: self.remove_others(folder))
        self.group = self.group or dist.new_group(backend="gloo")  # no other work goes through it
        self.pending_step, self.pending = step, begin_to_save(shards, writer, self.group)
        if not self.background:
            self.wait()

    def wait(self) -> None:
        """Wait until nothing is being written. OSError, naming the file, if it could not be."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            try:
                pending.result()
            except Exception:
                raise
            except BaseException as error:  # DCP's, of all processes
                from dmdistill.training.shard_storage import describe_failure

                raise OSError(describe_failure(error)) from None

    def wait_together(self, processes: ProcessGroup) -> None:
        """Wait until nothing is being written in any of some processes. OSError in all of them, if it could not be."""
        processes.on_main(self.wait)
        self.wait()

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
        self.remove_others(self.folder / f"step-{step:08d}.pt")

    def remove_others(self, newest: Path) -> None:
        """Remove all checkpoints but the newest and the last few before it, and incomplete folders."""
        earlier = [file for file in self.files() if file_step(file) < file_step(newest)]
        kept = {newest, *earlier[max(len(earlier) - self.keep + 1, 0) :]}
        for path in set(self.files()) - kept:
            remove(path)
        for path in [path for path in self.folder.glob(".step-*") if path.is_dir()]:
            shutil.rmtree(path, ignore_errors=True)

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


def read_checkpoint(file: Path, *, verify_shards: bool = True) -> dict[str, Any]:
    """Read and verify a checkpoint. DamagedCheckpointError if any byte that matters has changed.

    Args:
        file: of the checkpoint, or its folder, whose shards are not read.
        verify_shards: read them, too, for their checksums.
    """
    try:
        if file.is_dir():
            state = read_checkpoint(file / STATE_FILE)
            if verify_shards and (damaged := differing_file(file, state[INDEX]["files"])) is not None:
                raise DamagedCheckpointError(f"the checksum of {damaged} differs")
            return state
        with zipfile.ZipFile(file) as archive:
            if (damaged := archive.testzip()) is not None:
                raise DamagedCheckpointError(f"the checksum of {damaged} differs")
            if odd := [entry.filename for entry in archive.infolist() if entry.external_attr]:  # no checksum has these
                raise DamagedCheckpointError(f"{odd[0]} is marked as no file")
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile and torch raise many kinds at bytes that mean nothing
        raise DamagedCheckpointError(first_line(error)) from None


def read_shards(
    part: dict[str, Any],
    folder: Path,
    state: dict[str, Any],
    name: str,
    tensor_like: Callable[[str], Tensor],
    processes: ProcessGroup = SINGLE_PROCESS,
) -> dict[str, Any]:
    """Copy a part of a checkpoint's state with its shards, read in the form that they have here: cut anew, or whole.

    Args:
        part: of the state. It is returned as it is where it has no shards.
        folder: of the checkpoint.
        state: of the checkpoint.
        name: of the part, with which the names of its shards begin.
        tensor_like: returns an empty tensor for the rest of a name.
        processes: that read together.

    Raises:
        ValueError: a shard is missing or has another shape.
    """
    targets: dict[str, Tensor] = {}

    def find(shard: str) -> Tensor:
        targets[shard] = tensor_like(shard.removeprefix(name))
        return targets[shard]

    joined = join_shards(part, find)
    if targets:
        from dmdistill.training.shard_storage import load_shards  # which is slow to import

        load_shards(folder, state[INDEX]["tensors"], targets, processes)
    return joined


def write_single_file(folder: Path) -> Path:
    """Write the checkpoint of a folder as the single file that a run without shards writes; return the file.

    All of it is in memory for that. DamagedCheckpointError if any byte that matters has changed.
    """
    state = read_checkpoint(folder)
    tensors = state[INDEX]["tensors"]

    def tensor_like(name: str) -> Tensor:
        return torch.empty(tensors[name]["shape"], dtype=getattr(torch, tensors[name]["dtype"]))

    state["updates"] = read_shards(state["updates"], folder, state, "", tensor_like)
    del state[INDEX]
    file = folder.with_suffix(".pt")
    with atomic_write(file) as temporary, temporary.open("wb") as stream:
        torch.save(state, stream)
    return file
