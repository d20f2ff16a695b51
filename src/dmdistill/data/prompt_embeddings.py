"""Prompts as conditions: encoded once, kept on disk, memory-mapped.

    FOLDER/DIGEST/prompts.json                what was encoded, and by which encoder
    FOLDER/DIGEST/empty.safetensors           the null prompt's tensors, 1 ...
    FOLDER/DIGEST/shard-00000.safetensors     those of the prompts, N ..., in the encoder's dtype

The digest is of the prompts and of the encoder: others lie beside them. A shard is written whole or not at all, so
an interrupted encoding goes on with the shards that are missing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from dmdistill.data.conditions import TextEncoder
from dmdistill.io.atomic import read_safetensors, write_json, write_safetensors

__all__ = ["PromptSet", "Prompts", "encode_prompts"]


@dataclass(frozen=True)
class Prompts:
    """One prompt per sample.

    Attributes:
        tensors: by the names that the network's adapter asks for, each B ..., fp32.
        empty: those of the null prompt, each 1 ...
    """

    tensors: dict[str, Tensor]
    empty: dict[str, Tensor]

    def null(self) -> Self:
        rows = len(self)
        return type(self)({name: row.expand(rows, *row.shape[1:]) for name, row in self.empty.items()}, self.empty)

    def concat(self, other: Self) -> Self:
        both = {name: torch.cat([tensor, other.tensors[name]]) for name, tensor in self.tensors.items()}
        return type(self)(both, self.empty)

    def __getitem__(self, rows: slice) -> Self:
        return type(self)({name: tensor[rows] for name, tensor in self.tensors.items()}, self.empty)

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def to(self, device: torch.device) -> Self:
        tensors, empty = ({name: one.to(device) for name, one in part.items()} for part in (self.tensors, self.empty))
        return type(self)(tensors, empty)


class PromptSet:
    """The prompts a model can be told, by number.

    Args:
        texts: of the prompts.
        shards: their tensors by name, N ..., all shards of as many rows but the last: memory-mapped, of any dtype.
        empty: those of the null prompt, 1 ...
        rows: where in the shards each text's are, integers (len(texts),); in their order where None.
    """

    def __init__(
        self,
        texts: Sequence[str],
        shards: Sequence[dict[str, Tensor]],
        empty: dict[str, Tensor],
        *,
        rows: Tensor | None = None,
    ) -> None:
        self.texts, self.shards, self.empty = tuple(texts), tuple(shards), empty
        self.rows = torch.arange(len(texts)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.texts)

    def __str__(self) -> str:
        return f"{len(self)} prompt{'s' if len(self) > 1 else ''} {digest(self.texts)[:8]}"

    def select(self, index: Tensor) -> Prompts:
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise ValueError(f"prompts {int(index.min())} to {int(index.max())}, expected 0 to {len(self) - 1}")
        rows = self.rows[index.long().cpu()]
        tensors = {name: self.gather(name, rows).to(index.device).float() for name in self.empty}
        return Prompts(tensors, {name: row.to(index.device).float() for name, row in self.empty.items()})

    def gather(self, name: str, rows: Tensor) -> Tensor:
        """These rows of all shards, on the CPU, as they are stored."""
        first = self.shards[0][name]
        picked = first.new_empty(len(rows), *first.shape[1:])
        shards = rows // len(first)
        for shard in shards.unique().tolist():
            here = shards == shard
            picked[here] = self.shards[shard][name][rows[here] % len(first)]
        return picked


def encode_prompts(
    texts: Sequence[str],
    encoder: TextEncoder,
    folder: Path,
    *,
    batch: int = 64,
    shard_size: int = 1024,
    track: Callable[[Sequence[Any], str], Iterable[Any]] = lambda items, name: items,
) -> PromptSet:
    """Encode what `folder` does not hold yet, each text once, and open the set.

    Args:
        batch: prompts per call of the encoder. shard_size: prompts per file.
        track: wraps the list of batches to show progress.
    """
    if not texts or min(batch, shard_size) < 1:
        raise ValueError(f"{len(texts)} prompts, {shard_size} a shard, {batch} a batch: expected 1 or more")
    unique = list(dict.fromkeys(texts))
    home = folder / digest([encoder.id, str(shard_size), *unique])[:32]
    files = [home / f"shard-{shard:05d}.safetensors" for shard in range(math.ceil(len(unique) / shard_size))]
    if not (home / "empty.safetensors").exists():
        write_json(home / "prompts.json", {"encoder": encoder.id, "count": len(unique), "shard_size": shard_size})
        save(home / "empty.safetensors", encoder.empty())
    parts = [unique[start : start + shard_size] for start in range(0, len(unique), shard_size)]
    missing = [shard for shard, file in enumerate(files) if not file.exists()]
    jobs = [(shard, start) for shard in missing for start in range(0, len(parts[shard]), batch)]
    made: list[dict[str, Tensor]] = []
    for shard, start in track(jobs, "encoding prompts"):
        made.append(encoder.encode(parts[shard][start : start + batch]))
        if start + batch >= len(parts[shard]):
            save(files[shard], {name: torch.cat([one[name] for one in made]) for name in made[0]})
            made = []
    empty = read_safetensors(home / "empty.safetensors")
    shards = [read_shard(file, len(part), empty) for file, part in zip(files, parts, strict=True)]
    place = {text: row for row, text in enumerate(unique)}
    return PromptSet(texts, shards, empty, rows=torch.tensor([place[text] for text in texts]))


def save(file: Path, tensors: dict[str, Tensor]) -> None:
    if odd := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise ValueError(f"the text encoder gave NaN or infinity in {odd[0]}: give it a wider dtype")
    write_safetensors(file, tensors)


def read_shard(file: Path, rows: int, empty: dict[str, Tensor]) -> dict[str, Tensor]:
    """A shard's tensors. ValueError, naming the file, where it is damaged or not of these rows."""
    shard = read_safetensors(file)
    shapes = {name: tuple(tensor.shape) for name, tensor in shard.items()}
    expected = {name: (rows, *row.shape[1:]) for name, row in empty.items()}
    if shapes != expected:
        raise ValueError(f"{file} holds {shapes}, expected {expected}; remove it to encode it anew")
    return shard


def digest(texts: Sequence[str]) -> str:
    """Of the texts in their order."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
