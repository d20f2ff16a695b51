"""Prompts as conditions: each encoded once, stored on disk, memory-mapped.

    FOLDER/DIGEST/prompts.json                number of prompts and the encoder
    FOLDER/DIGEST/empty.safetensors           the null prompt's tensors, 1 ...
    FOLDER/DIGEST/shard-00000.safetensors     the prompts' tensors, N ..., in the encoder's dtype

DIGEST is a hash of the prompts and the encoder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from dmdistill.data.conditions import TextEncoder
from dmdistill.data.shards import ReadTensors, ShardLayout, Track, open_shards, write_shards
from dmdistill.io.atomic import read_safetensors, write_json, write_safetensors
from dmdistill.io.folders import folder_in_turn, writable_cache_folder

__all__ = ["PromptSet", "Prompts", "encode_prompts", "encode_texts"]


@dataclass(frozen=True)
class Prompts:
    """Encoded prompts, one per sample.

    Attributes:
        tensors: by the names that the network's adapter takes, each B ..., fp32.
        empty: those of the null prompt, each 1 ...
    """

    tensors: dict[str, Tensor]
    empty: dict[str, Tensor]

    def null(self) -> Self:
        """Return as many null prompts."""
        rows = len(self)
        return type(self)({name: row.expand(rows, *row.shape[1:]) for name, row in self.empty.items()}, self.empty)

    def concat(self, other: Self) -> Self:
        """Return these prompts followed by others."""
        both = {name: torch.cat([tensor, other.tensors[name]]) for name, tensor in self.tensors.items()}
        return type(self)(both, self.empty)

    def __getitem__(self, rows: slice) -> Self:
        return type(self)({name: tensor[rows] for name, tensor in self.tensors.items()}, self.empty)

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def to(self, device: torch.device) -> Self:
        """Return the prompts on a device."""
        tensors, empty = ({name: one.to(device) for name, one in part.items()} for part in (self.tensors, self.empty))
        return type(self)(tensors, empty)


class PromptSet:
    """The numbered prompts that a model is conditioned on.

    Args:
        texts: of the prompts.
        read: rows (B,) -> encoded prompts by name, B ..., on the CPU, of any dtype.
        empty: the null prompt's tensors, 1 ...
        rows: that `read` takes for each text, integers (len(texts),); None for their order.
    """

    def __init__(
        self,
        texts: Sequence[str],
        read: ReadTensors,
        empty: dict[str, Tensor],
        *,
        rows: Tensor | None = None,
    ) -> None:
        self.texts, self.read, self.empty = tuple(texts), read, {name: row.float() for name, row in empty.items()}
        self.empty_on: dict[torch.device, dict[str, Tensor]] = {}
        self.rows = torch.arange(len(texts)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.texts)

    def __str__(self) -> str:
        return f"{len(self)} prompt{'s' if len(self) > 1 else ''} {hash_texts(self.texts)[:8]}"

    def select(self, index: Tensor) -> Prompts:
        """Return the prompts of these numbers, integers (B,), on their device. ValueError if one is out of range."""
        numbers, device = index.long().cpu(), index.device
        if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < len(self):
            raise ValueError(f"prompts {int(numbers.min())} to {int(numbers.max())}, expected 0 to {len(self) - 1}")
        encoded = self.read(self.rows[numbers])
        if device not in self.empty_on:  # copied there once
            self.empty_on[device] = {name: row.to(device) for name, row in self.empty.items()}
        return Prompts({name: encoded[name].to(device).float() for name in self.empty}, self.empty_on[device])


def encode_prompts(
    texts: Sequence[str],
    encoder: TextEncoder,
    folder: Path,
    *,
    batch: int = 64,
    shard_size: int = 1024,
    track: Track = lambda items, name: items,
) -> PromptSet:
    """Encode the prompts that `folder` does not hold yet, each text once, and open the set.

    Of several processes that want the same prompts one encodes them and the others wait.

    Args:
        texts: of the prompts.
        encoder: of the model.
        folder: of all sets.
        batch: prompts per call of the encoder.
        shard_size: prompts per file.
        track: wraps the list of batches to show progress.
    """
    if not texts or min(batch, shard_size) < 1:
        raise ValueError(f"{len(texts)} prompts, {shard_size} a shard, {batch} a batch: expected 1 or more")
    unique = list(dict.fromkeys(texts))
    home = folder / hash_texts([encoder.id, str(shard_size), *unique])[:32]
    layout = ShardLayout(home, len(unique), shard_size)

    def make_batch(shard: int, rows: slice) -> dict[str, Tensor]:
        start = shard * shard_size
        return check_finite(encoder.encode(unique[start + rows.start : start + rows.stop]))

    if layout.missing() or not (home / "empty.safetensors").exists():
        with folder_in_turn(home):
            if not (home / "empty.safetensors").exists():
                about = {"encoder": encoder.id, "count": len(unique), "shard_size": shard_size}
                write_json(home / "prompts.json", about)
                write_safetensors(home / "empty.safetensors", check_finite(encoder.empty()))
            write_shards(layout, layout.missing(), make_batch, batch=batch, track=track, name="encoding prompts")
    empty = read_safetensors(home / "empty.safetensors")
    row = {text: number for number, text in enumerate(unique)}
    read = open_shards(layout, stored_like(empty, read_safetensors(layout.file(0)))).read
    return PromptSet(texts, read, empty, rows=torch.tensor([row[text] for text in texts]))


def encode_texts(
    texts: Sequence[str],
    encoder: TextEncoder,
    folder: Path | None = None,
    *,
    device: torch.device,
    track: Track = lambda items, name: items,
) -> PromptSet:
    """Encode prompts on a device, in the cache or another folder, and release the encoder afterwards.

    Args:
        texts: of the prompts.
        encoder: of the model.
        folder: of all sets; None for the cache.
        device: to encode on.
        track: wraps the list of batches to show progress.
    """
    encoder = encoder.to(device)
    try:
        return encode_prompts(texts, encoder, folder or writable_cache_folder("prompts"), track=track)
    finally:
        encoder.release()


def stored_like(empty: dict[str, Tensor], first: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the null prompt's tensors in the dtypes of the first shard's, where it has them."""
    return {name: row.to(first[name].dtype) if name in first else row for name, row in empty.items()}


def check_finite(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return an encoder's tensors. ValueError where one holds NaN or infinity."""
    if odd := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise ValueError(f"the text encoder gave NaN or infinity in {odd[0]}: give it a wider dtype")
    return tensors


def hash_texts(texts: Sequence[str]) -> str:
    """Return a hash, hexadecimal, of texts in their order."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
