"""Shards on disk by PyTorch's DCP (torch.distributed.checkpoint), which plans who writes and who reads what.

DCP's own files have metadata that is a pickle; here shards are in safetensors, and the metadata is in state.pt (see
`sharded_state`), which is read without running code. A module of its own, as DCP takes seconds to import.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from dmdistill.distributed.process_group import ProcessGroup
from dmdistill.io.atomic import flush_to_disk
from dmdistill.io.errors import describe_write_errors, first_line
from dmdistill.training.device import is_machine_error
from dmdistill.training.sharded_state import INDEX, STATE_FILE, file_checksum, remove

__all__ = ["ShardReader", "ShardWriter", "begin_to_save", "describe_failure", "load_shards"]

FLAT: Any = {"flatten_state_dict": False, "flatten_sharded_tensors": False}  # names are flat already


class ShardWriter(StorageWriter):
    """Writes the shards of each process to its file; the first process then writes the state and names the folder.

    Args:
        folder: that the checkpoint becomes.
        state: all that is no shard; read in the first process.
        finished: called in the first process once the folder has its name.
    """

    def __init__(self, folder: Path, state: dict[str, Any], finished: Callable[[], None]) -> None:
        self.folder, self.state, self.finished = folder, state, finished
        self.temporary = folder.with_name(f".{folder.name}.tmp")

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept from one checkpoint to the next."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Make an empty folder under a temporary name."""
        if is_coordinator:
            with describe_write_errors(self.folder):
                shutil.rmtree(self.temporary, ignore_errors=True)
                self.temporary.mkdir(parents=True)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Return the plan."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Return the plans."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this process's shards; of each the result has the file, the name in it, and the file's CRC-32."""
        from safetensors.torch import save_file

        name = f"shards-{dist.get_rank():05d}.safetensors"
        tensors: dict[str, Any] = {str(i): planner.resolve_data(item) for i, item in enumerate(plan.items)}
        with describe_write_errors(self.folder / name):
            save_file(
                {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, self.temporary / name
            )
            (self.temporary / name).chmod(0o644)
            flush_to_disk(self.temporary / name)
        crc = file_checksum(self.temporary / name)
        written: Future[list[WriteResult]] = Future()
        sizes = [tensor.nbytes for tensor in tensors.values()]
        written.set_result(
            [
                WriteResult(item.index, size, (name, str(i), crc))
                for i, (item, size) in enumerate(zip(plan.items, sizes, strict=True))
            ]
        )
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write state.pt, and rename the folder."""
        places = {(one.index.fqn, one.index.offset): one.storage_data for written in results for one in written}
        tensors = {}
        for name, stored in metadata.state_dict_metadata.items():
            assert isinstance(stored, TensorStorageMetadata)
            chunks = [[[*c.offsets], [*c.sizes], *places[name, c.offsets][:2]] for c in stored.chunks]
            dtype = str(stored.properties.dtype).removeprefix("torch.")
            tensors[name] = {"shape": [*stored.size], "dtype": dtype, "chunks": chunks}
        index = {"tensors": tensors, "files": {file: crc for file, _, crc in places.values()}}
        with describe_write_errors(self.folder):
            with (self.temporary / STATE_FILE).open("wb") as file:
                torch.save({**self.state, INDEX: index}, file)
            flush_to_disk(self.temporary / STATE_FILE)
            if self.folder.exists():
                remove(self.folder)
            self.temporary.rename(self.folder)
        self.finished()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Return False: the folder is an argument of the constructor."""
        return False


class ShardReader(StorageReader):
    """Reads shards, cut as they are wanted.

    Args:
        folder: of the checkpoint.
        tensors: their shape, dtype and chunks by name, from its state.
    """

    def __init__(self, folder: Path, tensors: dict[str, Any]) -> None:
        self.folder, self.tensors = folder, tensors

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept from one checkpoint to the next."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return DCP's metadata of the tensors."""
        return Metadata(
            {
                name: TensorStorageMetadata(
                    TensorProperties(dtype=getattr(torch, stored["dtype"])),
                    torch.Size(stored["shape"]),
                    [ChunkStorageMetadata(torch.Size(at), torch.Size(size)) for at, size, *_ in stored["chunks"]],
                )
                for name, stored in self.tensors.items()
            }
        )

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing is to be prepared."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Return the plan."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Return the plans."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copy the parts of shards that the plan wants to where it wants them."""
        from safetensors import safe_open

        places = {(n, *at): place for n, stored in self.tensors.items() for at, _, *place in stored["chunks"]}
        with ExitStack() as stack, torch.no_grad():
            files: dict[str, Any] = {}
            for item in plan.items:
                file, key = places[item.storage_index.fqn, *(item.storage_index.offset or ())]
                if file not in files:
                    files[file] = stack.enter_context(safe_open(self.folder / file, "pt"))
                wanted = zip(item.storage_offsets, item.lengths, strict=True)
                part = files[file].get_slice(key)[*(slice(start, start + length) for start, length in wanted)]
                target = planner.resolve_tensor(item).detach()
                target.copy_(part)
                planner.commit_tensor(item, target)
        read: Future[None] = Future()
        read.set_result(None)
        return read

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Return False: the folder is an argument of the constructor."""
        return False


def begin_to_save(shards: dict[str, Tensor], writer: ShardWriter, group: Any) -> Any:
    """Copy shards to the host's memory and return the future of a thread that writes them; all processes call it."""
    return async_save(shards, storage_writer=writer, planner=DefaultSavePlanner(**FLAT), process_group=group)


def load_shards(folder: Path, tensors: dict[str, Any], targets: dict[str, Tensor], processes: ProcessGroup) -> None:
    """Read shards into sharded tensors, however these are cut, or into whole ones; all processes call it.

    Args:
        folder: of the checkpoint.
        tensors: their shape, dtype and chunks, from its state.
        targets: tensors by their names in the checkpoint.
        processes: that read together.

    Raises:
        ValueError: a name or shape is another one, or a file cannot be read.
    """
    reader, planner = ShardReader(folder, tensors), DefaultLoadPlanner(**FLAT)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # of a single process
            load(targets, storage_reader=reader, planner=planner, process_group=processes.group)
    except (CheckpointException, RuntimeError, ValueError) as error:
        if is_machine_error(error):
            raise
        raise ValueError(f"{folder} cannot be read: {describe_failure(error)}") from None


def describe_failure(error: BaseException) -> str:
    """Return the first line of what failed, in whichever process."""
    failures = error.failures if isinstance(error, CheckpointException) else {}
    cause = next((exception for exception, _ in failures.values()), error)
    return first_line(cause)
