"""Tensors of many rows in safetensors files of equally many rows, memory-mapped.

A shard is written in full or not at all, so an interrupted set is completed by making the shards that are missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dmdistill.io.atomic import read_safetensors, write_safetensors

__all__ = ["ShardLayout", "Track", "gather_rows", "read_shard", "write_shards"]

Track = Callable[[Sequence[range], str], Iterable[range]]  # wraps batches of rows to show progress under a name
MakeBatch = Callable[[int, slice], dict[str, Tensor]]


@dataclass(frozen=True)
class ShardLayout:
    """Division of a set's rows into files folder/shard-00000.safetensors, ...

    Attributes:
        folder: where the files lie.
        count: rows of the set.
        size: rows of every shard but the last, which has what is left.
    """

    folder: Path
    count: int
    size: int

    def __len__(self) -> int:
        return math.ceil(self.count / self.size)

    def file(self, shard: int) -> Path:
        """Return the file of a shard."""
        return self.folder / f"shard-{shard:05d}.safetensors"

    def rows(self, shard: int) -> int:
        """Return the number of rows in a shard."""
        return min(self.size, self.count - shard * self.size)

    def batches(self, shard: int, size: int) -> list[range]:
        """Split a shard into batches; their rows are counted over all shards."""
        first, end = shard * self.size, shard * self.size + self.rows(shard)
        return [range(start, min(start + size, end)) for start in range(first, end, size)]

    def missing(self) -> list[int]:
        """Return the shards whose files do not exist."""
        return [shard for shard in range(len(self)) if not self.file(shard).exists()]


def write_shards(
    layout: ShardLayout, shards: Sequence[int], make_batch: MakeBatch, *, batch: int, track: Track, name: str
) -> None:
    """Make shards of these numbers batch by batch, rows in their order, and write each when it is complete.

    `make_batch`: (shard, rows of it) -> tensors by name. `track` shows progress in rows under `name`.
    """
    parts: list[dict[str, Tensor]] = []
    for rows in track([rows for shard in shards for rows in layout.batches(shard, batch)], name):
        shard, start = divmod(rows.start, layout.size)
        stop = start + len(rows)
        parts.append(make_batch(shard, slice(start, stop)))
        if stop == layout.rows(shard):
            write_safetensors(
                layout.file(shard), {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            )
            parts = []


def read_shard(file: Path, rows: int, row_shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Read a shard. ValueError, naming the file, where it is damaged or has other rows than these shapes by name."""
    shard = read_safetensors(file)
    shapes = {name: tuple(tensor.shape) for name, tensor in shard.items()}
    expected = {name: (rows, *shape) for name, shape in row_shapes.items()}
    if shapes != expected:
        raise ValueError(f"{file} holds {shapes}, expected {expected}; remove it to make it again")
    return shard


def gather_rows(shards: Sequence[dict[str, Tensor]], name: str, rows: Tensor) -> Tensor:
    """Gather rows (B,), counted over all shards, of the tensor of a name: B ..., on the CPU, in the stored dtype."""
    first = shards[0][name]
    result = first.new_empty(len(rows), *first.shape[1:])
    numbers = rows // len(first)
    for number in numbers.unique().tolist():
        here = numbers == number
        result[here] = shards[number][name][rows[here] % len(first)]
    return result
