"""The real images of a distillation: those of --data, at the teacher's resolution and with its kind of conditions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dmdistill.commands.evaluate.generated_images import image_shape
from dmdistill.commands.prompts import with_prompt_texts
from dmdistill.data.conditions import Conditions
from dmdistill.data.image_labels import ImageLabels
from dmdistill.data.image_latents import encode_images, latent_layout, latent_reader
from dmdistill.data.image_sources import StoredImages, open_images
from dmdistill.data.real_images import ReadRows, RealImages, pixel_reader
from dmdistill.data.shards import ShardLayout
from dmdistill.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from dmdistill.io.folders import writable_cache_folder
from dmdistill.models.autoencoder import Autoencoder
from dmdistill.models.model import Teacher
from dmdistill.training.progress import track_rows

__all__ = ["load_real_images"]

Shape = tuple[int, int, int]
Say = Callable[[str], None]
PIXELS = 1 << 21  # that are encoded at once: eight images of 512 x 512


def load_real_images(
    source: str,
    teacher: Teacher,
    *,
    device: torch.device,
    cache: Path | None = None,
    processes: ProcessGroup = SINGLE_PROCESS,
    say: Say = lambda text: None,
) -> RealImages:
    """Open a set of real images for a teacher.

    Images are cropped to a square around their middle and resized to the teacher's side, unless its images are not
    square. A teacher of latents gets those of the images, which are encoded once and cached. A text-to-image teacher
    needs captions and a class-conditional one labels; others take the images alone.

    Args:
        source: of the images, see `open_images`.
        teacher: whose shape and conditions they must fit.
        device: to encode images and captions on.
        cache: folder for encoded images and captions; dmdistill's own cache where None.
        processes: that encode the images together.
        say: prints a line.

    Raises:
        ValueError: the source cannot be read, or does not fit the teacher.
    """
    autoencoder, shape = teacher.autoencoder, image_shape(teacher)
    images = open_images(source, side=shape[1] if shape[1] == shape[2] else None)
    conditions, index = select_conditions(images, teacher, device=device, cache=cache)
    words = f", {len(conditions)} {'captions' if teacher.text is not None else 'classes'}" if conditions else ""
    say(f"--data {source}: {len(images)} real images{words}")
    if autoencoder is None:
        check_shape(images, shape)
        read = pixel_reader(images)
    else:
        folder = None if cache is None else cache / "latents"
        read = read_latents(images, autoencoder, teacher.shape, folder, device=device, processes=processes)
    return RealImages(images.name, len(images), read, conditions, index)


def check_shape(images: StoredImages, shape: Shape) -> None:
    """Raise a ValueError where images differ in channels or size from a teacher's."""
    if images.shape != shape:
        stored = open_images(images.name).shape  # as they are, not resized
        raise ValueError(f"--data {images.name}: images of {shape_text(stored)}, the teacher makes {shape_text(shape)}")


def shape_text(shape: Shape) -> str:
    """Describe a shape: "3 x 32 x 32"."""
    return " x ".join(map(str, shape))


def select_conditions(
    images: StoredImages, teacher: Teacher, *, device: torch.device, cache: Path | None
) -> tuple[Conditions | None, Tensor | None]:
    """Return the conditions of a teacher's kind that the images have, and the number of each image's.

    Captions are encoded by the teacher's text encoder. ValueError where the images have none, or have other classes.
    """
    if teacher.text is not None:
        captions = images.captions
        if captions is None:
            raise ValueError(
                f"--data {images.name}: no captions, which {teacher.name} needs: put a .txt beside each image, or give "
                "a .csv, .jsonl or .parquet with columns file_name and caption"
            )
        folder = None if cache is None else cache / "prompts"
        return with_prompt_texts(teacher, captions, folder, device=device).conditions, torch.arange(len(captions))
    if teacher.conditions is None:
        return None, None
    labels = images.labels
    if labels is None:
        raise ValueError(
            f"--data {images.name}: no labels, which {teacher.name} needs: put the images of each class in a folder of "
            "its own, or give a zip whose dataset.json has labels"
        )
    return teacher.conditions, match_classes(labels, teacher.conditions, images.name)


def match_classes(labels: ImageLabels, conditions: Conditions, source: str) -> Tensor:
    """Return the number of each image's class among a teacher's: by name where all names are the same, else in order.

    ValueError where there are more or fewer classes.
    """
    names = getattr(conditions, "names", labels.names)
    if len(labels.names) != len(conditions):
        raise ValueError(f"--data {source}: {len(labels.names)} classes, the teacher has {conditions}")
    if set(names) != set(labels.names):
        return labels.index
    return torch.tensor([names.index(name) for name in labels.names])[labels.index]


def read_latents(
    images: StoredImages,
    autoencoder: Autoencoder,
    shape: Shape,
    folder: Path | None,
    *,
    device: torch.device,
    processes: ProcessGroup,
) -> ReadRows:
    """Encode the images whose latents are not in the folder, and return what reads the latents."""

    def find() -> ShardLayout:
        home = folder or writable_cache_folder("latents")
        return latent_layout(images, home, encoder=autoencoder.fingerprint(), shape=shape)

    layout = processes.on_main(find)
    if missing := processes.on_main(layout.missing):  # asked once: the others may already write
        pixels = autoencoder.image_shape(shape)
        check_shape(images, pixels)
        encoder = autoencoder.to(device)
        batch = max(1, PIXELS // (pixels[1] * pixels[2]))
        encode_images(
            images,
            layout,
            processes.split(missing),
            lambda x: encoder.encode(x.to(device)),
            batch=batch,
            track=track_rows,
        )
        processes.barrier()
    return latent_reader(layout, shape)
