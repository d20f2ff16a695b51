"""Image files in a folder, in a zip as EDM's dataset tool writes it (Karras et al. 2022), or listed in a table."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from dmdistill.data.image_captions import captions_beside, find_metadata, table_captions, table_names
from dmdistill.data.image_decoding import MAX_BYTES, decode_image, is_coloured, one_if_large
from dmdistill.data.image_labels import ImageLabels, labels_by_folder, labels_by_table
from dmdistill.data.image_names import is_image_name, list_images, walk_folder
from dmdistill.data.tables import TABLES, naming_bad_text
from dmdistill.io.errors import first_line
from dmdistill.io.file_hashes import hash_files
from dmdistill.io.limits import check_expansion

__all__ = ["ImageFolder", "has_images", "is_table", "open_image_folder", "open_image_table"]

THREADS = 8  # decoding releases Python's lock
ABOUT = ("name", "licence", "feature_extractor")  # of the data set, in about.json


class ImageFolder:
    """Numbered images of the files below a folder or in a zip.

    Args:
        path: of the folder or zip.
        names: of the files in it, in their order.
        archive: the open zip; None for a folder.
        table: the table that lists the files and their captions; None for none.
        side: pixels that each image is cropped and resized to; None for images as they are.
        skip_corrupt: leave out files that cannot be read; else they are an error.
    """

    def __init__(
        self,
        path: Path,
        names: Sequence[str],
        *,
        archive: zipfile.ZipFile | None = None,
        table: Path | None = None,
        side: int | None = None,
        skip_corrupt: bool = False,
    ) -> None:
        self.path, self.names, self.archive, self.table = path, names, archive, table
        self.side, self.skip_corrupt = side, skip_corrupt
        self.name = str(table or path)
        self.skipped: dict[str, str] = {}  # name -> why

    def __len__(self) -> int:
        return len(self.names)

    @property
    def about(self) -> dict[str, str]:
        """The set's name, that of its folder, zip or table, and what about.json in it says: name, licence, ..."""
        known = {"name": (self.table or self.path).resolve().stem}
        try:
            said = json.loads(self.read_text("about.json") or "{}")
        except (ValueError, RecursionError):
            return known
        return known | {key: said[key] for key in ABOUT if isinstance(said, dict) and isinstance(said.get(key), str)}

    @property
    def shape(self) -> tuple[int, int, int]:
        """C H W of every image. ValueError where none can be read."""
        return self.common_shape

    @cached_property
    def common_shape(self) -> tuple[int, int, int]:
        """C H W of the first image that can be read, coloured if any image is. ValueError if none can be read."""
        for name in self.names:
            if isinstance(image := self.read(name), np.ndarray):
                height, width, channels = image.shape
                return 3 if channels == 3 or self.any_coloured() else 1, height, width
            if not self.skip_corrupt:
                raise self.corruption_error()
        raise ValueError(f"{self.path}: none of {len(self)} images can be read")

    @property
    def labels(self) -> ImageLabels | None:
        """Labels by dataset.json, where there is one, which may give none, else by the folders of the images.

        ValueError where dataset.json is something else, or lacks labels of some images.
        """
        try:
            with self.open_file("dataset.json") as stream:
                labels = json.load(stream).get("labels")
            return None if labels is None else labels_by_table(self.names, dict(labels))
        except (KeyError, FileNotFoundError):  # of a zip, of a folder
            return labels_by_folder(self.names)
        except Exception as error:  # of any kind: what it holds, and how a zip packs it
            raise ValueError(f"{self.path}: its dataset.json gives no labels: {first_line(error)}") from None

    @property
    def captions(self) -> list[str] | None:
        """Captions by the table, or by a table metadata.csv in the folder, else by .txt files beside the images.

        None where there are none, ValueError where some images have none.
        """
        if self.table is not None:
            return table_captions(self.table)
        metadata = find_metadata(self.path)  # beside no zip, which is no folder
        if metadata is not None:
            return table_captions(metadata, self.names)
        try:
            return captions_beside(self.names, self.read_text)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None

    def read_text(self, name: str) -> str | None:
        """Read a text file; None if it does not exist. ValueError if it is not UTF-8."""
        try:
            with self.open_file(name) as stream, naming_bad_text(self.path / name):
                return stream.read().decode("utf-8-sig")
        except (KeyError, FileNotFoundError):
            return None

    def digest(self) -> str:
        """Return hexadecimal digits that tell this set of images from another."""
        if self.archive is not None:
            return hash_files([self.path], f"{self.side}")
        files = [self.path / name for name in self.names]
        return hash_files([file for file in files if file.is_file()], f"{self.side}")  # no pipe, which would wait

    def images(self, rows: Sequence[int]) -> Tensor:
        """Return images by their numbers, in any order: uint8, B C H W.

        ValueError where one is corrupt or of another size than the first.
        """
        channels, height, width = self.shape
        with ThreadPoolExecutor(THREADS) as pool:
            results = list(pool.map(self.read, [self.names[row] for row in rows]))
        images = []
        for row, result in zip(rows, results, strict=True):
            if isinstance(result, np.ndarray):
                self.check_size(result, self.names[row])
                images.append(np.broadcast_to(result, (height, width, channels)))
            elif self.skip_corrupt:
                self.skipped[self.names[row]] = first_line(result)
            else:
                raise self.corruption_error()
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) if images else torch.empty(0, *self.shape).byte()

    def check_size(self, image: np.ndarray, name: str) -> None:
        """Raise ValueError where an image, H W C, differs from the first in height or width."""
        _, height, width = self.shape
        if image.shape[:2] != (height, width):
            raise ValueError(
                f"{self.path}: {name} has {image.shape[0]} x {image.shape[1]} pixels, the first image "
                f"{height} x {width}; --side brings all to one size"
            )

    def any_coloured(self) -> bool:
        """Return whether any image that can be read has colours, by their headers."""

        def coloured(name: str) -> bool:
            try:
                with self.open_file(name) as stream:
                    return is_coloured(stream)
            except Exception:  # of any kind, as in `read`
                return False

        with ThreadPoolExecutor(THREADS) as pool:
            return any(pool.map(coloured, self.names))

    def read(self, name: str) -> np.ndarray | Exception:
        """Return an image, H W C, or the error that reading it raises."""
        try:
            with self.open_file(name) as stream:
                return decode_image(stream, self.side)
        except Exception as error:  # of any kind: each format has a decoder of its own
            return error

    @contextmanager
    def open_file(self, name: str) -> Iterator[BinaryIO]:
        """Open a file of the set. ValueError where it is no regular file or larger than any image."""
        with one_if_large(self.file_size(name)):
            if self.archive is None:
                with (self.path / name).open("rb") as stream:
                    yield stream
            else:
                yield io.BytesIO(self.archive.read(name))

    def file_size(self, name: str) -> int:
        """Return the bytes of a file, unpacked. ValueError where it is no regular file or larger than any image."""
        if self.archive is None:
            file = self.path / name
            size = file.stat().st_size
            if not file.is_file():
                raise ValueError("it is no regular file")  # a pipe would wait, a device might have no end
        else:
            entry = self.archive.getinfo(name)
            size = entry.file_size
            check_expansion(size, entry.compress_size)
        if size > MAX_BYTES:
            raise ValueError(f"it has {size} bytes, expected at most {MAX_BYTES}")
        return size

    def corruption_error(self) -> ValueError:
        """Return an error that counts all files that cannot be read and names the first."""
        with ThreadPoolExecutor(THREADS) as pool:
            results = zip(self.names, pool.map(self.failure, self.names), strict=True)
            bad = [(name, why) for name, why in results if why is not None]
        name, why = bad[0]
        return ValueError(
            f"{self.path}: {len(bad)} of {len(self)} images cannot be read, first {name}: {why}; mend or remove "
            "them; evaluate leaves them out by --skip-corrupt"
        )

    def failure(self, name: str) -> str | None:
        """Return why a file cannot be read; None where it can."""
        result = self.read(name)
        return first_line(result) if isinstance(result, Exception) else None


def open_image_folder(path: Path, *, side: int | None = None, skip_corrupt: bool = False) -> ImageFolder:
    """Open the images of a folder or zip, in natural order; options of `ImageFolder`. ValueError where it has none."""
    archive = open_zip(path) if path.is_file() else None
    names = list_images(path if archive is None else archive)
    if archive is not None:  # whose entries can lie on top of each other
        try:
            check_expansion(sum(archive.getinfo(name).file_size for name in names), path.stat().st_size)
        except ValueError as error:
            raise ValueError(f"{path} cannot be read as a zip: {error}") from None
    return ImageFolder(path, names, archive=archive, side=side, skip_corrupt=skip_corrupt)


def open_image_table(table: Path, *, side: int | None = None, skip_corrupt: bool = False) -> ImageFolder:
    """Open the images that a table lists, row by row; options of `ImageFolder`. ValueError where one does not exist."""
    return ImageFolder(table.parent, table_names(table), table=table, side=side, skip_corrupt=skip_corrupt)


def has_images(path: Path) -> bool:
    """Return whether a path is a folder with an image file somewhere below, a zip, or a table."""
    if path.is_dir():
        return any(map(is_image_name, walk_folder(path)))
    return (path.suffix.lower() == ".zip" and path.is_file()) or is_table(path)


def is_table(path: Path) -> bool:
    """Return whether a path is a table's."""
    return path.suffix.lower() in TABLES and path.is_file()


def open_zip(file: Path) -> zipfile.ZipFile:
    """Open a zip. ValueError, naming it, where it cannot be read."""
    try:
        return zipfile.ZipFile(file)
    except (OSError, NotImplementedError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} cannot be read as a zip: {first_line(error)}") from None
