"""Training checkpoints of sharded networks: a folder, to which each process writes its shards.

    FOLDER/checkpoints/step-00000500/state.pt                    all that is no shard, and where each shard is
    FOLDER/checkpoints/step-00000500/shards-00000.safetensors    those of the first process, and so on

state.pt is read without running code, and its parts have a CRC-32; it has those of the other files. The folder gets its
name once all of it is on disk.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from dmdistill.distributed.sharding import is_sharded_tensor

__all__ = ["INDEX", "STATE_FILE", "differing_file", "file_checksum", "join_shards", "remove", "split_shards"]

STATE_FILE = "state.pt"
INDEX = "shards"  # of the state: {"tensors": {name: its shape, dtype and chunks}, "files": {name: CRC-32}}
SHARD = "shard"  # {SHARD: name} stands for a tensor in the state


def split_shards(state: Any, shards: dict[str, Tensor], name: str = "") -> Any:
    """Copy a state with {"shard": name} in the place of each sharded tensor, which joins `shards` by that name.

    Args:
        state: of dicts, lists and tuples.
        shards: gets the sharded tensors.
        name: of the state; below it keys and indices follow, each after a "/".
    """
    if is_sharded_tensor(state):
        shards[name] = state
        return {SHARD: name}
    if isinstance(state, Mapping):
        return {key: split_shards(value, shards, f"{name}/{key}") for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(split_shards(value, shards, f"{name}/{i}") for i, value in enumerate(state))
    return state


def join_shards(state: Any, find: Callable[[str], Tensor]) -> Any:
    """Copy a state with find(name) in the place of each {"shard": name}."""
    if isinstance(state, Mapping):
        if set(state) == {SHARD}:
            return find(state[SHARD])
        return {key: join_shards(value, find) for key, value in state.items()}
    return type(state)(join_shards(value, find) for value in state) if isinstance(state, list | tuple) else state


def file_checksum(file: Path) -> int:
    """Return the CRC-32 of a file."""
    crc = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


def differing_file(folder: Path, checksums: Mapping[str, int]) -> str | None:
    """Return the name of a file in a folder whose CRC-32 is another one, None for none; OSError if one is missing."""
    with ThreadPoolExecutor(8) as pool:  # zlib and the disk work outside of Python's lock
        found = pool.map(lambda name: file_checksum(folder / name), checksums)
        return next((name for name, crc in zip(checksums, found, strict=True) if crc != checksums[name]), None)


def remove(path: Path) -> None:
    """Remove the file or folder of a checkpoint; a folder loses its name first, as it must be whole to have it."""
    if path.is_dir():
        path = path.rename(path.with_name(f".{path.name}.old"))
        shutil.rmtree(path)
    else:
        path.unlink()
