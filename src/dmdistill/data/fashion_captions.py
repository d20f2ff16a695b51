"""Fashion-MNIST with captions that are computed from its images, and the attributes measured back from any image.

A caption names the class, and some of three attributes: brightness, width and texture. Each is a number of the image,
so whether a generated image has what its prompt names can be measured exactly, without a network but for the class.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dmdistill.data.idx_images import FASHION_CLASSES
from dmdistill.data.image_tensors import LabelledImages, from_uint8
from dmdistill.data.seeds import derive_seed
from dmdistill.io.atomic import atomic_write

__all__ = [
    "ATTRIBUTES",
    "CLASS_WORDS",
    "Attribute",
    "Caption",
    "measure",
    "read_caption",
    "write_captioned_images",
    "write_captions",
]

CLASS_WORDS = tuple(name.partition("/")[0].lower() for name in FASHION_CLASSES)  # as captions name the classes
PHRASINGS = ("a {words} {name}", "a photo of a {words} {name}", "{name}, {list}", "{list} {name}")
KEPT = 0.7  # probability that a caption names an attribute that is clear
BORDER = 2  # pixels of padding, which makes 32 x 32 of 28 x 28
BACKGROUND = 0.1  # largest brightness, from 0 to 1, of a pixel of the background


@dataclass(frozen=True)
class Attribute:
    """A number of an image, and the words for its ranges.

    Attributes:
        words: from the lowest range to the highest.
        gaps: (low, high) between neighbouring words: captions name none within a gap.
    """

    words: tuple[str, ...]
    gaps: tuple[tuple[float, float], ...]

    def clear_word(self, value: float) -> str | None:
        """Return the word for a value; None within a gap."""
        if any(low <= value < high for low, high in self.gaps):
            return None
        return self.words[sum(value >= high for _, high in self.gaps)]

    def nearest(self, values: Tensor) -> Tensor:
        """Return the numbers of the words for values (B,), divided at the middle of each gap: int64, B."""
        return torch.bucketize(values, values.new_tensor([(low + high) / 2 for low, high in self.gaps]), right=True)


ATTRIBUTES = {
    "brightness": Attribute(("dark", "grey", "bright"), ((0.5, 0.57), (0.68, 0.74))),
    "width": Attribute(("narrow", "wide"), ((12.0, 15.0),)),
    "texture": Attribute(("plain", "patterned"), ((0.09, 0.13),)),
}
"""Gaps hold a fifth to two fifths of the training images, and the range of each word at least a fifth."""


def measure(images: Tensor) -> dict[str, Tensor]:
    """Measure the attributes of images, over the pixels that are no background.

    Args:
        images: floats in about [-1, 1], B 1 H W.

    Returns:
        For each image (B,): the mean brightness (0 to 1), the mean width in pixels of the rows that are not empty, and
        the mean difference in brightness of neighbouring pixels (texture, 0 to 1). Zeros for an empty image.
    """
    x = (images.float().clamp(-1, 1) + 1) / 2
    inside = (x > BACKGROUND).float()
    count = inside.sum((1, 2, 3))
    rows = inside.amax((1, 3)).sum(1)
    change, pairs = torch.zeros_like(count), torch.zeros_like(count)
    for dim in (2, 3):
        first, second = (inside.narrow(dim, start, inside.shape[dim] - 1) for start in (0, 1))
        both = first * second
        change = change + (x.diff(dim=dim).abs() * both).sum((1, 2, 3))
        pairs = pairs + both.sum((1, 2, 3))
    return {
        "brightness": (x * inside).sum((1, 2, 3)) / count.clamp(min=1),
        "width": count / rows.clamp(min=1),
        "texture": change / pairs.clamp(min=1),
    }


@dataclass(frozen=True)
class Caption:
    """What a caption says.

    Attributes:
        label: of the class; None for no class.
        words: by the names of the attributes that it names.
    """

    label: int | None
    words: dict[str, str]


def read_caption(text: str) -> Caption:
    """Read what a caption says; words that it does not know are skipped."""
    text = text.lower()
    named = [name for name in CLASS_WORDS if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)]
    words = re.findall(r"[\w-]+", text)
    said = {key: [word for word in attribute.words if word in words] for key, attribute in ATTRIBUTES.items()}
    label = CLASS_WORDS.index(named[0]) if named else None
    return Caption(label, {key: found[0] for key, found in said.items() if found})


def write_captioned_images(file: Path, data: LabelledImages, *, seed: int = 0) -> None:
    """Write Fashion-MNIST as a zip of 32 x 32 pictures in the folders of their classes, with a caption beside each.

    Args:
        file: to write; it is the same, byte by byte, for the same images and seed.
        data: images and labels of Fashion-MNIST.
        seed: of the captions' phrasing and of the attributes that they name.
    """
    about = {"name": "fashion-text", "licence": data.licence, "feature_extractor": data.feature_extractor}
    padded = F.pad(data.images, [BORDER] * 4)
    labels = data.labels.tolist()
    with atomic_write(file) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        archive.writestr(zipfile.ZipInfo("about.json"), json.dumps(about))
        for number, text in enumerate(write_captions(data, seed=seed)):
            name = f"{CLASS_WORDS[labels[number]]}/{number:05d}"
            archive.writestr(zipfile.ZipInfo(f"{name}.png"), png(padded[number, 0]))
            archive.writestr(zipfile.ZipInfo(f"{name}.txt"), text)


def write_captions(data: LabelledImages, *, seed: int = 0) -> Iterator[str]:
    """Yield a caption of each image of Fashion-MNIST, from its class, its measured attributes and a seed."""
    rng = np.random.default_rng(derive_seed(seed))
    values = {key: value.tolist() for key, value in measure(from_uint8(data.images)).items()}
    for number, label in enumerate(data.labels.tolist()):
        clear = [attribute.clear_word(values[key][number]) for key, attribute in ATTRIBUTES.items()]
        words = [word for word in clear if word is not None and rng.random() < KEPT]
        yield phrase(CLASS_WORDS[label], words, PHRASINGS[rng.integers(len(PHRASINGS))])


def phrase(name: str, words: Sequence[str], phrasing: str) -> str:
    """Say the name of a class and attributes in a phrasing."""
    if not words:
        phrasing = phrasing.replace("{words} ", "").replace("{list} ", "").replace(", {list}", "")
    text = phrasing.format(name=name, words=" ".join(words), list=", ".join(words))
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


def png(image: Tensor) -> bytes:
    """Return a grey image (uint8, H W) as the bytes of a PNG."""
    stream = io.BytesIO()
    Image.fromarray(image.numpy()).save(stream, "PNG")
    return stream.getvalue()
