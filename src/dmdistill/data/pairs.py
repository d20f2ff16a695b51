"""Noise-image pairs on disk: safetensors shards, memory-mapped, each reproducible from (seed, shard) alone.

    FOLDER/pairs.json                what made them: `PairSettings`
    FOLDER/shard-00000.safetensors   z: fp32, N C H W.  y: fp16, the same shape.  index: int64, N, of the conditions,
                                     where there are any.

A shard is written whole or not at all, so a half-made set is gone on with by making the shards that are missing.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmdistill.data.seeds import derive_seed
from dmdistill.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from dmdistill.io.atomic import read_json, read_safetensors, write_json, write_safetensors
from dmdistill.io.folders import exclusive_folder

__all__ = ["PairDataset", "PairSettings", "make_pairs"]

KINDS = {"str": ("str",), "int": ("int",), "float": ("int", "float")}  # of JSON's values, by the field's annotation
Maker = Callable[[Tensor, Tensor | None], Tensor]
Track = Callable[[Sequence[Any], str], Iterable[Any]]
Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True, kw_only=True)
class PairSettings:
    """All that decides a set of pairs.

    Attributes:
        teacher: name and digest of the weights.
        conditions: what it can be told, in words.
        solver, steps, guidance: of the ODE.
        seed, count, shard_size: which noise, how many, how many per file.
        precision: dtype the teacher computes in.
    """

    teacher: str
    conditions: str
    solver: str
    steps: int
    guidance: float
    seed: int
    count: int
    shard_size: int
    precision: str

    @property
    def shards(self) -> int:
        return math.ceil(self.count / self.shard_size)

    def rows(self, shard: int) -> int:
        """Pairs in a shard: the last one holds what is left."""
        return min(self.shard_size, self.count - shard * self.shard_size)


def make_pairs(
    folder: Path,
    settings: PairSettings,
    *,
    draw: Draw,
    generate: Maker,
    batch: int,
    device: torch.device,
    track: Track = lambda items, name: items,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> PairDataset:
    """Make the shards that are missing and open the set.

    Args:
        draw: (n, rng) -> (z, index), the conditions by their numbers. generate: (z, index) -> y, the teacher's ODE.
        batch: pairs per call. track: wraps the list of batches to show progress.
        processes: that make them together, each some of the shards.

    ValueError where the folder holds pairs made otherwise, or a process of others is making pairs in it.
    """
    if min(settings.count, settings.shard_size, batch) < 1:
        raise ValueError(f"{settings.count} pairs, {settings.shard_size} a shard, {batch} a batch: expected 1 or more")
    with ExitStack() as held:

        def take() -> list[int]:
            held.enter_context(exclusive_folder(folder))
            describe(folder, settings)
            return [shard for shard in range(settings.shards) if not shard_file(folder, shard).exists()]

        started = time.perf_counter()
        missing = processes.on_main(take)
        rng = torch.Generator(device)
        own = processes.split(missing)
        make(own, folder, settings, draw=draw, generate=generate, batch=batch, rng=rng, track=track)
        processes.barrier()
        if missing and processes.is_main:
            made = sum(settings.rows(shard) for shard in missing)
            seconds = (time.perf_counter() - started) / made
            write_json(folder / "pairs.json", {**asdict(settings), "seconds_per_image": seconds})
        processes.barrier()
    return PairDataset(folder)


def describe(folder: Path, settings: PairSettings) -> None:
    """Write pairs.json where there is none. ValueError where it is of other settings."""
    described = folder / "pairs.json"
    if described.exists():
        found, _ = read_settings(described)
        if odd := [key for key, value in asdict(settings).items() if getattr(found, key) != value]:
            raise ValueError(f"{folder} holds pairs of other settings: {', '.join(odd)} differ; choose another folder")
    else:
        write_json(described, {**asdict(settings), "seconds_per_image": None})


def make(
    shards: Sequence[int],
    folder: Path,
    settings: PairSettings,
    *,
    draw: Draw,
    generate: Maker,
    batch: int,
    rng: torch.Generator,
    track: Track,
) -> None:
    """Make these shards."""
    jobs = [(shard, start) for shard in shards for start in range(0, settings.rows(shard), batch)]
    z, index, y = torch.empty(0), None, []
    for shard, start in track(jobs, "making pairs"):
        if start == 0:  # a whole shard's noise in one draw, so that it does not depend on the batch
            z, index = draw(settings.rows(shard), rng.manual_seed(derive_seed(settings.seed, shard)))
            y = []
        rows = slice(start, start + batch)
        y.append(generate(z[rows], index[rows] if index is not None else None))
        if start + batch >= len(z):
            save_shard(shard_file(folder, shard), z, torch.cat(y), index)


def save_shard(file: Path, z: Tensor, y: Tensor, index: Tensor | None) -> None:
    if not torch.isfinite(y).all():
        raise ValueError("the teacher's solver gave NaN or infinity: try --precision fp32")
    tensors = {"z": z, "y": y.half()} | ({"index": index} if index is not None else {})
    write_safetensors(file, tensors)


def read_settings(file: Path) -> tuple[PairSettings, float | None]:
    """What pairs.json says, and the seconds an image took, where known. ValueError where it is something else."""
    found = read_json(file)
    fields = {field.name: field.type for field in dataclasses.fields(PairSettings)}
    if not isinstance(found, dict):
        raise ValueError(f"{file} does not describe pairs: it holds a {type(found).__name__}")
    if odd := found.keys() ^ {*fields, "seconds_per_image"}:
        raise ValueError(f"{file} does not describe pairs: too much or too little of {', '.join(sorted(odd))}")
    seconds = found.pop("seconds_per_image")
    for name, kind in fields.items():
        if type(found[name]).__name__ not in KINDS[str(kind)] or (name in ("count", "shard_size") and found[name] < 1):
            raise ValueError(f"{file} does not describe pairs: {name} is {found[name]!r}")
    return PairSettings(**found), seconds


def read_shard(file: Path, rows: int) -> dict[str, Tensor]:
    """A shard's tensors. ValueError, naming the file, where it is damaged or another set's."""
    shard = read_safetensors(file)
    shapes = {name: tuple(tensor.shape) for name, tensor in shard.items()}
    if not {"z", "y"} <= shapes.keys() <= {"z", "y", "index"} or shapes["z"] != shapes["y"]:
        raise ValueError(f"{file} holds {shapes}, expected z and y of one shape")
    if {len(tensor) for tensor in shard.values()} != {rows}:
        raise ValueError(f"{file} holds {shapes}, expected {rows} pairs")
    return shard


class PairDataset:
    """A finished set of pairs. Shards stay on disk, memory-mapped, until their rows are asked for."""

    def __init__(self, folder: Path) -> None:
        self.settings, self.seconds_per_image = read_settings(folder / "pairs.json")
        self.shards = [
            read_shard(shard_file(folder, shard), self.settings.rows(shard)) for shard in range(self.settings.shards)
        ]

    def __len__(self) -> int:
        return self.settings.count

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.shards[0]["z"].shape[1:])

    def __getitem__(self, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor | None]:
        """(z, y, index) of these rows, fp32, and the numbers of their conditions."""
        places = [divmod(row, self.settings.shard_size) for row in rows]

        def pick(key: str) -> Tensor:
            return torch.stack([self.shards[shard][key][row] for shard, row in places])

        return pick("z"), pick("y").float(), pick("index") if "index" in self.shards[0] else None

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """The step-th batch of an endless walk that shuffles each epoch: a function of the step alone."""
        return self[self.rows(step, size)]

    def rows(self, step: int, size: int) -> list[int]:
        """Of that batch."""
        size = min(size, len(self))
        epoch, index = divmod(step, len(self) // size)
        order = torch.randperm(
            len(self), generator=torch.Generator().manual_seed(derive_seed(self.settings.seed, epoch))
        )
        return order[index * size : (index + 1) * size].tolist()


def shard_file(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.safetensors"
