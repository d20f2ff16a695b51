"""Noise-image pairs on disk: safetensors shards, memory-mapped, each reproducible from seed and shard number.

FOLDER/pairs.json                the settings they were made with: `PairSettings`
FOLDER/shard-00000.safetensors   z and y: fp16, N C H W.  index: int64, N, of the conditions, where there are any.

z is rounded to fp16 before the solver starts from it, so that y is the image of the z that is stored. y is rounded
afterwards, which changes a value by at most one part in 2048 (for magnitudes from 6e-5 to 65504). Sets of an earlier
version, with z in fp32, are read as well.
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

from dmdistill.data.permutation import Permutation
from dmdistill.data.seeds import derive_seed
from dmdistill.data.shards import ShardLayout, Shards, Track, open_shards, write_shards
from dmdistill.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from dmdistill.io.atomic import read_json, read_safetensors, write_json
from dmdistill.io.checksums import add_checksum, pop_checksum
from dmdistill.io.folders import exclusive_folder, removed_if_useless

__all__ = ["PairDataset", "PairSettings", "check_space", "count_pairs", "make_pairs", "open_pairs"]

JSON_TYPES = {"str": ("str",), "int": ("int",), "float": ("int", "float")}  # by a field's annotation
BYTES = 2 + 2  # of a number of z and of one of y
FLOATS = (torch.float16, torch.float32)  # that z and y may be stored in
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
        shards: tensors z, y and, with conditions, index.
        seconds_per_image: time that generating an image took, where known.
    """

    def __init__(self, settings: PairSettings, shards: Shards, *, seconds_per_image: float | None = None) -> None:
        self.settings, self.shards, self.seconds_per_image = settings, shards, seconds_per_image
        self.epoch, self.order = -1, Permutation(1)

    def __len__(self) -> int:
        return self.settings.count

    @property
    def shape(self) -> tuple[int, ...]:
        """C H W of an image."""
        return tuple(self.shards.rows["z"].shape[1:])

    def __getitem__(self, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return z and y, fp32, B C H W, and the numbers of the conditions, int64 B. ValueError if one is damaged."""
        tensors = self.shards.read(torch.tensor(rows, dtype=torch.int64))
        return tensors["z"].float(), tensors["y"].float(), tensors.get("index")

    def rows(self, step: int, size: int) -> list[int]:
        """Return the pairs of a step's batch: epochs without end, each in an order of its own."""
        size = min(size, len(self))
        epoch, index = divmod(step, len(self) // size)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, Permutation(len(self), self.settings.seed, epoch)
        return self.order[index * size : (index + 1) * size]

    def verify(self, track: Track) -> None:
        """Read all files to their ends. ValueError, naming those that are damaged. `track` shows progress."""
        if damaged := self.shards.damaged(track):
            names = ", ".join(file.name for file in damaged[:5]) + (", ..." if len(damaged) > 5 else "")
            layout = self.shards.layout
            raise ValueError(
                f"{layout.folder} has {len(damaged)} damaged files of {len(layout)}: {names}; remove them, and make "
                f"them again by {command_to_finish(layout.folder)}"
            )


def open_pairs(folder: Path) -> PairDataset:
    """Open a complete set of pairs. ValueError, naming the file, where one is missing, cut short or of another set.

    Content is verified when it is read.
    """
    settings, seconds = read_settings(folder / "pairs.json")
    layout = ShardLayout(folder, settings.count, settings.shard_size)
    if file := next((file for file in map(layout.file, range(len(layout))) if not file.exists()), None):
        raise ValueError(f"{file} does not exist: the set is incomplete; finish it by {command_to_finish(folder)}")
    first = read_safetensors(layout.file(0), verify=False)
    rows = {name: first[name] for name in ("z", "y", "index") if name in first}
    if not is_pair(rows):
        raise ValueError(f"{layout.file(0)} holds {', '.join(first) or 'nothing'}, expected z and y of one shape")
    shards = open_shards(layout, rows)
    return PairDataset(settings, shards, seconds_per_image=seconds)


def count_pairs(folder: Path) -> tuple[int, int]:
    """Return how many pairs of a set are in its files, and how many it is to have. ValueError without pairs.json."""
    settings, _ = read_settings(folder / "pairs.json")
    layout = ShardLayout(folder, settings.count, settings.shard_size)
    return settings.count - sum(map(layout.rows, layout.missing())), settings.count


def command_to_finish(folder: Path) -> str:
    """Return, in words, how the missing shards of a set are made."""
    command = f"dmdistill pairs --out {shlex.quote(str(folder))}"
    return f"{command} with the options that it was begun with, or by resuming its run"


def is_pair(rows: dict[str, Tensor]) -> bool:
    """Whether tensors are noise and images of one shape and, where there are any, numbers of conditions."""
    index = rows.get("index", torch.empty(0, dtype=torch.int64))
    floats = all(name in rows and rows[name].dtype in FLOATS for name in "zy")
    return floats and rows["z"].shape == rows["y"].shape and (index.dtype, index.ndim) == (torch.int64, 1)


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
        make_batch = batch_maker(layout, settings, draw, generate, torch.Generator(device))
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
    layout: ShardLayout, settings: PairSettings, draw: Draw, generate: Generate, rng: torch.Generator
) -> Callable[[int, slice], dict[str, Tensor]]:
    """Return the function that makes a batch of a shard. A shard's noise is one draw: it depends on no batch size."""
    z, index = torch.empty(0), None

    def make_batch(shard: int, rows: slice) -> dict[str, Tensor]:
        nonlocal z, index
        if rows.start == 0:
            z, index = draw(layout.rows(shard), rng.manual_seed(derive_seed(settings.seed, shard)))
            z = z.half()
        given = None if index is None else index[rows]
        y = generate(z[rows].float(), given).half()
        if not torch.isfinite(y).all():
            advice = "" if settings.precision == "float32" else ": try --precision fp32"
            solver = f"{settings.steps} steps of {settings.solver} with the teacher {settings.teacher}"
            raise ValueError(f"{solver} gave NaN, infinity or more than fp16 holds{advice}")
        return {"z": z[rows], "y": y} | ({} if given is None else {"index": given})

    return make_batch


def write_or_compare(file: Path, settings: PairSettings) -> None:
    """Write pairs.json if it is missing. ValueError if it holds other settings."""
    if not file.exists():
        write_settings(file, settings, None)
    stored, _ = read_settings(file)
    both = {key: (getattr(stored, key), value) for key, value in asdict(settings).items()}
    if odd := [f"{key} {before}, now {value}" for key, (before, value) in both.items() if before != value]:
        raise ValueError(
            f"{file.parent} holds pairs of other settings: {'; '.join(odd)}. Give those settings, choose another "
            "folder, or remove this one to make its pairs anew"
        )


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
