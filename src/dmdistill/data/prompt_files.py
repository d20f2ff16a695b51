"""Lists of prompts: text files, tables, data sets."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dmdistill.io.errors import first_line, import_optional

__all__ = ["read_prompts"]

COLUMNS = ("prompt", "caption", "text")  # of a table, the first that is there


def read_prompts(source: Path | str) -> list[str]:
    """The prompts of a source, blank ones skipped.

    Args:
        source: a .txt file of one prompt per line; a .csv or .parquet file with a column "prompt", "caption" or "text",
            or with one column only; or "hf:OWNER/NAME[:COLUMN]", the training split of a data set of the Hub.

    ValueError, naming the source, where it is missing, of another kind, damaged, or holds no prompts.
    """
    if str(source).startswith("hf:"):
        return kept(read_hub(str(source)), source)
    file = Path(source)
    if file.suffix.lower() not in READERS:
        raise ValueError(f"prompts from {source}: expected a file ending in {', '.join(READERS)}, or hf:OWNER/NAME")
    if not file.is_file():
        raise ValueError(f"{file} does not exist" if not file.exists() else f"{file} is no file")
    try:
        return kept(READERS[file.suffix.lower()](file), file)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from None


def kept(texts: Iterable[Any], source: Path | str) -> list[str]:
    """The texts that say something, without space around them."""
    found = [text for text in texts if text is not None]
    if odd := [text for text in found if not isinstance(text, str)]:
        raise ValueError(f"{source} holds {type(odd[0]).__name__} where prompts are expected: {odd[0]!r}")
    prompts = [text.strip() for text in found if text.strip()]
    if not prompts:
        raise ValueError(f"{source} holds no prompts")
    return prompts


def read_txt(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8-sig").splitlines()


def read_csv(file: Path) -> list[str]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        try:
            rows = csv.DictReader(lines)
            column = choose_column(rows.fieldnames or (), file)
            return [row[column] for row in rows]
        except csv.Error as error:
            raise ValueError(f"{file} is no CSV table: {error}") from None


def read_parquet(file: Path) -> list[Any]:
    """By pyarrow, whatever else is installed: pandas reads the format through it too."""
    parquet, arrow = import_optional("pyarrow.parquet", str(file)), import_optional("pyarrow", str(file))
    try:
        table = parquet.ParquetFile(file)
        column = choose_column(table.schema_arrow.names, file)
        return table.read(columns=[column])[column].to_pylist()
    except (OSError, arrow.ArrowException) as error:
        raise ValueError(f"{file} is cut short, damaged or no Parquet file: {first_line(error)}") from None


def read_hub(source: str) -> list[Any]:
    name, _, column = source.removeprefix("hf:").partition(":")
    datasets = import_optional("datasets", source)
    try:
        data = datasets.load_dataset(name, split="train")
    except Exception as error:  # of any class, from the network's to the format's
        raise ValueError(f"{source} cannot be loaded: {first_line(error)}") from None
    return list(data[choose_column(data.column_names, source, asked=column)])


READERS = {".txt": read_txt, ".csv": read_csv, ".parquet": read_parquet}


def choose_column(names: Sequence[str], source: Path | str, *, asked: str = "") -> str:
    """The one asked for, else the first of `COLUMNS` that is there, else the only one."""
    for name in [asked] if asked else COLUMNS:
        if name in names:
            return name
    if len(names) == 1 and not asked:
        return names[0]
    found = ", ".join(map(repr, names)) or "none"
    raise ValueError(f"{source} has the columns {found}; expected {repr(asked) if asked else ', '.join(COLUMNS)}")
