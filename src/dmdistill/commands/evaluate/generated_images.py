"""A model's images as a numbered set: each depends on the seed and its number, not on batches or processes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from dmdistill.core.denoisers import Condition
from dmdistill.data.image_tensors import center_crop_batch, to_uint8
from dmdistill.data.seeds import derive_seed
from dmdistill.models.fingerprint import fingerprint
from dmdistill.models.model import Model, Student, Teacher

__all__ = [
    "GeneratedImages",
    "batch_ranges",
    "generate_images",
    "generator_inputs",
    "image_shape",
    "sampling_batch_size",
]

IMAGE = 1  # in the keys of seeds: an image's noise is no pair's


class GeneratedImages:
    """The `ImageSource` of a model's images.

    Args:
        model: on its device.
        count: how many images.
        seed: of their noise and conditions.
        side: see `open_images`.
    """

    def __init__(self, model: Model, count: int, *, seed: int, side: int | None = None) -> None:
        self.model, self.count, self.seed, self.side = model, count, seed, side
        self.name = model.name

    def __len__(self) -> int:
        return self.count

    @property
    def shape(self) -> tuple[int, int, int]:
        """C H W of every image."""
        channels, height, width = image_shape(self.model)
        return (channels, self.side or height, self.side or width)

    def digest(self) -> str:
        """Hash everything that decides the images: weights, conditions, solver, steps, precision, seed, count, side."""
        model = self.model
        settings = [fingerprint(model), str(model.conditions), str(model.denoiser.precision), *model.shape]
        if isinstance(model, Teacher):
            settings += [model.solver, model.steps, model.guidance]
        elif isinstance(model, Student) and model.timesteps:
            settings += [*model.timesteps, model.transition]
        return hashlib.sha256(json.dumps([settings, self.seed, self.count, self.side]).encode()).hexdigest()

    def images(self, rows: range) -> Tensor:
        """Generate the images of these numbers: uint8, B C H W."""
        images = to_uint8(self.model.images(*generator_inputs(self.model, rows, seed=self.seed)))
        return images if self.side is None else center_crop_batch(images, self.side)


def image_shape(model: Model) -> tuple[int, int, int]:
    """Return C H W of a model's images."""
    return model.shape if model.autoencoder is None else model.autoencoder.image_shape(model.shape)


def generator_inputs(model: Model, rows: range, *, seed: int) -> tuple[Tensor, Condition | None]:
    """Draw noise, B C H W, and conditions of the images of these numbers, the same on every device and in any batch.

    A class is drawn uniformly. Prompts are taken in turn, so that as many images as prompts have one each.
    """
    z = torch.empty(len(rows), *model.shape)
    index = torch.empty(len(rows), dtype=torch.long)
    rng = torch.Generator()
    for i, row in enumerate(rows):
        rng.manual_seed(derive_seed(seed, row, IMAGE))
        torch.randn(model.shape, generator=rng, out=z[i])
        if model.conditions is not None:
            count = len(model.conditions)
            index[i] = row % count if model.text is not None else torch.randint(count, (), generator=rng)
    return z.to(model.device), model.condition(index)


def generate_images(
    model: Model,
    count: int,
    *,
    batch: int,
    seed: int,
    generate: Callable[..., Tensor] | None = None,
    share: Callable[[Sequence[range]], Sequence[range]] = lambda ranges: ranges,
) -> Iterator[Tensor]:
    """Generate images 0 ... count - 1 batch by batch: B C H W in about [-1, 1].

    Args:
        model: whose noise, conditions and autoencoder are used.
        count: how many images.
        batch: images of a batch.
        seed: of noise and conditions.
        generate: generator in place of the model's own.
        share: selects the batches of one process.
    """
    for rows in share(batch_ranges(count, batch)):
        inputs = generator_inputs(model, rows, seed=seed)
        yield model.decode(generate(*inputs)) if generate is not None else model.images(*inputs)


def batch_ranges(count: int, batch: int) -> list[range]:
    """Split 0 ... count - 1 into ranges of `batch`; the last may be shorter."""
    return [range(start, min(start + batch, count)) for start in range(0, count, batch)]


def sampling_batch_size(model: Model, batch: int) -> int:
    """Return how many images to generate at once: of pixels 500 small ones, fewer large ones; of latents at most 16.

    Args:
        model: whose images are generated.
        batch: most images of latents.
    """
    if model.autoencoder is not None:
        return min(batch, 16)
    return max(1, min(500, 500 * 3 * 64 * 64 // math.prod(model.shape)))
