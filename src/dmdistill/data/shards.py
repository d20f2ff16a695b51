"""Tensors of many rows in safetensors files of equally many rows.

A shard is written in full or not at all, so an interrupted set is completed by making the shards that are missing.
A set is opened by the sizes of its files, in a time that does not grow with them. Beside its tensors a shard holds a
checksum of each row, `crc32`, int64 (N,), by which a row is verified whenever it is read. Shards of an earlier version,
which have none, are verified in full when they are first read.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from operator import index
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dmdistill.io.atomic import read_safetensors, write_safetensors
from dmdistill.io.errors import first_line

__all__ = ["ReadTensors", "ShardLayout", "Shards", "Track", "open_shards", "rows_in_memory", "write_shards"]

Track = Callable[[Sequence[range], str], Iterable[range]]  # wraps batches of rows to show progress under a name
CHECKSUM = "crc32"  # name of the tensor of rows' checksums
DTYPES = {  # as safetensors files name them
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
ReadTensors = Callable[[Tensor], dict[str, Tensor]]  # numbers of rows (B,) -> tensors by name, B ...
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
            tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            write_safetensors(layout.file(shard), tensors | {CHECKSUM: row_checksums(tensors)})
            read_safetensors(layout.file(shard))  # to verify what was written
            parts = []


class Shards:
    """A complete set, whose rows are read one by one from files that stay closed between batches.

    Nothing is memory-mapped: a page fault would read the megabytes around a row too, as far as the disk reads ahead.

    Args:
        layout: of its files.
        rows: what the files hold: tensors by name, of any number of rows and no content that matters.
    """

    def __init__(self, layout: ShardLayout, rows: Mapping[str, Tensor]) -> None:
        self.layout, self.rows = layout, dict(rows)
        self.located: dict[int, dict[str, int]] = {}

    def locate(self, number: int) -> dict[str, int]:
        """Return where each tensor of a shard begins in its file. ValueError, naming it, if it has other tensors."""
        if number not in self.located:
            self.located[number] = locate_tensors(self.layout.file(number), self.layout.rows(number), self.rows)
        return self.located[number]

    def read(self, rows: Tensor) -> dict[str, Tensor]:
        """Return the tensors, B ..., of rows (B,), on the CPU, in the stored dtype. ValueError where one is damaged."""
        result = {name: one.new_empty(len(rows), *one.shape[1:], device="cpu") for name, one in self.rows.items()}
        contents = {name: row_bytes(result[name]) for name in sorted(result)}
        places: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for i, row in enumerate(rows.tolist()):
            places[row // self.layout.size].append((i, row % self.layout.size))
        for number, numbered in places.items():
            starts = self.locate(number)
            with open_for_rows(self.layout.file(number)) as file:
                for i, place in numbered:
                    read_row(file, starts, place, {name: content[i] for name, content in contents.items()})
        return result

    def damaged(self, track: Track = lambda items, name: items) -> list[Path]:
        """Read all files to their ends and return those that are damaged. `track` shows progress in rows."""
        size = self.layout.size
        files = [rows for number in range(len(self.layout)) for rows in self.layout.batches(number, size)]
        read = (self.layout.file(rows.start // size) for rows in track(files, "verifying"))
        return [file for file in read if not is_sound(file)]


def is_sound(file: Path) -> bool:
    """Whether a file's content is what was written."""
    try:
        read_safetensors(file)
    except ValueError:
        return False
    return True


def open_shards(layout: ShardLayout, rows: Mapping[str, Tensor]) -> Shards:
    """Open a complete set by its files' sizes; see `Shards`. ValueError, naming the file, where one is not as expected.

    Headers are read of the first file and of those of another size: the last, if it has fewer rows, and damaged ones.
    """
    shards, size = Shards(layout, rows), file_size(layout.file(0))
    for number in range(len(layout)):
        if number == 0 or file_size(layout.file(number)) != size:
            shards.locate(number)
    return shards


def rows_in_memory(tensors: Mapping[str, Tensor]) -> ReadTensors:
    """Return the function that reads rows of tensors that no file holds."""
    return lambda rows: {name: tensor[rows] for name, tensor in tensors.items()}


def file_size(file: Path) -> int:
    """Return the number of bytes of a file. ValueError, naming it, where it does not exist."""
    try:
        return file.stat().st_size
    except OSError:
        raise ValueError(f"{file} does not exist") from None


def locate_tensors(file: Path, rows: int, expected_rows: Mapping[str, Tensor]) -> dict[str, int]:
    """Return where each tensor begins in a shard. ValueError, naming it, if it is cut short or has other tensors.

    A shard without checksums of its rows is read in full and verified.
    """
    found, starts = read_header(file)
    expected = {name: f"{DTYPES[tensor.dtype]} {[rows, *tensor.shape[1:]]}" for name, tensor in expected_rows.items()}
    if CHECKSUM in found:
        expected[CHECKSUM] = f"I64 {[rows]}"
    else:
        read_safetensors(file)
    if found != expected:
        raise ValueError(f"{file} holds {found}, expected {expected}; remove it to make it again")
    return starts


def read_header(file: Path) -> tuple[dict[str, str], dict[str, int]]:
    """Return dtype and shape of a safetensors file's tensors, and where each begins. ValueError if it is cut short.

    The library would map the file for that, and the disk read ahead.
    """
    size = file_size(file)
    try:
        with open_for_rows(file) as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(length, size)))
        header.pop("__metadata__", None)
        offsets = {name: [8 + length + index(at) for at in entry["data_offsets"]] for name, entry in header.items()}
        if size != (end := max(end for _, end in offsets.values())):
            raise ValueError(f"it has {size} bytes, expected {end}")
        found = {name: f"{entry['dtype']} {entry['shape']}" for name, entry in header.items()}
        return found, {name: start for name, (start, _) in offsets.items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is truncated, damaged or not a safetensors file: {first_line(error)}") from None


def open_for_rows(file: Path) -> FileIO:
    """Open a file of which single rows will be read, without read-ahead where the system can switch it off."""
    stream = FileIO(file)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
    return stream


def read_row(file: FileIO, starts: Mapping[str, int], place: int, contents: Mapping[str, np.ndarray]) -> None:
    """Read a row of a shard into memory by the names of its tensors, in their order. ValueError where it is damaged."""
    checksum = 0
    for name, content in contents.items():
        file.seek(starts[name] + place * content.nbytes)
        if file.readinto(content.data) != content.nbytes:
            raise ValueError(f"{file.name} was cut short after it was opened")
        checksum = zlib.crc32(content.data, checksum)
    if CHECKSUM in starts:
        file.seek(starts[CHECKSUM] + 8 * place)
        if int.from_bytes(file.read(8), "little") != checksum:
            raise ValueError(
                f"{file.name} is damaged: row {place} has not the checksum that was written; remove the file"
            )


def row_checksums(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the CRC-32 of each row's content over the tensors in the order of their names: int64 (N,)."""
    checksums = [0] * len(next(iter(tensors.values())))
    for _, tensor in sorted(tensors.items()):
        rows = row_bytes(tensor.detach().cpu().contiguous())
        checksums = [zlib.crc32(row.data, checksum) for row, checksum in zip(rows, checksums, strict=True)]
    return torch.tensor(checksums, dtype=torch.int64)


def row_bytes(tensor: Tensor) -> np.ndarray:
    """Return the memory of a contiguous tensor on the CPU, of any dtype, as bytes: (N, bytes of a row)."""
    return tensor.reshape(len(tensor), math.prod(tensor.shape[1:])).view(torch.uint8).numpy()
