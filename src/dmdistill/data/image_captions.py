"""Captions of sets of images: text files beside the images, or tables of file names and captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from dmdistill.data.prompt_files import PROMPT_COLUMNS
from dmdistill.data.tables import TABLES, read_columns

__all__ = ["captions_beside", "find_metadata", "table_captions", "table_names"]

NAME_COLUMNS = ("file_name", "image", "image_path", "path", "file")  # of a table, the first that is there


def find_metadata(folder: Path) -> Path | None:
    """Return the table metadata.csv, .tsv, .jsonl or .parquet of a folder, as data sets of the Hub have it, or None."""
    return next((file for ending in TABLES if (file := folder / f"metadata{ending}").is_file()), None)


def table_names(table: Path) -> list[str]:
    """Read the file names of a table of images, relative to its folder; one that is listed twice has two captions.

    ValueError if the table is empty, or a file does not exist.
    """
    (column,) = read_columns(table, NAME_COLUMNS)
    names = require_texts(table, "file name", column)
    if not names:
        raise ValueError(f"{table} lists no images")
    if missing := [name for name in dict.fromkeys(names) if not (table.parent / name).is_file()]:
        raise ValueError(f"{table}: {len(missing)} of {len(set(names))} images do not exist, first {missing[0]}")
    return names


def table_captions(table: Path, names: Sequence[str] | None = None) -> list[str]:
    """Read the captions of a table, row by row; with names, those of these images, each the first of its rows.

    ValueError where a row or an image has none.
    """
    files, captions = read_columns(table, NAME_COLUMNS, PROMPT_COLUMNS)
    captions = require_texts(table, "caption", captions)
    if names is None:
        return captions
    by_name = dict(zip(reversed(files), reversed(captions), strict=True))
    if missing := [name for name in names if name not in by_name]:
        raise ValueError(f"{table}: {len(missing)} of {len(names)} images have no caption, first {missing[0]}")
    return [by_name[name] for name in names]


def require_texts(table: Path, kind: str, values: Sequence[Any]) -> list[str]:
    """Return texts without space around them. ValueError where one is blank or no text."""
    for number, value in enumerate(values, 1):
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{table}: row {number} has no {kind}, but {value!r}")
    return [value.strip() for value in values]


def captions_beside(names: Sequence[str], read_text: Callable[[str], str | None]) -> list[str] | None:
    """Read the captions of images, each from the file of its name that ends in .txt.

    Args:
        names: of the images.
        read_text: reads a text file by its name; None if it does not exist.

    Returns:
        The captions, without space around them; None where no image has one.

    Raises:
        ValueError: some images have a caption, and others none or a blank one.
    """
    texts = [read_text(str(PurePosixPath(name).with_suffix(".txt"))) for name in names]
    if all(text is None for text in texts):
        return None
    blank = [name for name, text in zip(names, texts, strict=True) if not (text or "").strip()]
    if blank:
        raise ValueError(f"{len(blank)} of {len(names)} images have no caption in a .txt beside them, first {blank[0]}")
    return [text.strip() for text in texts if text is not None]
