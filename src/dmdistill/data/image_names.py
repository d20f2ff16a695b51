"""Names of the image files in a folder or a zip, in natural order."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

__all__ = ["ENDINGS", "is_image_name", "list_images", "natural_key"]

ENDINGS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
THUMBNAILS = ("__MACOSX", "@eaDir")  # folders that macOS and Synology add; others are hidden by a dot


def list_images(source: Path | zipfile.ZipFile) -> list[str]:
    """List the image files below a folder or in a zip, relative to it, in natural order. ValueError where it has none.

    Hidden files, and those in hidden folders, are left out. Links to folders are followed, but not to a folder above.
    """
    names = walk_folder(source) if isinstance(source, Path) else source.namelist()
    images = sorted({name for name in names if is_image_name(name)}, key=natural_key)
    if not images:
        place = source if isinstance(source, Path) else source.filename
        raise ValueError(f"{place} holds no images ({', '.join(ENDINGS)})")
    return images


def walk_folder(folder: Path) -> Iterator[str]:
    """Yield the names of all files below a folder, relative to it."""
    for root, folders, files in os.walk(folder, onerror=reraise, followlinks=True):
        here = Path(root)
        folders[:] = [name for name in folders if not is_hidden(name) and not is_loop(here / name)]
        yield from ((here / name).relative_to(folder).as_posix() for name in files)


def reraise(error: OSError) -> None:
    """Raise the error of a folder that cannot be listed: its files would be missing in silence."""
    raise error


def is_loop(link: Path) -> bool:
    """Return whether a path is a link that leads to a folder on the way to it: following it would never end."""
    return link.is_symlink() and any(folder.resolve().is_relative_to(link.resolve()) for folder in link.parents)


def is_image_name(name: str) -> bool:
    """Return whether a relative name ends as image files do, with nothing hidden on its path."""
    parts = PurePosixPath(name.replace("\\", "/")).parts  # some zips are written with backslashes
    return name.lower().endswith(ENDINGS) and not any(map(is_hidden, parts))


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, or one of thumbnails."""
    return name.startswith(".") or name in THUMBNAILS


def natural_key(name: str) -> tuple[list[list[tuple[int, str]]], str]:
    """Return the key that sorts "img2" before "img10", folder by folder."""
    return [number_key(part) for part in PurePosixPath(name).parts], name


def number_key(part: str) -> list[tuple[int, str]]:
    """Return the text and the digits of a name by turns: digits compare by their number, first by its length."""
    pieces = re.split(r"([0-9]+)", part)
    digits = [piece.lstrip("0") for piece in pieces[1::2]]
    return [
        pair
        for text, number in zip(pieces[::2], [*digits, ""], strict=True)
        for pair in ((0, text), (len(number), number))
    ]
