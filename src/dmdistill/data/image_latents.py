"""Latents of real images: each image encoded once, stored on disk, memory-mapped.

    FOLDER/DIGEST/shard-00000.safetensors     x: fp16, N C H W, in the order of the images

DIGEST is a hash of the images' content and resolution, of the autoencoder and of the latents' shape. Shards that a
killed process did not write are made by the next. fp16 has 11 significant bits: rounding changes a latent by at most
one part in 2048.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dmdistill.data.image_sources import StoredImages
from dmdistill.data.image_tensors import from_uint8
from dmdistill.data.real_images import ReadRows
from dmdistill.data.shards import ShardLayout, Track, open_shards, write_shards

__all__ = ["encode_images", "latent_layout", "latent_reader"]


def latent_layout(
    images: StoredImages, folder: Path, *, encoder: str, shape: tuple[int, ...], shard_size: int = 512
) -> ShardLayout:
    """Return where the latents of a set of images lie, which may not be there yet.

    Args:
        images: the set, opened at the resolution that is encoded.
        folder: of the latents of all sets.
        encoder: identity of the autoencoder.
        shape: C H W of the latents.
        shard_size: images per file.
    """
    key = [images.digest(), len(images), encoder, list(shape), shard_size]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    return ShardLayout(folder / digest[:32], len(images), shard_size)


def encode_images(
    images: StoredImages,
    layout: ShardLayout,
    shards: Sequence[int],
    encode: Callable[[Tensor], Tensor],
    *,
    batch: int,
    track: Track = lambda items, name: items,
) -> None:
    """Encode the images of some shards, and write each when it is complete.

    Args:
        images: the set.
        layout: where its latents lie.
        shards: numbers of those to write.
        encode: images, fp32, B C H W in [-1, 1], on the CPU -> latents.
        batch: images per call of `encode`.
        track: wraps the list of batches to show progress.

    Raises:
        ValueError: an image cannot be read, or its latents do not fit fp16.
    """

    def make_batch(shard: int, rows: slice) -> dict[str, Tensor]:
        start = shard * layout.size
        x = encode(from_uint8(images.images(range(start + rows.start, start + rows.stop)))).half().cpu()
        if not torch.isfinite(x).all():
            raise ValueError(f"{images.name}: the autoencoder gave latents that are no numbers or too large for fp16")
        return {"x": x}

    write_shards(layout, shards, make_batch, batch=batch, track=track, name="encoding images")


def latent_reader(layout: ShardLayout, shape: tuple[int, ...]) -> ReadRows:
    """Return a function that reads latents by their numbers. ValueError where a file of them is damaged."""
    shards = open_shards(layout, {"x": torch.empty(0, *shape, dtype=torch.float16)})
    return lambda rows: shards.read(rows)["x"].float()
