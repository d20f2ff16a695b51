"""Noise-image pairs on disk: safetensors shards, memory-mapped, each reproducible from seed and shard number.

FOLDER/pairs.json                the settings they were made with: `PairSettings`
FOLDER/shard-00000.safetensors   z: fp32, N C H W.  y: fp16, the same shape.  index: int64, N, of the conditions,
where there are any.
"""

from __future__ import annotations

import dataclasses
import reprlib
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from dmdistill.data.seeds import derive_seed
from dmdistill.data.shards import ShardLayout, Track, gather_rows, read_shard, write_shards
from dmdistill.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from dmdistill.io.atomic import read_json, read_safetensors, write_json
from dmdistill.io.checksums import add_checksum, pop_checksum
from dmdistill.io.folders import exclusive_folder, removed_if_useless

__all__ = ["PairDataset", "PairSettings", "check_space", "make_pairs", "open_pairs"]

JSON_TYPES = {"str": ("str",), "int": ("int",), "float": ("int", "float")}  # by a field's annotation
BYTES = 4 + 2  # of a number of z and of one of y
Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor | None]]
Generate = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True, kw_only=True)
class PairSettings:
    """Everything that decides a set of pairs.

    Attributes:
        teacher: name and digest of the weights of the model that generated the images.
        conditions: its conditions, in words.
        solver: of the ODE.
        steps: of the solver.
        guidance: guidance scale.
        seed: of the noise.
        count: number of pairs.
        shard_size: pairs per file.
        precision: dtype that the model computed in.
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


class PairDataset:
    """A complete set of pairs.

    Args:
        settings: they were made with.
        shards: tensors z, y and, with conditions, index, each N ..., memory-mapped.
        seconds_per_image: time that generating an image took, where known.
    """

    def __init__(
        self, settings: PairSettings, shards: Sequence[dict[str, Tensor]], *, seconds_per_image: float | None = None
    ) -> None:
        self.settings, self.shards, self.seconds_per_image = settings, shards, seconds_per_image

    def __len__(self) -> int:
        return self.settings.count

    @property
    def shape(self) -> tuple[int, ...]:
        """C H W of an image."""
        return tuple(self.shards[0]["z"].shape[1:])

    def __getitem__(self, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return z and y, fp32, B C H W, and the numbers of the conditions, int64 B, of these pairs."""
        index = torch.tensor(rows, dtype=torch.int64)
        z, y = (gather_rows(self.shards, name, index) for name in "zy")
        return z, y.float(), gather_rows(self.shards, "index", index) if "index" in self.shards[0] else None

    def rows(self, step: int, size: int) -> list[int]:
        """Return the pairs of a step's batch: epochs without end, each in an order of its own."""
        size = min(size, len(self))
        epoch, index = divmod(step, len(self) // size)
        rng = torch.Generator().manual_seed(derive_seed(self.settings.seed, epoch))
        return torch.randperm(len(self), generator=rng)[index * size : (index + 1) * size].tolist()


def open_pairs(folder: Path) -> PairDataset:
    """Open a complete set of pairs. ValueError, naming the file, where one is missing, damaged or of another set."""
    settings, seconds = read_settings(folder / "pairs.json")
    layout = ShardLayout(folder, settings.count, settings.shard_size)
    if file := next((file for file in map(layout.file, range(len(layout))) if not file.exists()), None):
        command = f"dmdistill pairs --out {shlex.quote(str(folder))}"
        raise ValueError(
            f"{file} does not exist: the set is incomplete; finish it by {command} with the options that it was begun "
            "with, or by resuming its run"
        )
    first = read_safetensors(layout.file(0))
    if not {"z", "y"} <= first.keys():
        raise ValueError(f"{layout.file(0)} holds {', '.join(first) or 'nothing'}, expected z and y")
    row = tuple(first["z"].shape[1:])
    row_shapes = {"z": row, "y": row} | ({"index": ()} if "index" in first else {})
    shards = [read_shard(layout.file(shard), layout.rows(shard), row_shapes) for shard in range(len(layout))]
    return PairDataset(settings, shards, seconds_per_image=seconds)


def make_pairs(
    folder: Path,
    settings: PairSettings,
    *,
    draw: Draw,
    generate: Generate,
    batch: int,
    device: torch.device,
    track: Track = lambda items, name: items,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> PairDataset:
    """Make the shards that are missing and open the set.

    Args:
        folder: of the set.
        settings: that decide it.
        draw: (n, rng) -> (z, index): noise, and the numbers of its conditions.
        generate: (z, index) -> y: images, by the solver.
        batch: pairs per call of `generate`.
        device: of the random generator.
        track: wraps the list of batches to show progress.
        processes: that make the set together, each some of the shards.

    Raises:
        ValueError: the folder holds pairs of other settings, or another process makes pairs in it.
    """
    if min(settings.count, settings.shard_size, batch) < 1:
        raise ValueError(f"{settings.count} pairs, {settings.shard_size} a shard, {batch} a batch: expected 1 or more")
    layout = ShardLayout(folder, settings.count, settings.shard_size)
    with ExitStack() as stack:

        def lock() -> list[int]:
            stack.enter_context(removed_if_useless(folder, lambda: any(folder.glob("shard-*.safetensors"))))
            stack.enter_context(exclusive_folder(folder))
            write_or_compare(folder / "pairs.json", settings)
            return layout.missing()

        started = time.perf_counter()
        missing = processes.on_main(lock)
        make_batch = batch_maker(layout, settings.seed, draw, generate, torch.Generator(device))
        write_shards(layout, processes.split(missing), make_batch, batch=batch, track=track, name="making pairs")
        processes.barrier()
        if missing and processes.is_main:
            seconds = (time.perf_counter() - started) / sum(map(layout.rows, missing))
            write_settings(folder / "pairs.json", settings, seconds)
        processes.barrier()
    return open_pairs(folder)


def check_space(folder: Path, count: int, shape: tuple[int, ...]) -> None:
    """Raise ValueError where a folder's disk has no room for so many pairs of a shape, C H W, made and to be made."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    needed, made = count * prod(shape) * BYTES, sum(file.stat().st_size for file in folder.glob("shard-*.safetensors"))
    if needed - made > (free := shutil.disk_usage(place).free):
        raise ValueError(
            f"{count} pairs take {needed / 1e9:.3g} GB, the disk of {folder} has {free / 1e9:.3g} GB left: choose "
            "fewer by --pair-count, or another disk"
        )


def batch_maker(
    layout: ShardLayout, seed: int, draw: Draw, generate: Generate, rng: torch.Generator
) -> Callable[[int, slice], dict[str, Tensor]]:
    """Return the function that makes a batch of a shard. A shard's noise is one draw: it depends on no batch size."""
    z, index = torch.empty(0), None

    def make_batch(shard: int, rows: slice) -> dict[str, Tensor]:
        nonlocal z, index
        if rows.start == 0:
            z, index = draw(layout.rows(shard), rng.manual_seed(derive_seed(seed, shard)))
        given = None if index is None else index[rows]
        y = generate(z[rows], given)
        if not torch.isfinite(y).all():
            raise ValueError("the solver gave NaN or infinity: try --precision fp32")
        return {"z": z[rows], "y": y.half()} | ({} if given is None else {"index": given})

    return make_batch


def write_or_compare(file: Path, settings: PairSettings) -> None:
    """Write pairs.json if it is missing. ValueError if it holds other settings."""
    if not file.exists():
        write_settings(file, settings, None)
    stored, _ = read_settings(file)
    if odd := [key for key, value in asdict(settings).items() if getattr(stored, key) != value]:
        raise ValueError(f"{file.parent} holds pairs of other settings: {', '.join(odd)} differ; choose another folder")


def write_settings(file: Path, settings: PairSettings, seconds: float | None) -> None:
    """Write pairs.json: the settings, the seconds an image took, where known, and a checksum."""
    write_json(file, add_checksum({**asdict(settings), "seconds_per_image": seconds}))


def read_settings(file: Path) -> tuple[PairSettings, float | None]:
    """Read pairs.json. ValueError, naming the file, where it is damaged."""
    values = read_json(file)
    if not isinstance(values, dict):
        raise ValueError(f"{file} does not describe pairs: it holds a {type(values).__name__}")
    pop_checksum(values, file)  # written by hand it may lack one
    types = {field.name: JSON_TYPES[str(field.type)] for field in dataclasses.fields(PairSettings)}
    types["seconds_per_image"] = ("int", "float", "NoneType")
    if odd := values.keys() ^ types.keys():
        raise ValueError(f"{file} does not describe pairs: too much or too little of {', '.join(sorted(odd))}")
    for name, value in values.items():
        if type(value).__name__ not in types[name] or (name in ("count", "shard_size") and value < 1):
            raise ValueError(f"{file} does not describe pairs: {name} is {reprlib.repr(value)}")
    seconds = values.pop("seconds_per_image")
    return PairSettings(**values), seconds
