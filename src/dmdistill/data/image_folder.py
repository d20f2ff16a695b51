"""Picture files, in a folder or in a zip as EDM's tool makes it (Karras et al. 2022), in the order of their names."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dmdistill.data.image_tensors import center_crop
from dmdistill.io.errors import first_line
from dmdistill.io.file_hashes import hash_files

__all__ = ["ImageFolder", "has_images"]

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
GREY = ("1", "L", "LA")  # modes of PIL; 16 bits and more are another matter
COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
FAILURES = (OSError, EOFError, SyntaxError, ValueError, struct.error, zlib.error, zipfile.BadZipFile)
FAILURES = (*FAILURES, RuntimeError, Image.DecompressionBombError)  # RuntimeError: a zip's entry with a password
THREADS = 8  # decoding leaves Python's lock


class ImageFolder:
    """The pictures below a folder or in a zip.

    Args:
        side, skip_corrupt: see `open_images`.
    """

    def __init__(self, where: Path, *, side: int | None = None, skip_corrupt: bool = False) -> None:
        self.where, self.side, self.skip_corrupt = where, side, skip_corrupt
        self.name = str(where)
        self.zip = opened(where) if where.is_file() else None
        self.names = names_in(where if self.zip is None else self.zip)
        self.skipped: dict[str, str] = {}  # name -> why

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.first_shape

    @cached_property
    def first_shape(self) -> tuple[int, int, int]:
        """C H W of the first picture that can be read. ValueError where there is none."""
        for name in self.names:
            if isinstance(found := self.read(name), np.ndarray):
                height, width, channels = found.shape
                return channels, height, width
            if not self.skip_corrupt:
                raise self.damaged()
        raise ValueError(f"{self.where}: none of {len(self)} pictures can be read")

    @cached_property
    def labels(self) -> tuple[int, ...] | None:
        """Of the pictures, where a dataset.json says them. ValueError where it says something else."""
        try:
            found = json.loads(self.content("dataset.json"))["labels"]
            return None if found is None else tuple(int(dict(found)[name]) for name in self.names)
        except (KeyError, FileNotFoundError):
            return None
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{self.where}: its dataset.json gives no labels: {first_line(error)}") from None

    def digest(self) -> str:
        files = [self.where] if self.zip is not None else [self.where / name for name in self.names]
        return hash_files(files, f"{self.side}")

    def images(self, rows: range) -> Tensor:
        """uint8 B C H W. ValueError where one differs in size, is coloured where the first is grey, or is damaged."""
        shape = self.shape
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(self.read, [self.names[row] for row in rows]))
        kept = []
        for row, one in zip(rows, found, strict=True):
            if isinstance(one, np.ndarray):
                kept.append(self.alike(one, self.names[row], shape))
            elif self.skip_corrupt:
                self.skipped[self.names[row]] = first_line(one)
            else:
                raise self.damaged()
        return torch.from_numpy(np.stack(kept)).permute(0, 3, 1, 2) if kept else torch.empty(0, *shape).byte()

    def alike(self, picture: np.ndarray, name: str, shape: tuple[int, int, int]) -> np.ndarray:
        """H W C of the shape of the first. A grey picture among coloured ones is coloured."""
        channels, height, width = shape
        if picture.shape[:2] != (height, width):
            raise ValueError(
                f"{self.where}: {name} has {picture.shape[0]} x {picture.shape[1]} pixels, the first picture "
                f"{height} x {width}; --side brings all to one size"
            )
        if channels == 1 and picture.shape[2] == 3:
            raise ValueError(f"{self.where}: {name} is coloured, the first picture is grey: expected all of one kind")
        return np.broadcast_to(picture, (height, width, channels))

    def read(self, name: str) -> np.ndarray | Exception:
        """H W C, or why it cannot be read."""
        try:
            return decoded(self.content(name), self.side)
        except FAILURES as error:
            return error

    def content(self, name: str) -> bytes:
        return (self.where / name).read_bytes() if self.zip is None else self.zip.read(name)

    def damaged(self) -> ValueError:
        """Names the first of all that cannot be read, and counts them."""
        with ThreadPoolExecutor(THREADS) as pool:
            found = zip(self.names, pool.map(self.failure, self.names), strict=True)
            bad = [(name, why) for name, why in found if why is not None]
        name, why = bad[0]
        return ValueError(
            f"{self.where}: {len(bad)} of {len(self)} pictures cannot be read, first {name}: {why}; mend them, or "
            "leave them out by --skip-corrupt"
        )

    def failure(self, name: str) -> str | None:
        found = self.read(name)
        return first_line(found) if isinstance(found, Exception) else None


def decoded(content: bytes, side: int | None) -> np.ndarray:
    """A picture as bytes, H W C, 1 or 3 channels: cut and resized as `open_images` says."""
    with Image.open(io.BytesIO(content)) as image:
        if image.mode not in (*GREY, *COLOUR):
            raise ValueError(f"its mode is {image.mode}, expected 8 bits a channel")
        picture = image.convert("L" if image.mode in GREY else "RGB")
    array = np.asarray(picture if side is None else center_crop(picture, side))
    return array[:, :, None] if array.ndim == 2 else array


def has_images(path: Path) -> bool:
    """Whether it is a folder with a picture somewhere below, or a zip."""
    return path.suffix.lower() == ".zip" if path.is_file() else any(map(is_picture, path.rglob("*")))


def names_in(where: Path | zipfile.ZipFile) -> list[str]:
    """Sorted; hidden ones and what macOS leaves in archives are none."""
    if isinstance(where, Path):
        names = [file.relative_to(where).as_posix() for file in where.rglob("*") if is_picture(file)]
    else:
        names = [name for name in where.namelist() if is_picture(Path(name))]
    if not names:
        place = where if isinstance(where, Path) else where.filename
        raise ValueError(f"{place} holds no pictures ({', '.join(ENDINGS)})")
    return sorted(names)


def is_picture(file: Path) -> bool:
    return file.suffix.lower() in ENDINGS and not file.name.startswith(".") and "__MACOSX" not in file.parts


def opened(file: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} cannot be read as a zip: {first_line(error)}") from None
