"""A model's images as a numbered set: each is a function of the seed and its number alone."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from dmdistill.core.denoisers import Condition
from dmdistill.data.image_tensors import center_crop_batch, to_uint8
from dmdistill.data.seeds import derive_seed
from dmdistill.models.model import Model, Teacher, fingerprint
from dmdistill.training.progress import track

__all__ = ["GeneratedImages", "batch_ranges", "generate_images", "numbered", "sampling_batch_size"]

IMAGE = 1  # in the key of a seed: the noise of an image is no shard's of pairs


class GeneratedImages:
    """`ImageSource`: `count` images of a model.

    side: see `open_images`.
    """

    def __init__(self, model: Model, count: int, *, seed: int, side: int | None = None) -> None:
        self.model, self.count, self.seed, self.side = model, count, seed, side
        self.name = model.name

    def __len__(self) -> int:
        return self.count

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.own_shape
        return (channels, self.side or height, self.side or width)

    @cached_property
    def own_shape(self) -> tuple[int, int, int]:
        """Of what the model makes: latents are decoded to see it."""
        if self.model.autoencoder is None:
            return self.model.shape
        channels, height, width = self.model.images(*numbered(self.model, range(1), seed=self.seed)).shape[1:]
        return channels, height, width

    def digest(self) -> str:
        """Of all that decides the images: weights, conditions, solver, precision, seed, count, side."""
        model = self.model
        about = [fingerprint(model), str(model.conditions), str(model.denoiser.precision), *model.shape]
        if isinstance(model, Teacher):
            about += [model.solver, model.steps, model.guidance]
        return hashlib.sha256(json.dumps([about, self.seed, self.count, self.side]).encode()).hexdigest()

    def images(self, rows: range) -> Tensor:
        images = to_uint8(self.model.images(*numbered(self.model, rows, seed=self.seed)))
        return images if self.side is None else center_crop_batch(images, self.side)


def numbered(model: Model, rows: range, *, seed: int) -> tuple[Tensor, Condition | None]:
    """Noise (B C H W) and conditions of these images: the same on every machine, in whatever batches they are drawn.

    A class is drawn, each as likely as any other; prompts take their turns, so that as many images as prompts have one
    each.
    """
    z = torch.empty(len(rows), *model.shape)
    index = torch.empty(len(rows), dtype=torch.long)
    rng = torch.Generator()
    for i, row in enumerate(rows):
        rng.manual_seed(derive_seed(seed, row, IMAGE))
        torch.randn(model.shape, generator=rng, out=z[i])
        if model.conditions is not None:
            many = len(model.conditions)
            index[i] = row % many if model.text is not None else torch.randint(many, (), generator=rng)
    return z.to(model.device), model.condition(index)


def generate_images(
    model: Model,
    count: int,
    *,
    batch: int,
    seed: int,
    name: str = "",
    generate: Callable[..., Tensor] | None = None,
    share: Callable[[Sequence[range]], Sequence[range]] = lambda parts: parts,
) -> Iterator[Tensor]:
    """Images 0 ... count - 1 in batches: B C H W in about [-1, 1].

    name: of the progress, shown where it is given. generate: in place of the model's own. share: of the batches, which
    of them are drawn.
    """
    parts = share(batch_ranges(count, batch))
    for rows in track(parts, name) if name else parts:
        told = numbered(model, rows, seed=seed)
        yield model.decode(generate(*told)) if generate is not None else model.images(*told)


def batch_ranges(count: int, batch: int) -> list[range]:
    """0 ... count - 1 in ranges of `batch`, the last of what is left."""
    return [range(start, min(start + batch, count)) for start in range(0, count, batch)]


def sampling_batch_size(model: Model, batch: int) -> int:
    """How many images to draw at once: 500 small ones, fewer large ones; of latents at most a training step's batch."""
    if model.autoencoder is not None:
        return min(batch, 16)
    return max(1, min(500, 500 * 3 * 64 * 64 // math.prod(model.shape)))
